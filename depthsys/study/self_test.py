"""What the package does, tried out in seconds: each step against what must come out.

A step that fails is a finding; those that need what it would have made say so, and the others run.
"""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from depthsys.study.findings import FAILED, Finding, tried

SECTION = "self-test"
MODEL = "demo_48x4"
# Largest relative errors. Gains at the default step and predicted ones differ by the nonlinearity
# of the model, 4e-5 here; the others are of float64, or exact.
OF_GAINS, OF_LTV = 1e-2, 1e-10


def self_test() -> Iterator[Finding]:
    """Load, identify, predict and measure; an identity of linear systems; write and read."""
    yield tried(SECTION, "linear systems", ltv_identity)
    yield tried(SECTION, "files", round_trip, "Write to another disk, or set TMPDIR to one.")
    work = _Work()
    for name, step in (
        ("load a model", work.load),
        ("contract", work.contract),
        ("identify", work.identify),
        ("predicted against measured gains", work.gains),
    ):
        yield work.tried(name, step)


def ltv_identity() -> str:
    """The plan of least energy reaches its target, by simulation, and takes target^2 / |g|^2."""
    import numpy as np

    from depthsys import ltv

    system, target = _some_system(), 0.7
    plan = ltv.minimum_energy(system, target)
    reached = float(ltv.simulate(system, plan["u"])["y"].values[-1, 0])
    gains = []  # by hand: the last output of a push at each layer, A_{L-1} ... A_{l+1} B_l
    after = system["C"].values[-1]
    for A, B in zip(system["A"].values[::-1], system["B"].values[::-1], strict=True):
        gains.append(float((after @ B)[0, 0]))
        after = after @ A
    least = target**2 / float(np.square(gains).sum())
    _near("the output that a plan reaches", reached, target, OF_LTV)
    _near("its energy", float(plan["energy"]), least, OF_LTV)
    return f"the plan of least energy reaches its target to {abs(reached / target - 1):.1e}"


def round_trip() -> str:
    """A system is the same, to the last bit, when it has been written and read."""
    import numpy as np

    from depthsys import export

    system = _some_system()
    ways = {".nc": export.to_netcdf, ".npz": export.to_npz, ".json": export.to_json}
    with tempfile.TemporaryDirectory(prefix="depthsys-") as folder:
        for suffix, write in ways.items():
            path = Path(folder) / f"system{suffix}"
            write(system, path)
            back = export.read(path)
            for name in "ABCD":
                if not np.array_equal(system[name].values, back[name].values):
                    raise ArithmeticError(f"{name} is another one, read back from {path.name}")
    return f"a system is the same, written and read as {', '.join(ways)}"


def _some_system() -> Any:
    import numpy as np

    from depthsys import ltv

    rng = np.random.default_rng(0)
    shapes = (5, 3, 3), (5, 3, 1), (6, 1, 3)
    return ltv.system(*(rng.standard_normal(shape) for shape in shapes))


class _Work:
    """The steps on the smallest model, and what they have made so far."""

    def __init__(self) -> None:
        self._failed = ""

    def tried(self, name: str, step: Callable[[], str]) -> Finding:
        if self._failed:
            said = f"not tried, for {self._failed!r} failed"
            return Finding(SECTION, name, FAILED, said, "Mend that first.")
        found = tried(SECTION, name, step)
        if found.state == FAILED:
            self._failed = name
        return found

    def load(self) -> str:
        from depthsys import demo, lm
        from depthsys.lm.hf.messages import silence

        silence()
        self.model = lm.DepthModel.load(demo.model_path(MODEL))
        return f"{MODEL} on {self.model.device}, in {self.model.dtype_name}"

    def contract(self) -> str:
        """The model has been checked as it was loaded; here is what was found."""
        report = self.model.contract
        worst = max(report, key=lambda name: report[name])
        return f"{len(report)} checks passed, the largest error {report[worst]:.1e} ({worst})"

    def identify(self) -> str:
        from depthsys import lm
        from depthsys.demo import grammar

        texts = lm.read_texts(grammar.labelled(8, seed=5)).split("4/3/1")
        self.concept = lm.mean_difference(self.model, texts.concept)
        self.run = self.model.run(texts.operating)
        self.system = lm.identify(self.run, self.concept, lm.Ensemble(order=4))
        return f"order {int(self.system['order'].max())}, {self.run.n_prompts} prompts"

    def gains(self) -> str:
        import numpy as np

        from depthsys import lm, ltv

        predicted = ltv.gains(self.system).values.ravel()
        measured = lm.measure_gains(self.run, self.concept)["gain"].mean("prompt").values.ravel()
        error = float(np.linalg.norm(predicted - measured) / np.linalg.norm(measured))
        if not error < OF_GAINS:  # NaN is no agreement
            raise ArithmeticError(f"they differ by {error:.1e}, where {OF_GAINS:g} is allowed")
        return f"they agree to {error:.1e} at {len(predicted)} layers"


def _near(what: str, value: float, expected: float, tolerance: float) -> None:
    if not abs(value - expected) <= tolerance * abs(expected):
        raise ArithmeticError(f"{what} is {value:.17g}, where {expected:.17g} is right")
