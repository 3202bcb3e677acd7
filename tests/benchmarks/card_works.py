"""The works of `tests.benchmarks.card_table`: each is measured beside what it is compared with.

A *floor* is the matrix products of a work alone, at the rate of bare products of the same sizes
with the model's own weights, measured in turns with the work.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from depthsys import lm
from depthsys.lm.directions import direction
from depthsys.study import Cell, Settings
from tests.benchmarks import lm_setup, lm_slow, measure, real_model
from tests.benchmarks.card_models import Subject
from tests.benchmarks.test_lm_gains import spread
from tests.benchmarks.test_lm_identify import backward_gains

# A side that takes half as many seconds is run once, without a round that warms up.
ROUNDS_S = 20.0
IDENTIFICATION = f"identification, order {lm_setup.ORDER}"
GOALS = {
    ("GPT-2-large", "measured gains", 64, "float32"): "0.8",
    ("GPT-2-large", "measured gains", 256, "float32"): "0.8",
    ("GPT-2-large", "exact linear gains", 64, "float32"): "0.5",
    ("GPT-2-large", "exact linear gains", 256, "float32"): "0.5",
    ("GPT-2-large", IDENTIFICATION, 64, "float32"): "6 x floor",
    ("GPT-2-large", IDENTIFICATION, 256, "float32"): "3 x floor",
    ("GPT-2-large", "all Jacobians", 64, "float32"): "2.5 x floor",
    ("Llama-8B", IDENTIFICATION, 128, "float32"): "2.5 x prefill",
    ("Llama-8B", IDENTIFICATION, 128, "tf32"): "6 x prefill",
    ("Llama-8B", "mean Jacobians of all layers", 128, "float32"): "1.5 x floor",
    ("Llama-8B", "DepthModel(...)", None, "float32"): "under 15 s",
    ("SmolLM2", "main job", None, "float32"): "under 20 s",
    ("SmolLM2", "compare", None, "float32"): "under 60 s",
}


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes
    ----------
    work, tokens, prompts, precision
        What was done, on what.
    seconds
        On the wall, once the device has finished; the best of the rounds.
    against
        What it is compared with, in words.
    result
        The comparison: a quotient, or how many times that it took.
    goal
        What is wanted of it.
    peak
        Bytes; None where the device does not tell.
    check
        That the numbers are right: a largest difference.
    """

    work: str
    precision: str
    seconds: float
    tokens: int | None = None
    prompts: int | None = None
    against: str = ""
    result: str = ""
    goal: str = ""
    peak: int | None = None
    check: str = ""

    COLUMNS = (
        "work", "T", "prompts", "precision", "time", "compared with", "result", "goal",
        "peak GiB", "largest difference",
    )  # fmt: skip

    @property
    def cells(self) -> list[str]:
        """By column."""
        return [
            self.work,
            "" if self.tokens is None else str(self.tokens),
            "" if self.prompts is None else str(self.prompts),
            TF32 if self.precision == "tf32" else self.precision,
            f"{self.seconds:.3g} s",
            self.against,
            self.result,
            self.goal,
            "" if self.peak is None else f"{self.peak / 2**30:.1f}",
            self.check,
        ]


TF32 = "TF32"


@dataclass
class Timed:
    """The best time of a work, its peak of memory, and what it gave."""

    seconds: float
    peak: int | None
    outputs: list


