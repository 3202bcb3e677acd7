"""The scripts for a GPU run without one, and what they compute is right."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from depthsys import lm
from depthsys.lm import switch
from depthsys.study import Cell, Settings
from tests import card, tf32
from tests.benchmarks import (
    card_models,
    card_table,
    card_works,
    launches,
    measure,
    real_model,
    what_fits,
)
from tests.conftest import tiny_llama
from tests.lm.conftest import counted_block_calls

ROOT = Path(__file__).parents[1]
card.setup()  # when tests are collected: autograd learns of devices before it works first


def cells(text: str) -> list[dict[str, str]]:
    """Rows of the only table of a text."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    names, _, *rows = ([cell.strip() for cell in line.split("|")[1:-1]] for line in lines)
    return [dict(zip(names, row, strict=True)) for row in rows]


def works_of(rows: list[dict[str, str]]) -> list[str]:
    return [row["work"] for row in rows]


# ------------------------------------------------------------------------------ table of a card


def test_the_table_of_a_shape(tmp_path, capsys):
    out = tmp_path / "tiny.md"
    assert card_table.main(["tiny", "--device", "cpu", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert out.read_text() == printed
    assert f"torch {torch.__version__}" in printed
    assert "### tiny shape (3 x 32), random weights" in printed
    rows = cells(printed)
    assert works_of(rows) == [
        "DepthModel(...)",
        "measured gains",
        "exact linear gains",
        "identification, order 32",
        "all Jacobians",
        "main job",
        "compare",
    ]
    # both of 3 layers and 6 tokens: 2LT/(T+L) = 4 and 2L = 6
    for row, bound in zip(rows[1:3], (4.0, 6.0), strict=True):
        ratio = float(row["compared with"].split(": ")[1].split()[0])
        assert abs(float(row["result"]) - ratio / bound) < 0.02
        assert float(row["largest difference"]) < 5e-3
    # 24 texts of both classes for each 12: all are fed
    assert [row["prompts"] for row in rows[5:]] == ["48", "48"]


@pytest.mark.parametrize("device", ["cpu", pytest.param(card.NAME, marks=pytest.mark.slow)])
def test_the_table_of_a_llama(device, capsys):
    assert card_table.main(["tiny-llama", "--device", device]) == 0
    rows = cells(capsys.readouterr().out)
    against = [row["compared with"].split()[0] for row in rows[1:]]
    assert against == ["floor", *["prefill"] * 3, "floor", "prefill", "floor"]
    assert works_of(rows)[-1] == "Jacobian of one block (32 x 32)"


def test_a_work_that_fails_says_so_and_the_others_go_on(monkeypatch, capsys):
    shape = replace(card_models.SHAPES["tiny"], works=("identification", "all Jacobians"))
    monkeypatch.setitem(card_models.SHAPES, "tiny", shape)

    def broken(bench):
        raise ValueError("no such\n|thing|")

    monkeypatch.setitem(card_table.WORKS, "identification", broken)
    assert card_table.main(["tiny", "--device", "cpu"]) == 1
    _, failed, other = cells(capsys.readouterr().out)
    assert "failed: ValueError: no such /thing/" in failed.values()
    assert other["work"] == "all Jacobians"
    assert other["result"].endswith("x floor")


def test_without_a_model_nothing_is_begun(monkeypatch, capsys):
    def refused(self, precision):
        raise ValueError("it cannot be used")

    monkeypatch.setattr(card_models.Subject, "wrapped", refused)
    assert card_table.main(["tiny", "--device", "cpu"]) == 1
    first, *others = cells(capsys.readouterr().out)
    assert "failed: ValueError: it cannot be used" in first.values()
    assert all("not begun: there is no model" in row.values() for row in others)
    assert len(others) == 5


def test_a_work_ends_with_the_budget_and_the_next_is_not_begun():
    def forever():
        while True:
            try:
                yield from ()
            except Exception:  # what a work does must not keep it
                pass

    table, until = card_table.Table(None), card_table.perf_counter() + 0.05
    assert card_table.attempted("long", "tf32", forever, until, 0.05, table)
    assert card_table.attempted("next", "float32", forever, until, 0.05, table)
    long, other = table._lines
    assert long == "| long |  |  | TF32 | not finished after 0 s |  |  |  |  |  |"
    assert "| not begun: the budget of 0 s is spent |" in other


def test_precisions():
    with pytest.raises(SystemExit):
        card_table.checked(["tiny", "--precision", "bfloat16", "tf32"])
    assert card_table.checked(["tiny", "--precision", "bfloat16"]).precision == ["bfloat16"]
    assert card_table.checked(["tiny", "--device", "cpu"]).precision == ["float32"]
    assert card_table.checked(["tiny", "--device", "cuda:1"]).precision == ["float32", "tf32"]


def test_products_are_in_tf32_meanwhile():
    before = torch.get_float32_matmul_precision()
    for precision, expected in (("tf32", "high"), ("float32", "highest")):
        with card_models.products(precision):
            assert torch.get_float32_matmul_precision() == expected
        assert torch.get_float32_matmul_precision() == before


@pytest.mark.slow
def test_rows_in_tf32_are_of_models_with_tf32_products(monkeypatch, capsys):
    shape = replace(
        card_models.SHAPES["tiny"], works=("gain curves", "identification", *card_models.JOBS)
    )
    monkeypatch.setitem(card_models.SHAPES, "tiny", shape)
    seen = []
    for name in shape.works:
        work = card_table.WORKS[name]

        def watched(bench, work=work):
            seen.append((bench.precision, bench.model.products))
            return work(bench)

        monkeypatch.setitem(card_table.WORKS, name, watched)
    monkeypatch.setattr(switch, "has_tf32", lambda device: True)
    asked = ["tiny", "--device", "cpu", "--precision", "float32", "tf32"]
    with tf32.Imitated() as imitated:
        assert card_table.main(asked) == 0
    assert imitated.n_rounded > 0 < imitated.n_plain
    assert seen == [("float32", "float32"), ("tf32", "tf32")] * 4
    rows = cells(capsys.readouterr().out)
    rounded = [row for row in rows if row["precision"] == "TF32"]
    # the model again, both kinds of gains, and one row of the others
    assert len(rounded) == 6
    assert not [row for row in rows if "failed" in " ".join(row.values())]
    known = rounded[3]
    assert known["work"] == "identification, order 32"
    assert 1e-5 < float(known["largest difference"]) < 0.01


def test_tf32_is_not_measured_where_there_is_none(capsys):
    assert card_table.main(["tiny", "--device", "cpu", "--precision", "tf32"]) == 1
    first, *others = cells(capsys.readouterr().out)
    assert "`products` must be 'float32' on 'cpu'" in " ".join(first.values())
    assert all("not begun: there is no model" in row.values() for row in others)


def test_weights_are_made_in_the_precision_that_is_asked_for():
    found = card_models.made("tiny-llama", torch.device("cpu"), "bfloat16")
    assert {p.dtype for p in found.hf.parameters()} == {torch.bfloat16}


def test_goals_are_of_rows_that_are_there():
    for shape, work, tokens, precision in card_works.GOALS:
        assert precision in card_table.PRECISIONS, work
        assert tokens is None or tokens in card_models.SHAPES[shape].tokens


def test_real_weights_are_used_where_they_are(monkeypatch, tmp_path, demo_model):
    monkeypatch.setattr(card_models.real, "default_folder", lambda: tmp_path)
    shape = replace(card_models.SHAPES["tiny"], real=True)
    monkeypatch.setitem(card_models.SHAPES, "tiny", shape)
    assert card_models.made("tiny", torch.device("cpu"), "float32").weights.startswith("random")
    for name in ("movies.csv", card_models.real.MODEL):
        (tmp_path / name).write_text("text,label\n" + "some word,0\nother word,1\n" * 24)
    monkeypatch.setattr(lm.DepthModel, "load", lambda *_, **__: demo_model)
    found = card_models.made("tiny", torch.device("cpu"), "float32")
    assert found.weights == "real weights and texts"
    assert found.hf is demo_model.hf


def test_made_up_texts_are_as_long_as_asked_for():
    shape = card_models.SHAPES["SmolLM2"]
    texts = card_models.made_up_texts(shape, 400)
    words = card_models.word_tokenizer(shape.config.vocab_size)
    lengths = [len(words(text)["input_ids"]) for text, _ in texts]
    assert len(texts) == 800
    assert abs(np.mean(lengths) - card_models.TEXT_TOKENS) < 1
    assert max(lengths) <= card_models.LONGEST_TEXT
    assert sum(label for _, label in texts) == 400


def test_products_of_a_llama():
    hf = tiny_llama()
    # queries and output H x H, keys and values H x H/2, three of H x 40; H = 16, 3 layers
    numbers = 3 * (2 * 16 * 16 + 2 * 16 * 8 + 3 * 16 * 40)
    assert measure.product_flops(hf, 7) == 2 * 7 * numbers
    shapes = sorted(tuple(m.shape) for m in measure.block_matrices(hf)[:7])
    assert shapes == [(16, 8), (16, 8), (16, 16), (16, 16), (16, 40), (16, 40), (40, 16)]
    measure.products(hf, 7)()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="a script for bash")
def test_the_script_for_a_gpu_goes_on_after_a_failure(tmp_path):
    settings = {"OUT": str(tmp_path / "out"), "PYTHON": sys.executable, "DEVICE": "cpu"}
    done = subprocess.run(
        ["bash", ROOT / "tests/benchmarks/on_a_gpu.sh", "nonsense", "tiny"],
        env=os.environ | settings | {"OMP_NUM_THREADS": "1", "PRECISION": "float32"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "invalid choice: 'nonsense'" in done.stderr
    assert "compare" in works_of(cells((tmp_path / "out/tiny.md").read_text()))


# ------------------------------------------------------------------------------ launches


def test_launches_are_per_layer_and_batch(monkeypatch):
    monkeypatch.setattr(launches, "N_LAYERS", 2)

    def known(model, ids):
        return {"known": lambda: (torch.ones(3).to(model.device) + 1).cpu()}

    monkeypatch.setattr(launches, "works", known)
    n_batches, rows = launches.counts("gpt2")
    (loading, asked), (work, found) = rows
    assert loading == "DepthModel(...), per layer"
    assert asked[0] > 50
    assert n_batches > 1
    # an addition; a wait, which is the copy to the host; a copy to the card
    assert work == "known"
    assert found == [each / (2 * n_batches) for each in (1, 1, 1, 1)]


@pytest.mark.slow
def test_the_table_of_launches(monkeypatch, capsys):
    monkeypatch.setattr(launches, "N_LAYERS", 2)
    launches.main(["llama"])
    rows = cells(capsys.readouterr().out)
    assert works_of(rows)[1:4] == ["prefill", "measured gains", "exact linear gains"]
    assert all(float(row["launches"]) >= 10 for row in rows)
    with pytest.raises(SystemExit, match="must be of"):
        launches.main(["nonsense"])


# ------------------------------------------------------------------------------ what fits


SMALL, LLAMA_8B, LLAMA_70B = what_fits.SHAPES


def test_numbers_of_weights():
    """As the publisher counts them."""
    counts = [shape.parameters for shape in what_fits.SHAPES]
    assert counts == [1_235_814_400, 8_030_261_248, 70_553_706_496]


def test_sizes_of_eight_billion_by_hand():
    # 32 layers, keys and values of 8 heads of 128 channels, 31 tokens of 400 prompts
    assert LLAMA_8B.context(400, 32) == 32 * 2 * 8 * 128 * 31 * 400
    assert LLAMA_8B.states(400) == 33 * 4096 * 400
    # 1024 tokens in a batch; 6 x 4096 and 3 x 14336 numbers each
    assert LLAMA_8B.work() == 1024 * (24_576 + 43_008)
    # 218 103 808 numbers in a block
    assert LLAMA_8B.block == 4096 * (4096 + 1024 + 1024 + 4096 + 3 * 14336)
    assert what_fits.moving(LLAMA_8B, "float32") == 18 * 32 * 4 * 218_103_808 / 25e9


def test_seconds_of_eight_billion_by_hand():
    rows = {
        "prefill": 1600 * 32 * 32,
        "gains": 9 * 32 * 33 * 400,
        "linear": 2 * 1200 * 32,
        "energies": 60 * 32 * 400,
    }
    assert what_fits.main_job_rows(32) == sum(rows.values())
    # the measured prefill: 4096 tokens through 32 layers in 1.19 s
    expected = 1.19 * sum(rows.values()) / (4096 * 32)
    assert what_fits.arithmetic(LLAMA_8B, "float32") == pytest.approx(expected)
    rest = 0.11 * (sum(rows.values()) - rows["gains"]) / (4096 * 32)
    assert what_fits.arithmetic(LLAMA_8B, "bfloat16") == pytest.approx(rest)
    assert what_fits.launching(LLAMA_8B, "TF32") == pytest.approx(24 * 32 / 30)
    assert what_fits.launching(LLAMA_8B, "bfloat16") == pytest.approx(13.9 * 32 / 30)


def test_the_measured_peak_lies_between_the_parts():
    """On an H100: 30.7 GiB at most for gains of 32 prompts of 128 tokens in float32."""
    least = 4 * (LLAMA_8B.parameters + LLAMA_8B.work())
    most = least + 4 * LLAMA_8B.context(32, 128) + what_fits.LINEARISED
    assert least < 30.7 * 2**30 < most


@pytest.mark.parametrize(
    ("shape", "precision", "card_size", "expected"),
    [
        (SMALL, "float32", 24, "fits"),
        (LLAMA_8B, "float32", 24, "layers move"),
        (LLAMA_8B, "bfloat16", 24, "fits, contexts on the host"),
        (LLAMA_70B, "bfloat16", 80, "layers move"),
        (LLAMA_70B, "bfloat16", 141, "fits, contexts on the host"),
        (LLAMA_70B, "float32", 8, "no"),
    ],
)
def test_places(shape, precision, card_size, expected):
    assert what_fits.place(shape, precision, card_size) == expected


def test_rows_of_a_main_job_are_those_that_are_counted(monkeypatch):
    """The formula is an upper bound, and near: steps of the range and energies are searched for."""
    n_layers, n_tokens = 8, 6
    model = lm.DepthModel(
        tiny_llama(num_hidden_layers=n_layers), card_models.word_tokenizer(vocabulary=50)
    )
    rng = np.random.default_rng(0)
    words = [f"w{i}" for i in range(1, 50)]
    texts = [(" ".join(rng.choice(words, n_tokens)), i % 2) for i in range(40)]
    splits = lm.read_texts(texts).split(concept=6, operating=4, held_out=3)
    asked = Settings.checked(basis="ensemble", order=4, split="6/4/3", device="cpu")
    calls = counted_block_calls(model, monkeypatch)
    real_model.main_job(Cell(asked, model, splits))
    counted = sum(rows for _, rows in calls)
    sizes = what_fits.Texts(12, 8, 6, tokens=n_tokens)
    assert 0.6 < counted / what_fits.main_job_rows(n_layers, sizes) < 1.05
    # one batch each: the last layer is met once in each pass
    passes = sum(layer == n_layers - 1 for layer, _ in calls)
    assert abs(passes - what_fits.PASSES) <= 4


def test_the_page_says_what_is_computed():
    page = (ROOT / "docs/performance.md").read_text("utf-8")
    assert what_fits.section() in page
