"""The main job step by step, with its files and its summary: what the commands are made of.

Heavy imports happen inside the functions, so that the command line answers bad input at once.
"""

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table

from depthsys import demo as demo_package

if TYPE_CHECKING:
    import xarray as xr

    from depthsys.lm import DepthModel, Splits

SYSTEM, EACH = "system.nc", "systems_per_prompt.nc"


def _figures(*names: str) -> list[str]:
    return [f"{name}.{kind}" for name in names for kind in ("png", "svg")]


GAIN_FILES = ["gains.nc", *_figures("gain_curves", "error_budget"), "gains.txt"]
CONTROL_FILES = ["energy.csv", "schedule.nc", *_figures("schedule", "energy"), "control.txt"]
# whatever a new identification makes out of date
ALL_FILES = [SYSTEM, EACH, "identify.txt", *GAIN_FILES, *CONTROL_FILES, "demo.txt"]


# ----------------------------------------------------------------------- where results go


@dataclass(frozen=True)
class OutputFolder:
    """The output folder. Files appear whole or not at all.

    ``stale`` are results of an earlier run; they go just before the first new one comes, so that
    an old and a new run are never mixed, and nothing is lost to a run that fails before that.
    A file that another run wrote in the meantime is not overwritten.
    """

    folder: Path
    stale: list[str]

    @classmethod
    def checked(cls, folder: Path, files: list[str], force: bool) -> "OutputFolder":
        """Make the folder; ValueError if it is not writable or holds one of the files."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
            probe = folder / f".probe-{os.getpid()}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise ValueError(
                f"`--out` must be a writable folder; got {str(folder)!r}: {error.strerror}. "
                "Choose another."
            ) from error
        present = [name for name in files if (folder / name).exists()]
        if present and not force:
            raise ValueError(
                f"`--out` must not hold earlier results; found {present} in {str(folder)!r}. "
                "Choose another folder or add --force."
            )
        return cls(folder, present)

    def write(self, name: str, writer: Callable[[Path], Any]) -> None:
        """Write to a hidden file and rename it when it is whole."""
        partial = self.folder / f".{name}.part-{os.getpid()}"
        try:
            writer(partial)
            while self.stale:
                (self.folder / self.stale.pop()).unlink(missing_ok=True)
            try:
                os.link(partial, self.folder / name)  # unlike a rename, never overwrites
            except FileExistsError as error:
                raise ValueError(
                    f"`--out` must belong to one run at a time; another one wrote {name!r} into "
                    f"{str(self.folder)!r} meanwhile. Choose another folder."
                ) from error
        finally:
            partial.unlink(missing_ok=True)

    def netcdf(self, name: str, dataset: "xr.Dataset") -> None:
        """Write a Dataset as netCDF4."""
        self.write(name, lambda path: dataset.to_netcdf(path, engine="h5netcdf"))

    def figure(self, name: str, fig: Any) -> None:
        """Write a figure as PNG and SVG."""
        from depthsys import plot

        for kind in ("png", "svg"):
            self.write(f"{name}.{kind}", lambda path, kind=kind: plot.save(fig, path, kind))


# --------------------------------------------------------------------------- the main job


def is_system(source: str) -> bool:
    """Whether a command's first argument is a stored system rather than a model."""
    return source.endswith(".nc")


@dataclass(frozen=True)
class Settings:
    """Identification options; None = not given."""

    order: int | None
    readout: str
    split: tuple[int, int, int]
    seed: int
    max_tokens: int
    any_given: bool

    @classmethod
    def given(cls, order, readout, split, seed, max_tokens) -> "Settings":
        """Settings from options of the command line, checked; None = not given."""
        options = (order, readout, split, seed, max_tokens)
        if order is not None and order < 1:
            raise ValueError(f"`--order` must be >= 1; got {order}. The default is 32.")
        if readout not in (None, "concept", "profile"):
            raise ValueError(f"`--readout` must be concept or profile; got {readout!r}. Pick one.")
        if max_tokens is not None and max_tokens < 1:
            raise ValueError(f"`--max-tokens` must be >= 1; got {max_tokens}. The default is 128.")
        if seed is not None and seed < 0:
            raise ValueError(f"`--seed` must be >= 0; got {seed}. The default is 0.")
        return cls(
            order=order,
            readout=readout or "concept",
            split=_parse_split(split or "400/200/200"),
            seed=seed or 0,
            max_tokens=max_tokens or 128,
            any_given=any(option is not None for option in options),
        )


