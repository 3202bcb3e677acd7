"""A system that depthsys exported, as an FMI 2.0 co-simulation unit. Needs numpy and pythonfmu.

    x[k+1] = A[k] x[k] + B[k] u[k]      k = 0..L-1
    y[k]   = C[k] x[k] + D[k] u[k]      k = 0..L, no input at depth L

One step is one layer. At each communication point: set u, get y, do the step.
"""

import json
from functools import partial
from pathlib import Path
from xml.etree.ElementTree import Element, SubElement

import numpy as np
from pythonfmu import Fmi2Causality, Fmi2Initial, Fmi2Slave, Fmi2Variability, Real
from pythonfmu.default_experiment import DefaultExperiment
from pythonfmu.enums import Fmi2Status


class DepthSystem(Fmi2Slave):
    """One layer per step; the arrays are those of ``system.npz`` in the resources.

    Attributes
    ----------
    k
        The depth reached, 0..L.
    x, u
        State at that depth, and the input last set.
    """

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        # not beside __file__: one process may run units of several systems with one module
        folder = Path(kwargs["resources"])
        unit = json.loads((folder / "unit.json").read_text(encoding="utf-8"))
        self.modelName, self.description = unit["name"], _printable(unit["description"])
        with np.load(folder / "system.npz", allow_pickle=False) as stored:
            self.arrays = {name: stored[name] for name in stored.files}
        self.A, self.B, self.C, self.D = (self.arrays[name] for name in "ABCD")
        self.last, n, m = self.B.shape
        self.k, self.start = 0, 0.0
        self.x0, self.x, self.u = np.zeros(n), np.zeros(n), np.zeros(m)
        self.default_experiment = DefaultExperiment(0, self.last, 1)
        self._register()

    def _register(self) -> None:
        """Variables u[i], y[i], x[i] and x0[i]; the latter for states that exist at depth 0."""
        add = self._add
        for i, name in enumerate(self.arrays["input_name"]):
            set_u = partial(self.u.__setitem__, i)
            add(f"u[{i}]", str(name), "input", partial(self.u.__getitem__, i), setter=set_u)
        for i, name in enumerate(self.arrays["output_name"]):
            add(f"y[{i}]", str(name), "output", partial(self._output, i))
        for i in range(len(self.x)):
            add(f"x[{i}]", f"state {i} at the depth reached", "output", partial(self._state, i))
        for i in range(int(self.arrays["order"][0])):
            set_x0 = partial(self._set_x0, i)
            get_x0 = partial(self.x0.__getitem__, i)
            add(f"x0[{i}]", f"state {i} at depth 0", "parameter", get_x0, setter=set_x0)

    def _add(self, name, description, causality, getter, setter=None) -> None:
        kind = {"getter": getter, "setter": setter, "causality": Fmi2Causality[causality]}
        kind["variability"] = Fmi2Variability["fixed" if causality == "parameter" else "discrete"]
        if causality != "input":
            kind["initial"] = Fmi2Initial["exact" if causality == "parameter" else "calculated"]
        self.register_variable(Real(name, description=_printable(description), **kind))

    def _output(self, i: int) -> float:
        return self.C[self.k, i] @ self.x + self.D[self.k, i] @ self.u

    def _state(self, i: int) -> float:
        return self.x[i]

    def _set_x0(self, i: int, value: float) -> None:
        self.x0[i] = value
        if self.k == 0:
            self.x[i] = value

    def to_xml(self, model_options=None) -> Element:
        """What pythonfmu leaves out of the model structure: feedthrough and initial unknowns."""
        root = super().to_xml(model_options or {})
        structure = next(root.iter("ModelStructure"))
        outputs = structure.findall("Outputs/Unknown")
        p = self.D.shape[1]
        for i, unknown in enumerate(outputs):  # inputs have the indices 1..m; outputs y, then x
            fed = np.flatnonzero(self.D[:, i].any(axis=0)) if i < p else []
            unknown.set("dependencies", " ".join(str(j + 1) for j in fed))
        initial = SubElement(structure, "InitialUnknowns")
        for unknown in outputs:
            SubElement(initial, "Unknown", index=unknown.attrib["index"])
        return root

    def setup_experiment(self, start_time, stop_time=None, tolerance=None) -> None:
        """Any start time is depth 0."""
        self.start = start_time

    def do_step(self, current_time: float, step_size: float) -> bool:
        """Go on by one layer; False, with a message, past the last one or by another step."""
        wrong = ""
        if self.k >= self.last:
            wrong = f"must not go past depth {self.last}, the end of the system"
        elif abs(step_size - 1) > 1e-9:
            wrong = "must be one layer, a step size of 1"
        elif abs(current_time - self.start - self.k) > 1e-6:
            wrong = f"must start at time {self.start + self.k}, the depth reached"
        if wrong:
            got = f"got time {current_time}, step size {step_size}"
            self.log(f"The step {wrong}; {got}.", Fmi2Status.error)
            return False
        self.x = self.A[self.k] @ self.x + self.B[self.k] @ self.u
        self.k += 1
        return True


def _printable(text: str) -> str:
    """XML knows no control characters, which names of tokens may hold."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
