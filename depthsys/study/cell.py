"""One cell of a study: a model, its texts and what is asked of them. A main job is one cell."""

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from depthsys import demo
from depthsys.files import content_hash
from depthsys.study.devices import check_place
from depthsys.study.settings import Settings

DTYPE = "float32"  # in which models compute unless another one is asked for

if TYPE_CHECKING:
    from collections.abc import Callable

    import xarray as xr

    from depthsys.lm import DepthModel, Run, Splits, Texts


@dataclass(frozen=True)
class Cell:
    """What the steps of a study work on. Each of its runs is made once, when first needed.

    Attributes
    ----------
    settings
        What is asked for.
    model, texts
        The model, and the texts split for direction, identification and checks.
    run_of
        Makes the run of a part of the texts, called with model, texts and ``contexts``; by default
        all of them in one `lm.Run`.
    """

    settings: Settings
    model: "DepthModel"
    texts: "Splits"
    run_of: "Callable[..., Run] | None" = field(default=None, repr=False)
    _linear: "dict[tuple[str, str], xr.Dataset]" = field(default_factory=dict, repr=False)
    _runs: "dict[str, Run]" = field(default_factory=dict, repr=False)

    def with_settings(self, settings: Settings) -> "Cell":
        """The same model and texts, with the runs that were made, for other settings."""
        return replace(self, settings=settings)

    @property
    def concept(self) -> "Run":
        """Run of the texts that the direction is made of: of their states only."""
        return self._once("concept", lambda texts: self._run(texts, contexts=False))

    @property
    def operating(self) -> "Run":
        """Run of the texts that the system is identified on."""
        return self._once("operating", self._run)

    @property
    def held_out(self) -> "Run":
        """Run of the texts that are left for checks; the same one where they are the same texts."""
        if self.texts.held_out is self.texts.operating:
            return self.operating
        return self._once("held_out", self._run)

    @property
    def few(self) -> "Run":
        """Run of the operating texts whose whole Jacobians are taken."""
        return self.first(self.settings.n_jacobians)

    def first(self, count: int) -> "Run":
        """Run of the first operating texts; that of all of them where there are no more."""
        texts = self.texts.operating
        if count >= len(texts):
            return self.operating
        name = f"first {count}"
        if name not in self._runs:
            self._runs[name] = self._run(texts.first(count))
        return self._runs[name]

    def _once(self, name: str, run: "Callable[[Texts], Run]") -> "Run":
        if name not in self._runs:
            self._runs[name] = run(getattr(self.texts, name))
        return self._runs[name]

    def _run(self, texts: "Texts", *, contexts: bool = True) -> "Run":
        from depthsys.lm import Run

        if self.run_of is not None:
            return self.run_of(self.model, texts, contexts=contexts)
        if not contexts:
            return self.model.run(texts, contexts=False)
        return Run.later(self.model, texts)  # what an interrupted study has kept may need none

    def linear_gains(self, name: str, concept: "xr.Dataset") -> "xr.Dataset":
        """Exact linear gains of the run of that name, computed once for each concept."""
        from depthsys import lm

        key = name, content_hash(concept["direction"].values.tobytes())
        if key not in self._linear:
            self._linear[key] = lm.linear_gains(getattr(self, name), concept)
        return self._linear[key]


def read_splits(texts: Path, settings: Settings) -> "Splits":
    """The labelled texts of a file, split as asked for."""
    from depthsys.lm.pairs import Pairs, read_texts_or_pairs

    found = read_texts_or_pairs(texts.resolve(), positive=settings.positive, **settings.layout)
    check_pairs(settings, is_pairs=isinstance(found, Pairs), name=texts.name)
    return split_as_asked(found, settings)


def check_pairs(settings: Settings, *, is_pairs: bool, name: str) -> None:
    """ValueError where texts of that name must be pairs and are none."""
    if settings.concept == "paired_difference" and not is_pairs:
        raise ValueError(
            f"`--concept` must be another one than paired_difference for texts with labels; got it "
            f"with {name!r}, which holds no pairs. Name their columns by `--pairs`, or use "
            "mean_difference."
        )


def split_as_asked(texts: "Texts", settings: Settings) -> "Splits":
    """Labelled texts, split."""
    concept, operating, held_out = settings.split
    return texts.split(concept=concept, operating=operating, held_out=held_out, seed=settings.seed)


def find_model(name: str, settings: Settings) -> "Found":
    """Check all that can be checked without the weights.

    Raises
    ------
    ValueError, OSError
        If there is no such device or model, or an order does not fit its width.
    """
    from depthsys.lm.hf.checkpoint import checked_device, fitting, read_config

    device = checked_device(settings.device)
    check_place(
        device,
        settings.dtype or DTYPE,
        tf32=settings.tf32,
        tf32_asked="tf32" in settings.asked,
        device_map=settings.device_map,
        max_memory=settings.max_memory,
    )
    path = demo.model_path(name) if name in demo.MODELS else Path(name)
    source = str(path.resolve()) if path.exists() else name
    config = read_config(source).get_text_config(decoder=True)
    settings.method().size(config.hidden_size)
    settings = settings.for_width(config.hidden_size)
    fits = fitting(settings.max_tokens, config)
    settings.pushed_layers(config.num_hidden_layers)
    return Found(name, source, settings, config.hidden_size, fits)


def files_sha256(source: str) -> str | None:
    """A hash of the files of a model, or of its commit in the hub; None where that is not known.

    Files are read anew only where one has another size or time than when it was read last.
    """
    from depthsys.lm.hf.contents import contents_of

    source = str(demo.model_path(source)) if source in demo.MODELS else source
    contents = contents_of(source)
    if contents is None:
        return None
    if contents.state not in _FILES:
        _FILES[contents.state] = contents.sha256
    return _FILES[contents.state]


_FILES: dict[tuple[object, ...], str] = {}


@dataclass(frozen=True)
class Found:
    """A model whose weights have not been read.

    Attributes
    ----------
    name, source
        As it was asked for, and the folder or name to load.
    settings
        Those asked for, without default orders above the width of the model.
    width, max_tokens
        Of the model.
    """

    name: str
    source: str
    settings: Settings
    width: int
    max_tokens: int

    def load(self, texts: "Splits") -> Cell:
        """The cell of the model and these texts."""
        return Cell(self.settings, self.load_model(), texts)

    def load_model(self) -> "DepthModel":
        """The model alone."""
        from depthsys import lm

        model = lm.DepthModel.load(
            self.source,
            device=self.settings.device,
            device_map=self.settings.device_map,
            max_memory=dict(self.settings.max_memory) if self.settings.max_memory else None,
            dtype=self.settings.dtype or DTYPE,
            products="tf32" if self.settings.tf32 else "float32",
            **asdict(self.settings.prompting),
        )
        if self.name in demo.MODELS:
            model.name = self.name
        return model


def open_cell(
    name: str,
    texts: Path,
    settings: Settings,
    check: "Callable[[Found, Splits], object]" = lambda found, splits: None,
    read: "Callable[[Path, Settings], Splits]" = read_splits,
) -> Cell:
    """Check model and texts, then load the model.

    Parameters
    ----------
    name
        A folder, a name of the hub, or that of an embedded model.
    texts
        File of labelled texts.
    settings
        What is asked for; default orders above the width of the model are left out.
    check
        Called before the weights are read, which may take long.
    read
        Reads and splits the texts: labelled ones, or those of `lines.read_lines`.
    """
    from depthsys.lm.hf.messages import silence

    silence()
    found = find_model(name, settings)
    splits = read(texts, settings)
    check(found, splits)
    return found.load(splits)