def _parse_split(text: str) -> tuple[int, int, int]:
    parts = text.split("/")
    if len(parts) != 3 or not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise ValueError(
            f"`--split` must be three positive numbers concept/operating/held-out; got {text!r}. "
            "The default is 400/200/200 per class."
        )
    concept, operating, held_out = (int(part) for part in parts)
    return concept, operating, held_out


_NEEDED_ATTRS = {
    "texts", "split", "seed", "max_tokens", "model", "order", "readout", "dtype",
    "prompts_sha256", "concept_sha256", "held_out_sha256", "model_fingerprint", "tokens_sha256",
}  # fmt: skip
_NEEDED_VARIABLES = {"A", "B", "C", "D", "v", "auc", "gain_full", "state_norm", "y_std"}


@dataclass
class Job:
    """One model, one split of texts, and what has been found so far."""

    model: "DepthModel"
    texts: "Splits"
    settings: Settings
    console: Console
    notes: list[str]
    system: "xr.Dataset | None" = None
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
        with _step(console, f"load {name}"):
            model = _load(name, settings, device, dtype or "float32")
        return cls(model, splits, settings, console, _text_notes(model, splits), started=started)

    @classmethod
    def from_system(cls, path: Path, texts, model, device: str, dtype: str | None) -> "Job":
        """Load what a stored system was made of, and check that it is the same.

        ``texts`` and ``model`` replace the stored places; ``dtype`` None means the stored one.
        """
        import xarray as xr

        from depthsys import ltv

        if not path.is_file():
            raise FileNotFoundError(
                f"`SYSTEM.nc` must be an existing file; got {str(path)!r}. "
                "Write one with `depthsys identify`."
            )
        try:
            system = xr.load_dataset(path, engine="h5netcdf")
        except OSError as error:
            raise ValueError(
                f"`SYSTEM.nc` must be a readable netCDF file; got {str(path)!r}: {error}. "
                "Identify again."
            ) from error
        missing = _NEEDED_ATTRS - system.attrs.keys() | _NEEDED_VARIABLES - set(system.variables)
        if missing or "prompt" in system.dims:
            raise ValueError(
                f"`SYSTEM.nc` must be a system.nc written by `depthsys identify`; {str(path)!r} "
                f"{'lacks ' + str(sorted(map(str, missing))) if missing else 'holds a batch'}. "
                "Identify again."
            )
        ltv.check(system)
        settings = Settings.given(
            int(system.attrs["order"]),
            system.attrs["readout"],
            system.attrs["split"],
            int(system.attrs["seed"]),
            int(system.attrs["max_tokens"]),
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

    # Each step below computes, writes its files, and adds to the summary.

    def identify(self, target: OutputFolder, *, per_prompt: bool = False) -> None:
        """Find the concept direction and the reduced system, unless it is there already."""
        if self.system is not None:
            return
        from depthsys import lm

        with _step(self.console, "concept direction"):
            concept = lm.mean_difference(
                self.model, self.texts.concept, held_out=self.texts.held_out
            )
        method = lm.Krylov(order=self.settings.order)
        with _step(self.console, "identify"):
            system = lm.identify(
                self.model, self.texts.operating, concept, method, readout=self.settings.readout
            )
        self.system = self._with_origin(system, concept)
        target.netcdf(SYSTEM, self.system)
        if per_prompt:
            with _step(self.console, "identify every prompt"):
                each = lm.identify(
                    self.model,
                    self.texts.operating,
                    concept,
                    method,
                    readout=self.settings.readout,
                    per_prompt=True,
                    keep_basis=False,
                )
            target.netcdf(EACH, self._with_origin(each, concept))

    def _with_origin(self, system: "xr.Dataset", concept: "xr.Dataset") -> "xr.Dataset":
        system["auc"] = concept["auc"]
        return self._with_texts(system)

    def _with_texts(self, result: "xr.Dataset") -> "xr.Dataset":
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
        return result

    def gains(self, target: OutputFolder, eps: float) -> None:
        """Measure the gains and say where the error of the prediction comes from."""
        from depthsys import lm, plot

        system, concept, held_out = self._identified(), self.concept, self.texts.held_out
        with _step(self.console, "exact linear gains"):
            linear = lm.linear_gains(self.model, held_out, concept)
            operating = lm.linear_gains(self.model, self.texts.operating, concept)
        with _step(self.console, "measured gains"):
            measured = lm.measure_gains(self.model, held_out, concept, eps=eps)
            relative = lm.measure_gains(self.model, held_out, concept, eps=eps, relative=True)
        result = lm.gain_report(system, measured, relative, linear, operating)
        target.netcdf("gains.nc", self._with_texts(result))
        fig, axes = plot.figure(9.0, 3.6, columns=2)
        plot.gain_curves((axes[0], axes[1]), result)
        target.figure("gain_curves", fig)
        fig, axes = plot.figure(6.8, 3.8)
        plot.error_budget(axes[0], result)
        target.figure("error_budget", fig)
        self.notes += _print_gains(self.console, result)

    def control(self, target: OutputFolder, shift: float | None, energy: str) -> None:
        """Plan the schedule and play it, beside simple ones, on the full model."""
        from depthsys import lm, plot

        system = self._identified()
        shift = float(system["y_std"]) if shift is None else shift
        with _step(self.console, "search energies on the full model"):
            energies = lm.compare_energies(
                self.model, self.texts.held_out, self.concept, system, shift, energy=energy
            )
        target.netcdf("schedule.nc", self._with_texts(energies))
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
        self.notes += _print_energies(self.console, energies)

    def finish(self, target: OutputFolder, name: str) -> None:
        """End the summary and store it."""
        system = self._identified()
        self.console.print()
        _print_system(self.console, self.model, system, len(self.texts.held_out))
        for note in self.notes:
            self.console.print(f"- {note}", soft_wrap=True, markup=False)
        seconds = time.monotonic() - self.started
        self.console.print(f"Results after {seconds:.0f} s: {target.folder}/", soft_wrap=True)
        summary = self.console.export_text()
        target.write(name, lambda path: path.write_text(summary, encoding="utf-8"))


@contextlib.contextmanager
def _step(console: Console, title: str) -> Iterator[None]:
    start = time.monotonic()
    yield
    console.print(f"{title} [dim]({time.monotonic() - start:.1f} s)[/dim]", soft_wrap=True)


def _read_splits(texts: Path, settings: Settings) -> "Splits":
    from depthsys import lm

    concept, operating, held_out = settings.split
    return lm.read_texts(texts.resolve()).split(
        concept=concept, operating=operating, held_out=held_out, seed=settings.seed
    )


def check_model(name: str, settings: Settings, device: str, dtype: str | None) -> str:
    """Check all that can be checked without the weights; gives the path or name to load."""
    from depthsys import lm
    from depthsys.lm.checkpoint import DTYPES, checked_device, read_config

    checked_device(device)
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"`--dtype` must be one of {sorted(DTYPES)}; got {dtype!r}. Pick one.")
    path = demo_package.model_path(name) if name in demo_package.MODELS else Path(name)
    source = str(path.resolve()) if path.is_dir() else name
    width = read_config(source).get_text_config(decoder=True).hidden_size
    lm.Krylov(order=settings.order).checked_order(width)
    return source


