"""The main job step by step: identify, measure gains, steer; or compare methods."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from depthsys import demo as demo_package
from depthsys.job.comparison import comparison_heading, draw_comparison, print_comparison
from depthsys.job.folder import COMPARISON, EACH, SYSTEM, OutputFolder
from depthsys.job.settings import (
    CONCEPTS,
    NEEDED_ATTRS,
    NEEDED_VARIABLES,
    Plan,
    Settings,
    check_model,
    is_system,
)
from depthsys.job.summary import (
    attr_notes,
    print_energies,
    print_gains,
    print_heading,
    step,
    system_heading,
    text_notes,
)

if TYPE_CHECKING:
    import xarray as xr

    from depthsys.lm import DepthModel, Splits

_SEPARATION = ("auc", "auc_low", "auc_high")


@dataclass
class Job:
    """One model, one split of texts, and what has been found so far."""

    model: "DepthModel"
    texts: "Splits"
    settings: Settings
    console: Console
    notes: list[str]
    system: "xr.Dataset | None" = None
    comparison: "xr.Dataset | None" = None
    started: float = 0.0

    @classmethod
    def from_source(cls, source, texts, settings, device, dtype, model=None) -> "Job":
        """From a model and texts, or from a stored system that knows both.

        With a system, ``texts`` and ``model`` say where they have moved to.
        """
        if not is_system(source):
            if texts is None:
                raise ValueError(
                    "`TEXTS` must be given with a model; got none. Add a file of labelled texts, "
                    "or pass a system.nc instead of the model."
                )
            if model is not None:
                raise ValueError(
                    "`--model` must be left out when the first argument is a model; got "
                    f"{model!r}. It says where the model of a system.nc has moved to."
                )
            return cls.from_model(source, texts, settings, device, dtype)
        if settings.any_given:
            raise ValueError(
                f"`{source}` already holds its settings; got others beside it. "
                "Leave them out, or give a model and texts to identify anew."
            )
        return cls.from_system(Path(source), texts, model, device, dtype)

    @classmethod
    def from_model(cls, name, texts, settings, device, dtype) -> "Job":
        """Read and split the texts, then load the model."""
        console = Console(record=True, width=100, highlight=False)
        started = time.monotonic()
        splits = _read_splits(texts, settings)  # a bad file fails before the model is loaded
        with step(console, f"load {name}"):
            model = _load(name, settings, device, dtype or "float32")
        return cls(model, splits, settings, console, text_notes(model, splits), started=started)

    @classmethod
    def from_system(cls, path: Path, texts, model, device: str, dtype: str | None) -> "Job":
        """Load what a stored system was made of, and check that it is the same.

        ``texts`` and ``model`` replace the stored places; ``dtype`` None means the stored one.
        """
        from depthsys import export, files

        if not files.found(path).is_file():
            raise FileNotFoundError(
                f"`SYSTEM.nc` must be an existing file; got {str(path)!r}. "
                "Write one with `depthsys identify`."
            )
        system = export.from_netcdf(path)
        missing = NEEDED_ATTRS - system.attrs.keys() | NEEDED_VARIABLES - set(system.variables)
        if missing or "prompt" in system.dims:
            raise ValueError(
                f"`SYSTEM.nc` must be a system.nc written by `depthsys identify`; {str(path)!r} "
                f"{'lacks ' + str(sorted(map(str, missing))) if missing else 'holds a batch'}. "
                "Identify again."
            )
        # what the texts need; how the system was identified is in the system
        settings = Settings.given(
            readout=system.attrs["readout"],
            split=system.attrs["split"],
            seed=int(system.attrs["seed"]),
            max_tokens=int(system.attrs["max_tokens"]),
        )
        texts = Path(system.attrs["texts"]) if texts is None else texts
        if not texts.exists():
            raise FileNotFoundError(
                f"`TEXTS` of {str(path)!r} must exist; {str(texts)!r} is not there any more. Say "
                f"where it is: `depthsys ... {path} TEXTS`."
            )
        dtype = system.attrs["dtype"] if dtype is None else dtype
        job = cls.from_model(model or system.attrs["model"], texts, settings, device, dtype)
        for name, found in (
            ("prompts_sha256", job.texts.operating.sha256),
            ("concept_sha256", job.texts.concept.sha256),
            ("held_out_sha256", job.texts.held_out.sha256),
            ("model_fingerprint", job.model.fingerprint),
            ("tokens_sha256", job.model.tokens_sha256(job.texts.operating)),
        ):
            if system.attrs[name] != found:
                raise ValueError(
                    f"`{path}` was identified with other texts or weights: its {name} differs "
                    "from what is there now. Identify again."
                )
        job.system = system
        return job

    @property
    def concept(self) -> "xr.Dataset":
        """The concept directions that the system was identified with."""
        system = self._identified()
        return system[["v", "auc"]].isel(input=0).rename(v="direction")

    def _identified(self) -> "xr.Dataset":
        if self.system is None:
            raise RuntimeError("the system is identified before it is used")
        return self.system

    def find_concept(self) -> "xr.Dataset":
        """Concept directions from the concept texts, with their separation of held-out ones."""
        from depthsys import lm

        directions = {name: getattr(lm, name) for name in CONCEPTS}
        with step(self.console, "concept direction"):
            return directions[self.settings.concept](
                self.model, self.texts.concept, held_out=self.texts.held_out
            )

    # Each step below computes, writes its files, and adds to the summary.

    def identify(self, target: OutputFolder, *, per_prompt: bool = False) -> None:
        """Find the concept direction and the reduced system, unless it is there already."""
        if self.system is not None:
            return
        from depthsys import lm

        concept = self.find_concept()
        method = self.settings.method()
        with step(self.console, "identify"):
            system = lm.identify(
                self.model, self.texts.operating, concept, method, readout=self.settings.readout
            )
        self.system = self._with_origin(system, concept)
        _write_system(target, SYSTEM, self.system)
        if per_prompt:
            with step(self.console, "identify every prompt"):
                each = lm.identify(
                    self.model,
                    self.texts.operating,
                    concept,
                    method,
                    readout=self.settings.readout,
                    per_prompt=True,
                    keep_basis=False,
                )
            _write_system(target, EACH, self._with_origin(each, concept))

    def _with_origin(self, system: "xr.Dataset", concept: "xr.Dataset") -> "xr.Dataset":
        system = system.assign(concept[[name for name in _SEPARATION if name in concept]])
        if "warning" in concept.attrs:
            system.attrs["concept_warning"] = concept.attrs["warning"]
        return self.with_texts(system)

    def with_texts(self, result: "xr.Dataset") -> "xr.Dataset":
        """The result with the provenance of the texts in its attrs."""
        texts = self.texts
        result.attrs |= {
            "texts": texts.concept.source,
            "concept_sha256": texts.concept.sha256,
            "held_out_sha256": texts.held_out.sha256,
            "split": texts.sizes,
            "seed": self.settings.seed,
            "n_duplicates": texts.n_duplicates,
            "n_conflicts": texts.n_conflicts,
            "n_cut_concept": self.model.tokenize(texts.concept)[1],
            "n_cut_operating": self.model.tokenize(texts.operating)[1],
            "n_cut_held_out": self.model.tokenize(texts.held_out)[1],
        }
        if self.system is not None and "concept_warning" in self.system.attrs:
            result.attrs["concept_warning"] = self.system.attrs["concept_warning"]
        return result

    def gains(self, target: OutputFolder, eps: float) -> None:
        """Measure the gains and say where the error of the prediction comes from."""
        from depthsys import lm, plot

        system, concept, held_out = self._identified(), self.concept, self.texts.held_out
        with step(self.console, "exact linear gains"):
            linear = lm.linear_gains(self.model, held_out, concept)
            operating = lm.linear_gains(self.model, self.texts.operating, concept)
        with step(self.console, "measured gains"):
            measured = lm.measure_gains(self.model, held_out, concept, eps=eps)
            relative = lm.measure_gains(self.model, held_out, concept, eps=eps, relative=True)
        result = lm.gain_report(system, measured, relative, linear, operating)
        target.netcdf("gains.nc", self.with_texts(result))
        fig, axes = plot.figure(9.0, 3.6, columns=2)
        plot.gain_curves((axes[0], axes[1]), result)
        target.figure("gain_curves", fig)
        fig, axes = plot.figure(6.8, 3.8)
        plot.error_budget(axes[0], result)
        target.figure("error_budget", fig)
        self.notes += print_gains(self.console, result)

    def control(self, target: OutputFolder, shift: float | None, energy: str) -> None:
        """Plan the schedule and play it, beside simple ones, on the full model."""
        from depthsys import lm, plot

        system = self._identified()
        shift = float(system["y_std"]) if shift is None else shift
        with step(self.console, "search energies on the full model"):
            energies = lm.compare_energies(
                self.model, self.texts.held_out, self.concept, system, shift, energy=energy
            )
        target.netcdf("schedule.nc", self.with_texts(energies))
        table = energies[["energy", "multiple", "reached", "monotone", "layer_pushed"]]
        frame = table.to_dataframe()
        frame["target"], frame["energy_kind"] = shift, energy
        frame["predicted_energy"] = float(energies["predicted_energy"])
        target.write("energy.csv", lambda path: frame.to_csv(path))
        fig, axes = plot.figure(6.4, 3.4)
        plot.schedule(axes[0], energies)
        target.figure("schedule", fig)
        fig, axes = plot.figure(7.0, 3.4)
        plot.energies(axes[0], energies)
        target.figure("energy", fig)
        self.notes += print_energies(self.console, energies)

    def compare(self, target: OutputFolder, plan: Plan) -> None:
        """Compare reduction methods by order, on the full model and on its full linear systems."""
        from depthsys import lm

        concept = self.find_concept()
        with step(self.console, "compare methods"):
            table = lm.compare(
                self.model,
                self.texts,
                list(plan.methods),
                list(plan.orders),
                concept=concept,
                readout=self.settings.readout,
                eps=plan.eps,
                n_each=plan.n_each,
                seed=self.settings.seed,
            )
        self.comparison = self.with_texts(table)
        target.netcdf(COMPARISON, self.comparison)
        with step(self.console, "figures"):
            draw_comparison(target, self.comparison)
        self.notes += print_comparison(self.console, self.comparison)

    def finish(self, target: OutputFolder, name: str) -> None:
        """End the summary and store it."""
        if self.comparison is not None:
            result, what = self.comparison, comparison_heading(self.comparison)
        else:
            result, what = self._identified(), system_heading(self._identified())
        self.console.print()
        print_heading(self.console, self.model, self.texts, result, what)
        for note in [*attr_notes(result), *self.notes]:
            self.console.print(f"- {note}", soft_wrap=True, markup=False)
        seconds = time.monotonic() - self.started
        place = f"Results after {seconds:.0f} s: {target.folder}/"
        self.console.print(place, soft_wrap=True, markup=False)
        summary = self.console.export_text()
        target.write(name, lambda path: path.write_text(summary, encoding="utf-8"))


def _write_system(target: OutputFolder, name: str, system: "xr.Dataset") -> None:
    from depthsys import export

    target.write(name, lambda path: export.to_netcdf(system, path))


def _read_splits(texts: Path, settings: Settings) -> "Splits":
    from depthsys import lm

    concept, operating, held_out = settings.split
    return lm.read_texts(texts.resolve()).split(
        concept=concept, operating=operating, held_out=held_out, seed=settings.seed
    )


def _load(name: str, settings: Settings, device: str, dtype: str) -> "DepthModel":
    from transformers.utils import logging

    from depthsys import lm

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    source, width = check_model(name, device, dtype)
    settings.method().size(width)
    model = lm.DepthModel.load(source, device=device, dtype=dtype, max_tokens=settings.max_tokens)
    if name in demo_package.MODELS:
        model.name = name
    return model
