"""What a GPU is asked for, counted on the pretend card: launches, waits, copies.

    python -m tests.benchmarks.launches [FAMILY ...]

Prints a Markdown table per family (gpt2, llama, mixtral), tiny random models of six blocks. Counts
are per batch and layer of one sweep; those of loading are per layer. A wait is a moment when the
host needs a number, or a shape, that the device has yet to compute. See `tests.card`.
"""

import sys
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import numpy as np
import torch
import transformers
from transformers import MixtralConfig, MixtralForCausalLM

from depthsys import lm
from depthsys.lm import at_once
from tests import card
from tests.benchmarks import lm_setup
from tests.conftest import tiny_gpt2, tiny_llama

WIDTH, N_LAYERS, N_PROMPTS, VOCABULARY = 64, 6, 40, 50
COLUMNS = ("work", "launches", "waits", "copies to the host", "copies to the device")


def mixtral() -> MixtralForCausalLM:
    """Two of four experts for every token."""
    torch.manual_seed(0)
    config = MixtralConfig(
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=N_LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=4,
        num_experts_per_tok=2,
        vocab_size=VOCABULARY,
        max_position_embeddings=40,
        initializer_range=0.1,
    )
    return MixtralForCausalLM(config)


FAMILIES: dict[str, Callable[[], Any]] = {
    "gpt2": lambda: tiny_gpt2(n_embd=WIDTH, n_layer=N_LAYERS),
    "llama": lambda: tiny_llama(
        hidden_size=WIDTH, intermediate_size=2 * WIDTH, num_hidden_layers=N_LAYERS
    ),
    "mixtral": mixtral,
}


def prompts() -> lm_setup.Ids:
    """Of one to six tokens; the first token id is left out, as it may be that of padding."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 7, N_PROMPTS)
    return lm_setup.Ids(rng.integers(1, VOCABULARY, n).tolist() for n in lengths)


def works(model: lm.DepthModel, ids: lm_setup.Ids) -> dict[str, Callable[[], Any]]:
    """What is counted; all but the first on a run that is there."""
    run = model.run(ids)
    concept = lm_setup.random_concept(model.n_layers, model.n_features)
    return {
        "prefill": lambda: model.run(ids),
        "measured gains": lambda: lm.measure_gains(run, concept),
        "exact linear gains": lambda: lm.linear_gains(run, concept),
        "identification, ensemble 4": lambda: lm.identify(run, concept, lm.Ensemble(4)),
        "identification, Krylov 32": lambda: lm.identify(run, concept, lm.Krylov(32)),
        "mean Jacobians": lambda: lm.jacobians(run),
        "Jacobian of each prompt": lambda: lm.jacobians(run, per_prompt=True),
    }


def counts(family: str) -> tuple[int, Iterator[tuple[str, list[float]]]]:
    """Batches of the run, and what each work asks for per (layer, batch), loading per layer."""
    hf = FAMILIES[family]().to(card.setup())
    with card.counted() as loading:
        model = lm.DepthModel(hf, name=family)
    ids = prompts()
    with _batches_as_on_a_cpu():
        n_batches = len(model.run(ids).numbers)

    def each() -> Iterator[tuple[str, list[float]]]:
        yield "DepthModel(...), per layer", _numbers(loading, N_LAYERS)
        with _batches_as_on_a_cpu():
            for name, work in works(model, ids).items():
                work()  # what is remembered from call to call is not of the sweep
                with card.counted() as found:
                    work()
                yield name, _numbers(found, N_LAYERS * n_batches)

    return n_batches, each()


def _batches_as_on_a_cpu() -> Any:
    """Several of them: the card has room for all prompts in one."""
    return mock.patch.object(at_once, "_share", return_value=None)


def _numbers(found: card.Counts, per: int) -> list[float]:
    asked = (found.n_launches, found.waits, found.to_host, found.to_device)
    return [number / per for number in asked]


def table(family: str) -> list[str]:
    """Markdown lines."""
    n_batches, rows = counts(family)
    heading = f"{family}, {N_PROMPTS} prompts in {n_batches} batches"
    lines = [f"**{heading}**", "", _line(COLUMNS), _line(["---"] * len(COLUMNS))]
    for name, (launched, *others) in rows:
        lines.append(_line([name, f"{launched:.0f}", *(f"{n:.2f}" for n in others)]))
    return lines


def _line(cells) -> str:
    return "| " + " | ".join(cells) + " |"


def main(families: list[str]) -> int:
    if unknown := set(families) - set(FAMILIES):
        raise SystemExit(f"families must be of {list(FAMILIES)}; got {sorted(unknown)}")
    print(f"torch {torch.__version__}, transformers {transformers.__version__}\n")
    for family in families or FAMILIES:
        print("\n".join(table(family)), flush=True)
        print()
    return 0


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main(sys.argv[1:]))
