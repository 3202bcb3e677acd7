"""docs/dynamics/coupling.md: its tables are those of the stored numbers, and its words say them."""

import importlib.util
import json
from pathlib import Path

import numpy as np

from depthsys.report import markdown
from depthsys.report.page import between

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/dynamics/coupling.md").read_text("utf-8")
WORDS = " ".join(PAGE.split())
NUMBERS = json.loads((ROOT / "docs/dynamics/coupling.json").read_text("utf-8"))
spec = importlib.util.spec_from_file_location("coupling_page", ROOT / "examples/coupling_page.py")
script = importlib.util.module_from_spec(spec)
spec.loader.exec_module(script)
MODEL, FRESH = NUMBERS["SmolLM2-135M"], NUMBERS["SmolLM2-135M, untrained"]
K = "signed, K = 10"


def test_the_tables_are_those_of_the_numbers():
    tables = {
        "coupling": script.coupling_table,
        "shape": script.shape_table,
        "paper": script.paper_table,
    }
    for name, table in tables.items():
        assert between(PAGE, *script.MARKERS[name]) == markdown(table(NUMBERS))


def test_what_is_said_beside_the_paper():
    rows = script.models(NUMBERS)
    pairs = {n: (rows[n], rows[f"{n}, untrained"]) for n in rows if "untrained" not in n}
    assert all(trained[K][0] < fresh[K][0] for trained, fresh in pairs.values())

    def more(part, name):
        return [n for n, (one, other) in pairs.items() if one[part][name][0] > other[part][name][0]]

    straight = [n for n in pairs if n not in more("from 0", "line_shape")]
    assert straight == more("from 2", "growth_r2") == ["SmolLM2-135M", "stories260K"]
    assert more("from 2", "spacing_r2") == [*pairs]
    said = [row[2] for row in script.paper_table(NUMBERS).rows]
    assert said[2:] == [
        "yes of SmolLM2 and stories260K, not of the other two",
        "yes of SmolLM2 and stories260K; of the other two by steps, not by norms",
    ]


def test_both_maps_have_the_same_colours(monkeypatch):
    figures = []
    monkeypatch.setattr(script.plot, "save", lambda fig, *_: figures.append(fig))
    script.draw_maps(NUMBERS)
    maps = [
        mesh for ax in figures[0].axes for mesh in ax.collections if mesh.get_array() is not None
    ]
    spans = {mesh.get_clim() for mesh in maps if mesh.get_array().size == 900}
    m = np.array(MODEL["map"])[~np.eye(30, dtype=bool)]
    assert len(spans) == 1
    np.testing.assert_allclose(spans.pop()[0], m.min(), rtol=1e-6)


def test_the_averages_are_those_of_the_stored_maps():
    for found in script.models(NUMBERS).values():
        np.testing.assert_allclose(script.mean_of(np.array(found["map"])), found[K], atol=2e-3)


