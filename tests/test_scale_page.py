"""docs/scale.md: its computed section, and what that is computed from."""

from pathlib import Path

import pytest
import torch

from depthsys import lm
from depthsys.study.dask_crew import portable
from tests.benchmarks import cluster_cost
from tests.conftest import tiny_gpt2
from tests.lm.conftest import labelled_ids

PAGE = Path(__file__).parents[1] / "docs" / "scale.md"


def test_the_computed_section_is_that_of_its_command():
    text = PAGE.read_text("utf-8")
    assert text[text.index("## Cost: computed") :] == cluster_cost.section()


class Weighed(lm.Here):
    """Counts the bytes of tensors that would go to workers, and come back from each shard."""

    def __init__(self):
        super().__init__()
        self.there, self.back, self.rounds = 0, 0, 0

    def each(self, run, function, shards, args, own):
        self.there += _nbytes(portable(tuple(args), run.model))
        self.rounds += 1
        for found in super().each(run, function, shards, args, own):
            self.back += _nbytes(portable(found, run.model)) / len(run.shards)
            yield found


def _nbytes(value) -> int:
    if isinstance(value, torch.Tensor):
        return value.nbytes
    if isinstance(value, (tuple, list)):
        return sum(map(_nbytes, value))
    return sum(map(_nbytes, vars(value).values())) if hasattr(value, "__dict__") else 0


@pytest.mark.parametrize(
    ("method", "formula"),
    [(lm.Krylov(order=8), "krylov_bytes"), (lm.Ensemble(order=2), "ensemble_bytes")],
)
def test_what_goes_over_the_network(method, formula):
    model = lm.DepthModel(tiny_gpt2(n_layer=5).float())
    texts = labelled_ids(12, 0)
    concept = lm.mean_difference(model.run(texts))
    crew = Weighed()
    lm.identify(lm.ShardedRun(model, texts, shard=4, crew=crew), concept, method)
    there, back = getattr(cluster_cost, formula)(5, 16, 4)
    readouts = 8 * 4  # one number for each prompt of a shard
    assert crew.there == there
    assert crew.back == back + readouts
    assert crew.rounds == (6 if formula == "krylov_bytes" else 1)


def test_hours_grow_with_weights_and_layers():
    small, middle, large = cluster_cost.SHAPES
    assert cluster_cost.seconds(middle, "float32", "prefill", 32) == 1.19
    ratio = large.L * large.block / (middle.L * middle.block)
    whole = cluster_cost.seconds(large, "TF32", "exact linear gains", 64)
    assert whole == pytest.approx(2 * 1.28 * ratio)
    pairs = cluster_cost.seconds(small, "TF32", "measured gains", 32)
    assert pairs == pytest.approx(0.81 * 16 * 17 * small.block / (32 * 33 * middle.block))