def _load(name: str, settings: Settings, device: str, dtype: str) -> "DepthModel":
    from transformers.utils import logging

    from depthsys import lm

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    source = check_model(name, settings, device, dtype)
    model = lm.DepthModel.load(source, device=device, dtype=dtype, max_tokens=settings.max_tokens)
    if name in demo_package.MODELS:
        model.name = name
    return model


# --------------------------------------------------------------------------- the summary


def _text_notes(model: "DepthModel", texts: "Splits") -> list[str]:
    notes = []
    if texts.n_duplicates or texts.n_conflicts:
        notes.append(
            f"dropped before splitting: {texts.n_duplicates} duplicates, {texts.n_conflicts} texts "
            "that came with both labels"
        )
    cut = [model.tokenize(getattr(texts, s))[1] for s in ("concept", "operating", "held_out")]
    if any(cut):
        notes.append(
            f"cut on the right at {model.max_tokens} tokens: {cut[0]} concept, {cut[1]} operating "
            f"and {cut[2]} held-out texts"
        )
    return notes


def _print_system(
    console: Console, model: "DepthModel", system: "xr.Dataset", n_held_out: int
) -> None:
    auc = system["auc"].values
    orders = system["order"].values
    negative, positive = json.loads(system.attrs["classes"])
    asked = int(system.attrs["order"])
    order = f"order {orders.max()}" + (f" ({asked} asked for)" if orders.max() < asked else "")
    console.print(
        f"{model.name}: L = {model.n_layers}, H = {model.n_features}, {system.attrs['dtype']}, "
        f"{order}, {system.attrs['readout']} readout",
        soft_wrap=True,
        markup=False,
    )
    console.print(
        f"texts {system.attrs['texts']}, {system.attrs['split']} per class, seed "
        f"{system.attrs['seed']}; the readout grows from label {negative!r} to {positive!r}",
        soft_wrap=True,
        markup=False,
    )
    verdict = "separates" if auc[-1] >= 0.8 else "weakly separates" if auc[-1] >= 0.6 else ""
    if verdict:
        text = f"the concept direction {verdict} held-out texts"
    else:
        text = (
            "the concept direction hardly separates held-out texts: its gains are real, but do "
            "not call them gains of the concept"
        )
    console.print(
        f"- AUC on {n_held_out} held-out texts: {auc[0]:.2f} at depth 0, {auc[-1]:.2f} at depth "
        f"{model.n_layers}; {text}",
        soft_wrap=True,
    )