class Bench:
    """Works measured on one model in one precision."""

    def __init__(self, subject: Subject, precision: str):
        self.subject, self.precision = subject, precision

    @property
    def model(self) -> Any:
        """The model, with the products of this precision."""
        return self.subject.models[self.precision]

    def row(self, work: str, timed: Timed, **more: Any) -> Row:
        tokens = more.get("tokens")
        goal = GOALS.get((self.subject.name, work, tokens, self.precision), "")
        return Row(work, self.precision, timed.seconds, goal=goal, peak=timed.peak, **more)

    def in_turns(self, rounds: int = 2, **sides: Callable[[int], Any]) -> dict[str, Timed]:
        """The sides in turns; memory is that of the first side, in its first round."""
        device = self.subject.device
        peaks: list[int] = []
        name, ours = next(iter(sides.items()))

        def watched(number: int) -> Any:
            if number or device.type != "cuda":
                return ours(number)
            torch.cuda.reset_peak_memory_stats(device)
            found = ours(number)
            peaks.append(torch.cuda.max_memory_allocated(device))
            return found

        found = measure.in_turns(
            sides | {name: watched}, device, budget=ROUNDS_S, max_rounds=rounds
        )
        peak = {name: peaks[0] if peaks else None}
        return {n: Timed(s.seconds, peak.get(n), s.outputs) for n, s in found.items()}

    def alone(self, function: Callable[[], Any], rounds: int = 2) -> Timed:
        return self.in_turns(rounds, ours=lambda _: function())["ours"]

    def once(self, function: Callable[[], Any]) -> Timed:
        """A long work, without a round before it that warms up."""
        device = self.subject.device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        spent, output = measure.seconds(function, device)
        peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
        return Timed(spent, peak, [output])

    def checked(self, what: str, ours: Any, theirs: Any) -> str:
        """The difference of two sides that must agree."""
        difference = measure.relative_difference(ours, theirs)
        precision = TF32 if self.precision == "tf32" else self.precision
        lm_setup.check_difference(what, precision, difference)
        return f"{difference:.0e}"

    # -------------------------------------------------------------- against passes and floors

    def gain_curves(self) -> Iterator[Row]:
        """Measured and linear gains against a hooked pass per layer and sign.

        The hooked side is timed on a few layers, one per round, and multiplied: each of its 2L
        passes costs the same.
        """
        subject = self.subject
        for T in subject.shape.tokens:
            yield from self._gain_curves(T)

    def _gain_curves(self, T: int) -> Iterator[Row]:
        subject, L = self.subject, self.subject.n_layers
        model, P = self.model, subject.shape.prompts
        concept, ids = subject.concept(), subject.ids(P, T)
        eps, layers = subject.step(self.precision), spread(L)
        tensor, v = subject.tensor(ids), direction(model, concept).to(model.dtype)
        found = self.in_turns(
            4,
            measured=lambda _: lm.measure_gains(model, ids, concept, eps=eps).gain.values,
            hooked=lambda n: lm_slow.hooked_gains(subject.hf, tensor, v, layers[n], eps),
        )
        linear = self.alone(lambda: lm.linear_gains(model, ids, concept).gain.values, 4)
        hooked = np.stack(found["hooked"].outputs, axis=1)
        whole = L * found["hooked"].seconds
        said = f"hooked {whole:.3g} s ({2 * L} passes, {2 * hooked.shape[1]} timed)"
        wanted = {
            "measured gains": (found["measured"], 2 * L * T / (T + L), "2LT/(T+L)"),
            "exact linear gains": (linear, 2 * L, "2L"),
        }
        for work, (timed, bound, text) in wanted.items():
            kind = work.removeprefix("exact ")
            ours = timed.outputs[-1][:, layers[: hooked.shape[1]]]
            ratio = whole / timed.seconds
            yield self.row(
                work,
                timed,
                tokens=T,
                prompts=P,
                against=f"{said}: {ratio:.1f} times; {text} = {bound:.1f}",
                result=f"{ratio / bound:.2f}",
                check=self.checked(kind, ours, hooked),
            )

    def identification(self) -> Iterator[Row]:
        """Krylov of order 32 against a prefill and the directions that there are."""
        subject, model, L = self.subject, self.model, self.subject.n_layers
        P, order = subject.shape.prompts, subject.order(lm_setup.ORDER)
        # a system has l + 1 directions at layer l, and never more than the order and one
        reachable = float(np.minimum(np.arange(L) + 1, order + 1).mean())
        for T in subject.shape.tokens:
            concept, ids = subject.concept(), subject.ids(P, T)
            tokens = measure.products(subject.hf, P * T)
            directions = measure.products(subject.hf, P * (order + 1))
            found = self.in_turns(
                ours=lambda _, i=ids, c=concept: lm.identify(model, i, c, lm.Krylov(order)),
                tokens=lambda _, run=tokens: run(),
                directions=lambda _, run=directions: run(),
            )
            bare = found["tokens"].seconds + found["directions"].seconds
            rate = measure.product_flops(subject.hf, P * (T + order + 1)) / bare
            floor = self._identification_flops(T, reachable) / rate
            full = self._identification_flops(T, order + 1) / rate
            other = backward_gains(model, ids, direction(model, concept).to(model.dtype))
            yield self.row(
                IDENTIFICATION,
                found["ours"],
                tokens=T,
                prompts=P,
                against=f"floor {floor:.3g} s at {rate / 1e12:.3g} Tflop/s ({full:.3g} s if there "
                f"were {order + 1} directions at every layer)",
                result=f"{found['ours'].seconds / floor:.1f} x floor",
                check=self.checked(
                    "derivatives", found["ours"].outputs[-1].gain_full.values, other
                ),
            )

    def _identification_flops(self, T: int, directions: float) -> float:
        subject, P = self.subject, self.subject.shape.prompts
        L, H = subject.n_layers, subject.n_features
        per_row = measure.product_flops(subject.hf, 1)
        attention = measure.attention_flops(L, H, P * T, (T + 1) / 2)
        attention += measure.attention_flops(L, H, P * directions, T)
        return per_row * P * (T + directions) + attention

    def all_jacobians(self) -> Iterator[Row]:
        """Every block of every prompt; H directions through the weights of the block."""
        subject, T = self.subject, self.subject.shape.tokens[0]
        H, P = subject.n_features, subject.shape.jacobian_prompts
        run = self.model.run(subject.ids(P, T))
        blocks = [block for batch in run.batches for block in batch.blocks]
        probed = blocks[subject.n_layers // 2]
        v = torch.randn(1, H, device="cpu").to(subject.device, self.model.dtype)

        def jacobians(_: int) -> torch.Tensor:
            image = v
            for block in blocks:
                J = block.jacobian()
                if block is probed:
                    image = v @ J.mT
            return image

        bare = measure.products(subject.hf, H)
        found = self.in_turns(ours=jacobians, bare=lambda _: bare())
        floor = P * found["bare"].seconds
        yield self.row(
            "all Jacobians",
            found["ours"],
            tokens=T,
            prompts=P,
            against=self._floor_of_jacobians(floor, P * subject.n_layers),
            result=f"{found['ours'].seconds / floor:.1f} x floor",
            check=self.checked("derivatives", found["ours"].outputs[-1], probed.jvp(v)),
        )

    def _floor_of_jacobians(self, floor: float, count: int) -> str:
        flops = measure.product_flops(self.subject.hf, self.subject.n_features)
        rate = count * flops / self.subject.n_layers / floor
        return f"floor {floor:.3g} s at {rate / 1e12:.3g} Tflop/s"

    # ------------------------------------------------------------------- against a prefill

    def prefill(self) -> Iterator[Row]:
        """The model's own pass, which the others are compared with."""
        subject, T, P = self.subject, self.subject.shape.tokens[0], self.subject.shape.prompts
        bare = measure.products(subject.hf, P * T)
        ids = subject.tensor(subject.ids(P, T))
        found = self.in_turns(ours=lambda _: subject.prefill(ids), bare=lambda _: bare())
        subject.prefill_seconds[self.precision] = found["ours"].seconds
        floor = found["bare"].seconds
        rate = measure.product_flops(subject.hf, P * T) / floor
        yield self.row(
            "prefill, the model's own",
            found["ours"],
            tokens=T,
            prompts=P,
            against=f"floor {floor:.3g} s at {rate / 1e12:.3g} Tflop/s",
            result=f"{found['ours'].seconds / floor:.2f} x floor",
        )

    def _against_prefill(self, work: str, function: Callable[[Any, Any], Any]) -> Iterator[Row]:
        """A work on texts: their prefill by the package is part of it."""
        subject, T, P = self.subject, self.subject.shape.tokens[0], self.subject.shape.prompts
        ids, concept = subject.ids(P, T), subject.concept()
        plain = subject.plain_prefill(self.precision)
        timed = self.alone(lambda: function(ids, concept))
        if not np.isfinite(timed.outputs[-1]).all():
            raise FloatingPointError(f"{work} gave numbers that are not finite")
        yield self.row(
            work,
            timed,
            tokens=T,
            prompts=P,
            against=f"prefill {plain:.3g} s",
            result=f"{timed.seconds / plain:.1f} x prefill",
        )

    def measured(self) -> Iterator[Row]:
        model, eps = self.model, self.subject.step(self.precision)
        return self._against_prefill(
            "measured gains",
            lambda ids, concept: lm.measure_gains(model, ids, concept, eps=eps).gain.values,
        )

    def linear(self) -> Iterator[Row]:
        model = self.model
        return self._against_prefill(
            "exact linear gains",
            lambda ids, concept: lm.linear_gains(model, ids, concept).gain.values,
        )

    def krylov(self) -> Iterator[Row]:
        model, method = self.model, lm.Krylov(self.subject.order(lm_setup.ORDER))
        return self._against_prefill(
            IDENTIFICATION,
            lambda ids, concept: lm.identify(model, ids, concept, method).gain_full.values,
        )

    def ensemble(self) -> Iterator[Row]:
        model, method = self.model, lm.Ensemble(4)
        return self._against_prefill(
            "ensemble of order 4, profile",
            lambda ids, concept: lm.identify(model, ids, concept, method, readout="profile").A,
        )

    def one_jacobian(self) -> Iterator[Row]:
        """Of one block, one prompt; the run is made before."""
        subject, T, H = self.subject, self.subject.shape.tokens[0], self.subject.n_features
        block = self.model.run(subject.ids(1, T)).batches[0].blocks[subject.n_layers // 2]
        bare = measure.products(subject.hf, H)
        found = self.in_turns(ours=lambda _: block.jacobian(), bare=lambda _: bare())
        floor = found["bare"].seconds / subject.n_layers
        v = torch.randn(1, H, device="cpu").to(subject.device, self.model.dtype)
        image = v @ found["ours"].outputs[-1][0].mT
        yield self.row(
            f"Jacobian of one block ({H} x {H})",
            found["ours"],
            tokens=T,
            prompts=1,
            against=self._floor_of_jacobians(floor, 1),
            result=f"{found['ours'].seconds / floor:.1f} x floor",
            check=self.checked("derivatives", image, block.jvp(v)[0]),
        )

    def mean_jacobians(self) -> Iterator[Row]:
        """Of all layers, from texts to numbers on the host."""
        subject, T = self.subject, self.subject.shape.tokens[0]
        P, H = subject.shape.jacobian_prompts, subject.n_features
        ids, model = subject.ids(P, T), self.model
        bare = measure.products(subject.hf, H)
        found = self.in_turns(
            ours=lambda _: lm.jacobians(model, ids).A[-1].values.copy(), bare=lambda _: bare()
        )
        if not np.isfinite(found["ours"].outputs[-1]).all():
            raise FloatingPointError("the Jacobians are not finite")
        floor = P * found["bare"].seconds
        yield self.row(
            "mean Jacobians of all layers",
            found["ours"],
            tokens=T,
            prompts=P,
            against=self._floor_of_jacobians(floor, P * subject.n_layers),
            result=f"{found['ours'].seconds / floor:.1f} x floor",
        )

    # ----------------------------------------------------------------------------- whole jobs

    def main_job(self) -> Iterator[Row]:
        """From texts to the energies of plans, by the steps of `depthsys run`."""
        subject = self.subject
        texts = subject.texts()
        rows, plain = self._plain(texts)
        split = "/".join(map(str, subject.shape.split))
        asked = Settings.checked(basis="ensemble", order=4, split=split, **self._job_step())
        timed = self.once(lambda: real_model.main_job(Cell(asked, self.model, texts)))
        steps = timed.outputs[0].items()
        said = ", ".join(f"{step} {spent:.2g} s" for step, spent in steps)
        yield self.row(
            "main job",
            timed,
            prompts=rows,
            against=f"plain prefill of the same texts {plain:.3g} s; {said}",
            result=f"{timed.seconds / plain:.1f} x prefill",
        )

    def compare(self) -> Iterator[Row]:
        """`lm.compare` with its defaults on one task."""
        subject = self.subject
        texts = subject.texts()
        rows, plain = self._plain(texts)
        options = {**subject.shape.compare, **self._job_step()}
        timed = self.once(lambda: lm.compare(self.model, texts, **options))
        yield self.row(
            "compare",
            timed,
            prompts=rows,
            against=f"plain prefill of the same texts {plain:.3g} s",
            result=f"{timed.seconds / plain:.1f} x prefill",
        )

    def _job_step(self) -> dict[str, float]:
        """The default step drowns in TF32."""
        return {"eps": lm_setup.LEAST_STEP["TF32"]} if self.precision == "tf32" else {}

    def _plain(self, texts: lm.Splits) -> tuple[int, float]:
        """Number of all texts, and seconds of plain prefills of them."""
        model, device = self.model, self.subject.device
        parts = (texts.concept, texts.operating, texts.held_out)
        rows = [row for part in parts for row in model.tokenize(part)[0]]
        real_model.plain_prefill(model, rows[:64])
        spent, _ = measure.seconds(lambda: real_model.plain_prefill(model, rows), device)
        return len(rows), spent


WORKS: dict[str, Callable[[Bench], Iterator[Row]]] = {
    "gain curves": Bench.gain_curves,
    "identification": Bench.identification,
    "all Jacobians": Bench.all_jacobians,
    "prefill": Bench.prefill,
    "measured gains": Bench.measured,
    "linear gains": Bench.linear,
    "Krylov 32": Bench.krylov,
    "ensemble 4, profile": Bench.ensemble,
    "one Jacobian": Bench.one_jacobian,
    "mean Jacobians": Bench.mean_jacobians,
    "main job": Bench.main_job,
    "compare": Bench.compare,
}
