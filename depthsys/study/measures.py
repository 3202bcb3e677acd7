"""What else is measured of depth as a dynamical system: `depthsys dynamics`, and stages of a study.

Adding one touches this list, one function of `study.dynamics`, one file of `report.dynamics` and
its figures in `plot.dynamics`.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Sizes:
    """What the work of a measure depends on.

    Attributes
    ----------
    n_layers, n_features
        Of the model.
    n_prompts, n_jacobians
        Operating prompts, and those of them whose whole Jacobians are taken.
    """

    n_layers: int
    n_features: int
    n_prompts: int
    n_jacobians: int


@dataclass(frozen=True)
class Measure:
    """A measure of depth as dynamics.

    Attributes
    ----------
    name
        What it is called on the command line, in study files, and as a function of
        `study.dynamics`.
    title
        What is said while it is taken.
    rows
        How many rows of one block it takes, a product with a Jacobian counted as three.
    cubes
        Dense algebra beside them: how many products of two matrices as large as a Jacobian, for
        every layer, take as long.
    figures
        Functions of `plot.dynamics`, by name.
    settings
        What it depends on: names of `Settings`.
    least
        How many operating prompts it needs.
    large
        Variables as large as Jacobians: a command writes them to a file of their own, and a study
        does not keep them.
    of_concept
        Whether it is about a concept direction, so that it needs labelled texts.
    """

    name: str
    title: str
    figures: tuple[str, ...]
    rows: Callable[[Sizes], float]
    cubes: float = 0.0
    settings: tuple[str, ...] = ()
    of_concept: bool = False
    least: int = 1
    large: tuple[str, ...] = ()


PRODUCT = 3.0  # forward and backward
PLAYED = 12.0  # rows of each prompt and layer with which the energy of two plans is searched
COMPRESSED = 256  # prompts that the autoencoder gets
FLOWN = 8  # prompts whose states are put elsewhere: all over the plane, and near
NEAR = 3.0  # near: within so many spreads of the scores at that sublayer
TOKENS = 32  # of a prompt, where whole sequences go through once more: about a line of text
COUPLED = 10  # directions of every layer that are compared
# lenses; and blocks that one row of logits takes as long as, in small models
READERS, HEAD = 3, 8.0


def _jacobians(n: Sizes) -> float:
    return PRODUCT * n.n_jacobians * n.n_layers * n.n_features


def _each_layer_left_out(n: Sizes) -> float:
    return n.n_prompts * (PRODUCT * n.n_layers + n.n_layers * (n.n_layers + 1) / 2)


def _detached(n: Sizes) -> float:
    # whole sequences, of some 32 tokens: reconstruction, and the shares of tokens
    return _jacobians(n) + n.n_jacobians * n.n_layers * 32 * (5 + 4)


def _detached_gains(n: Sizes) -> float:
    return n.n_prompts * n.n_layers * (2 * PRODUCT + n.n_layers + PLAYED)


def _sublayers(n: Sizes) -> float:
    """One row to each state between parts; and the grid of teleportation."""
    compressed, flown = min(n.n_prompts, COMPRESSED), min(n.n_prompts, FLOWN)
    return n.n_layers * (n.n_prompts + compressed) + 2 * flown * 5 * 100 * min(6, n.n_layers)


def _whole_sequences_and_back(n: Sizes) -> float:
    return n.n_prompts * TOKENS * n.n_layers * (1 + PRODUCT)


def _coupled(n: Sizes) -> float:
    pairs = COUPLED * n.n_layers * (n.n_layers - 1) / 2
    return _jacobians(n) + 2 * PRODUCT * n.n_jacobians * pairs


def _read_by_lenses(n: Sizes) -> float:
    return _jacobians(n) + READERS * HEAD * n.n_prompts * (n.n_layers + 1)


_ALL = (
    Measure(
        name="spectra",
        title="spectra of depth",
        figures=("spectra", "eigenvalue_angles"),
        rows=_jacobians,
        cubes=2000.0,
        settings=("n_jacobians",),
    ),
    Measure(
        name="skip",
        title="leave layers out",
        figures=("layer_skip",),
        rows=_each_layer_left_out,
        settings=("readout",),
        of_concept=True,
    ),
    Measure(
        name="detached",
        title="detached maps",
        figures=("detached_spectra",),
        rows=_detached,
        cubes=1500.0,
        settings=("n_jacobians",),
    ),
    Measure(
        name="detached_gains",
        title="gains of detached maps",
        figures=("detached_gains",),
        rows=_detached_gains,
        settings=("readout", "eps", "step", "energy"),
        of_concept=True,
    ),
    Measure(
        name="residual",
        title="dynamics of the residual stream",
        figures=(
            "unit_continuity",
            "velocity_information",
            "rotations",
            "trajectories",
            "teleportation",
            "teleportation_near",
        ),
        rows=_sublayers,
        cubes=100.0,  # as long as neighbours and the autoencoder take
        settings=("seed",),
        least=5,
    ),
    Measure(
        name="coupling",
        title="coupling of layers",
        figures=("coupling",),
        rows=_coupled,
        cubes=500.0,
        settings=("n_jacobians",),
    ),
    Measure(
        name="shape",
        title="shape of trajectories",
        figures=("trajectory_shape",),
        rows=lambda n: 0.0,  # the states are those of the run
    ),
    Measure(
        name="lens",
        title="Jacobian lens",
        figures=("lens_agreement",),
        large=("J", "prompt_norm", "x_ref", "x_end"),
        rows=_read_by_lenses,
        settings=("n_jacobians",),
    ),
    Measure(
        name="tokens",
        title="gains of pushes at every token",
        figures=("token_gains", "lag_shares"),
        rows=_whole_sequences_and_back,
        settings=("readout",),
        of_concept=True,
    ),
)
MEASURES: dict[str, Measure] = {measure.name: measure for measure in _ALL}


def check_enough(measures: Iterable[Measure], n_texts: int, argument: str) -> None:
    """ValueError where a measure needs more operating texts; ``argument`` names the measures."""
    for each in measures:
        if n_texts < each.least:
            raise ValueError(
                f"`{argument}` must fit the texts; got {each.name!r} with {n_texts}, which needs "
                f"{each.least}. Give more, or leave it out."
            )


def checked_measures(said: str | None, *, labelled: bool) -> tuple[Measure, ...]:
    """Measures by their names with commas between them, in their order; None for all.

    Parameters
    ----------
    said
        As in "spectra,skip".
    labelled
        Whether the texts have labels: without them those of a concept are left out of all, and
        refused where they are named.

    Raises
    ------
    ValueError
        If a name is unknown or there twice, or its measure needs labels.
    """
    if said is None:
        return tuple(each for each in _ALL if labelled or not each.of_concept)
    names = [name.strip() for name in said.split(",")]
    for name in names:
        if name not in MEASURES:
            raise ValueError(
                f"`--measures` must be names out of {', '.join(MEASURES)}; got {name!r}. Write "
                "them as in spectra,skip."
            )
        if names.count(name) > 1:
            raise ValueError(
                f"`--measures` must name a measure once; got {name!r} {names.count(name)} times. "
                "Leave it out elsewhere."
            )
        if MEASURES[name].of_concept and not labelled:
            raise ValueError(
                f"`--measures` must need no labels for lines of text; got {name!r}, which is about "
                "a concept. Leave it out, or give texts with labels."
            )
    return tuple(each for each in _ALL if each.name in names)