def test_what_is_said_of_coupling():
    mean, near, best = MODEL[K]
    assert f"miss each other by {mean:.2f} on average and neighbours by {near:.2f}" in WORDS
    assert [f"{v:.2f}" for v in FRESH[K][:2]] == ["1.00", "1.00"]
    m = np.array(MODEL["map"])
    apart = ~np.eye(len(m), dtype=bool)
    at = np.unravel_index(np.where(apart, m, 9).argmin(), m.shape)
    assert f"layer {at[0]} by the directions of layer {at[1]} ({best:.2f})" in WORDS
    assert "averages are {:.3f} to {:.3f}".format(*MODEL["range"]) in WORDS
    gaps = np.abs(np.subtract.outer(np.arange(len(m)), np.arange(len(m))))
    by_gap = [m[gaps == gap].mean() for gap in range(1, 30)]
    assert f"by {by_gap[0]:.2f}, layers ten apart by {by_gap[9]:.2f}" in WORDS
    assert {f"{v:.2f}" for v in by_gap[20:]} == {"0.99", "1.00"}
    block = m[10:19, 10:19]
    assert block[~np.eye(9, dtype=bool)].mean() < mean - 0.05
    others = np.array([np.delete(row, i).mean() for i, row in enumerate(m)])
    assert others[[0, *range(23, 30)]].min() > 0.975 > others[1:20].max()
    assert (f"{m[9, 10]:.2f}", f"{m[10, 9]:.2f}") == ("1.08", "1.12")
    of_mean = MODEL["of_the_mean"]
    assert f"{of_mean[0]:.2f} on average, {of_mean[1]:.2f} of neighbours" in WORDS
    small = {n: (k["trained"][K], k["untrained"][K]) for n, k in NUMBERS["small"].items()}
    best = small["gpt2_6x128"]
    assert f"has {best[0][0]:.2f} (neighbours {best[0][1]:.2f}) against {best[1][0]:.2f}" in WORDS
    others = [small[name] for name in ("gpt280K_tinystories", "stories260K")]
    assert "stand at {:.2f} and {:.2f}".format(*(pair[0][0] for pair in others)) in WORDS
    assert {f"{pair[1][0]:.2f}" for pair in others} == {"1.03"}


def test_what_is_said_of_shapes():
    line = MODEL["from 0"]["line_shape"][0]
    assert f"score of SmolLM2 is {line:.2f}, where steps at right angles have 5.48" in WORDS
    assert f"{FRESH['from 0']['line_shape'][0]:.2f}" == f"{np.sqrt(30):.2f}" == "5.48"
    later, fresh = MODEL["from 2"], FRESH["from 2"]
    for kind, found, of_fresh in (
        ("norm of SmolLM2's states grows", later["growth_rate"], fresh["growth_rate"]),
        ("steps grow", later["spacing_rate"], fresh["spacing_rate"]),
    ):
        assert f"{kind} by {np.exp(found[0]):.2f}" in WORDS
        assert of_fresh[0] < found[0]
    shares = [100 * w[n][0] for n in ("growth_r2", "spacing_r2") for w in (later, fresh)]
    assert [f"{share:.0f}" for share in shares] == ["96", "85", "82", "11"]
    whole = [100 * MODEL["from 0"][n][0] for n in ("growth_r2", "spacing_r2")]
    assert "With the first two steps it is {:.0f} % and {:.0f} %".format(*whole) in WORDS
    small = {n: k["trained"] for n, k in NUMBERS["small"].items()}
    lines = {n: v["from 0"]["line_shape"][0] for n, v in small.items()}
    assert f"stories260K is straight ({lines['stories260K']:.2f}" in WORDS
    assert f"turns back on itself ({lines['gpt280K_tinystories']:.2f}" in WORDS
    assert lines["gpt280K_tinystories"] > np.sqrt(5)
    assert f"a random walk ({lines['gpt2_6x128']:.2f} of 2.45)" in WORDS
    assert f"({small['gpt2_6x128']['from 2']['line_shape'][0]:.2f} of 2.00)" in WORDS


def test_how_much_smaller_the_absolute_form_is():
    def gaps(row):
        return [row[f"signed, K = {k}"][0] - row[f"absolute, K = {k}"][0] for k in (1, 10, 30)]

    rows = script.models(NUMBERS)
    kinds = {"wide": [], "trained": [], "untrained": []}
    for name, row in rows.items():
        kind = "untrained" if "untrained" in name else "trained"
        kinds["wide" if name.startswith("SmolLM2") else kind] += gaps(row)
    assert {f"{gap:.2f}" for gap in kinds["wide"]} == {"0.01"}
    words = " ".join(PAGE.split())
    assert "smaller by 0.01 in SmolLM2, by up to " in words
    assert f"by up to {max(kinds['trained']):.2f} in the trained small models" in words
    few, most = min(kinds["untrained"]), max(kinds["untrained"])
    assert f"by {few:.2f} to {most:.2f} in the untrained ones" in words