def _print_gains(console: Console, result: "xr.Dataset") -> list[str]:
    table = Table("agreement on held-out prompts", box=box.SIMPLE)
    for layers in result["layers"].values:
        table.add_column(str(layers).replace("_", " "))
    for injection in result["injection"].values:
        for name in ("spearman", "pearson", "relative_l2", "max_relative_error"):
            part = result[name].sel(injection=injection)
            row = [_interval(part.sel(layers=x).values) for x in result["layers"].values]
            table.add_row(f"{name} ({injection} injection)", *row)
    console.print(table)
    budget = Table("error budget (relative L2)", box=box.SIMPLE)
    for layers in result["layers"].values:
        budget.add_column(str(layers).replace("_", " "))
    for part in result["part"].values:
        chosen = result["error_budget"].sel(part=part)
        budget.add_row(
            str(part), *[_interval(chosen.sel(layers=x).values) for x in result["layers"].values]
        )
    console.print(budget)
    error = result["error_budget"].sel(layers="all", bound="estimate")
    causes = error.drop_sel(part="total")
    floor = result["noise_floor"].sel(layers="all", injection="absolute")
    worst = str(causes["part"].values[causes.values.argmax()])
    return [
        f"the surrogate misses the measured gains by {float(error.sel(part='total')):.1%} "
        f"(relative L2; {float(floor):.1%} would be sampling noise alone); the largest part is "
        f"{worst} (parts may cancel each other)"
    ]


def _interval(values) -> str:
    estimate, low, high = values
    text = f"{estimate:.4f}"
    return text if low != low else f"{text}  [{low:.4f}, {high:.4f}]"


def _print_energies(console: Console, energies: "xr.Dataset") -> list[str]:
    table = Table("schedule", "energy", "multiple", box=box.SIMPLE)
    for name in energies["schedule"].values:
        row = energies.sel(schedule=name)
        reached = bool(row["reached"])
        remark = "" if bool(row["monotone"]) else "  (not monotone)"
        layer = int(row["layer_pushed"])
        single = f" ({layer})" if layer >= 0 and "random" not in str(name) else ""
        table.add_row(
            str(name).replace("_", " ") + single,
            f"{float(row['energy']):.4g}" if reached else "not reached",
            f"{float(row['multiple']):.3g}{remark}" if reached else f"-{remark}",
        )
    console.print(table)
    target = float(energies.attrs["target"])
    planned, found = float(energies["predicted_energy"]), float(energies["energy"][0])
    if found != found:
        return [f"the planned schedule does not reach a shift of {target:.3g} on the full model"]
    cheaper = energies["schedule"].values[energies["multiple"].values < 1]
    verdict = (
        f"cheaper on the full model: {', '.join(map(str, cheaper)).replace('_', ' ')}"
        if len(cheaper)
        else "no schedule of those compared is cheaper"
    )
    factor = max(found / planned, planned / found)
    linear = "" if factor < 1.5 else f", {factor:.1f} times off: the response is not linear there"
    return [
        f"a shift of {target:.3g} takes {energies.attrs['energy']} energy {found:.4g} on the full "
        f"model, planned {planned:.4g}{linear}; {verdict}"
    ]
