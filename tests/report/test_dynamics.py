"""What is told of measures of depth: curves, words, and figures of a page."""

import re

import numpy as np
import pytest

from depthsys.report import Screen
from depthsys.report.dynamics import SHOWN, detached, detached_gains, skip
from depthsys.report.dynamics.shown import Curve, Drawn, Shown
from depthsys.report.html import CellResults, Results, dynamics, page
from depthsys.report.html.facts import Facts
from depthsys.report.stage import Stage

SKIP = Stage(
    {
        "layer": (("layer",), np.array([0, 1, 2])),
        "shift": (("prompt", "layer"), np.array([[1.0, -2.0, 3.0], [3.0, -4.0, 3.0]])),
        "predicted": (("prompt", "layer"), np.array([[9.0, -3.0, 3.3], [9.0, -3.0, 3.3]])),
        "kl": (("prompt", "layer"), np.array([[4.0, 0.5, 1.0], [2.0, 0.1, 1.0]])),
        "update": (("prompt", "layer"), np.full((2, 3), 0.5)),
        "state_error": (("prompt", "layer"), np.full((2, 3), 0.25)),
    }
)


BOTH = np.array(["layer", "from_start"])
DETACHED = Stage(
    {
        "map": (("map",), BOTH),
        "kept": (("kept",), np.array([1, 2, 4])),
        "stable_rank": (("map", "prompt", "layer"), np.array([[[2.0, 3.0]], [[2.0, 1.5]]])),
        "own_share": (("map", "prompt", "layer"), np.full((2, 1, 2), 0.5)),
        "low_rank_error": (
            ("map", "prompt", "layer", "kept"), np.array([[[[0.9, 0.5, 0], [0.8, 0.2, 0]]]] * 2)
        ),
        "share": (("prompt", "token"), np.array([[np.nan, 0.5, 0.2]])),
        "bias_share": (("prompt", "layer"), np.array([[0.2, 0.1]])),
        **{
            f"error_{name}": (("prompt", "layer")[: 1 + (name != "stack")], values)
            for name, values in {
                "block": np.array([[1e-8, 2e-8]]), "attention": np.zeros((1, 2)),
                "mlp": np.zeros((1, 2)), "stack": np.array([3e-8]),
            }.items()
        },
        "output_text": (
            ("map", "prompt", "layer", "rank", "place"),
            np.array([[[[[" good", " bad"]], [[" sun", " moon"]]]]] * 2),
        ),
        "input_text": (
            ("map", "prompt", "layer", "rank", "place"),
            np.array([[[[[" a", " b"]], [[" c", " d"]]]]] * 2),
        ),
    }
)  # fmt: skip
KINDS = np.array(["exact", "detached"])
GAINS = Stage(
    {
        "gains": (("gains",), KINDS),
        "schedule": (("schedule",), KINDS),
        "layers": (("layers",), np.array(["all", "without_layer_0"])),
        "bound": (("bound",), np.array(["estimate", "low", "high"])),
        "relative_l2": (
            ("gains", "layers", "bound"),
            np.array([[[0.01] * 3] * 2, [[0.4] * 3] * 2]),
        ),
        "spearman": (("gains", "layers", "bound"), np.array([[[1.0] * 3] * 2, [[0.6] * 3] * 2])),
        "energy": (("schedule",), np.array([2.0, 3.0])),
        "energy_low": (("schedule",), np.array([1.0, np.nan])),
        "energy_high": (("schedule",), np.array([3.0, np.nan])),
        "multiple": (("schedule",), np.array([1.0, 1.5])),
        **{
            f"{name}_gain": (("prompt", "layer"), np.array([[1.0, 2.0]]))
            for name in ("measured", "exact", "detached")
        },
    }
)


def cell(name: str, **stages: Stage) -> CellResults:
    return CellResults(name, "mood", "0", "mean_difference", stages)


def test_a_curve_is_averaged_over_what_is_not_asked_for():
    stage = Stage(
        {
            "of": (("of",), np.array(["layer", "update"])),
            "a": (("prompt", "of", "layer"), np.arange(12.0).reshape(3, 2, 2)),
        }
    )
    np.testing.assert_array_equal(
        Curve("a", "", {"of": "update"}).values(stage, "layer"), [6.0, 7.0]
    )
    uneven = Stage({"a": (("layer", "prompt"), np.array([[1.0, 2.0, 9.0], [0.0, 0.0, 3.0]]))})
    median = Curve("a", "", middle="median")
    np.testing.assert_array_equal(median.values(uneven, "layer"), [2.0, 0.0])
    assert Curve("b", "").values(stage, "layer") is None
    assert Curve("a", "", {"of": "other"}).values(stage, "layer") is None
    assert Curve("a", "").values(stage, "depth") is None


def test_layers_left_out_in_words():
    first, second = skip.verdicts(SKIP)
    # means: real [2, -3, 3], predicted [9, -3, 3.3]
    whole = np.hypot(7.0, 0.3) / np.sqrt(22)
    assert f"by {whole:.3g} (relative L2 over layers), 0.100 without the first 2" in first
    assert second == "the next token minds layer 0 most (3.00 nats) and layer 1 least (0.300)"


def test_detached_maps_in_words():
    errors, rank, last, biases = detached.verdicts(DETACHED)
    assert "to 3.00e-08" in errors
    assert "stable rank of 1.50 of 4" in rank
    assert "needs 4 of its singular directions" in rank
    assert "makes 20 % of the last state" in last
    assert biases == "biases make 30 % of the last state"
    none = {**DETACHED.variables, "bias_share": (("prompt", "layer"), np.zeros((1, 2)))}
    assert len(detached.verdicts(Stage(none))) == 3
    (table,) = detached.tables(DETACHED)
    assert table.rows == [
        ("all layers, 1", "' sun' ' moon'", "' c' ' d'"),
        ("last layer, 1", "' sun' ' moon'", "' c' ' d'"),
    ]
    without = {k: v for k, v in DETACHED.variables.items() if k != "output_text"}
    assert detached.tables(Stage(without)) == []


def test_tokens_of_most_prompts_come_first():
    # (map, prompt, layer, rank, place): three prompts, two layers, of which the last one counts
    read = np.array([["a", "b"], ["c", "b"], ["b", "c"]])
    text = np.stack([np.full_like(read, "x"), read], axis=1)[None, :, :, None]
    stage = Stage({
        "map": (("map",), np.array(["from_start"])),
        **{f"{n}_text": (("map", "prompt", "layer", "rank", "place"), text)
           for n in ("output", "input")},
    })  # fmt: skip
    (table,) = detached.tables(stage)
    assert table.rows == [("all layers, 1", *["'b' ×3 'c' ×2 'a'"] * 2)]
    assert "of most of 3 prompts first" in table.title


def test_gains_of_detached_maps_in_words():
    gains, plan = detached_gains.verdicts(GAINS)
    assert "by 0.0100 by exact gains and 0.400 by detached gains" in gains
    assert "1.00 (exact) and 0.600 (detached)" in gains
    assert "needs 1.50 times the energy" in plan
    missed = {**GAINS.variables, "multiple": (("schedule",), np.array([1.0, np.nan]))}
    assert "does not reach the target" in detached_gains.verdicts(Stage(missed))[1]
    (table,) = detached_gains.tables(GAINS)
    assert table.rows[1] == ("detached", "3.00", "not reached", "not reached")


def test_a_table_has_a_column_for_every_curve_that_is_there():
    without = Stage({k: v for k, v in SKIP.variables.items() if k != "update"})
    (table,) = skip.SHOWN.report(without).tables
    assert table.header == (
        "layer", "shift, really left out", "shift, by the linear system", "divergence, nats",
        "relative, error of the last state",
    )  # fmt: skip
    assert table.rows[1] == ("1", "-3.00", "-3.00", "0.300", "0.250")


def test_a_page_has_the_figures_of_a_cell_and_one_across_cells():
    other = Stage({**SKIP.variables, "shift": (("prompt", "layer"), np.full((2, 3), -7.0))})
    results = Results("two", (cell("a", skip=SKIP), cell("b", skip=other), cell("c")))
    html = page(results)
    assert html.count("Depth as dynamics</h2>") == 1
    assert html.count("Depth as dynamics</h3>") == 2
    assert "b, 0.5: -7.00" in html  # the middle one of three layers
    assert "really left out, 1: -3.00" in html
    assert "the next token minds layer 0 most" in html.replace("The next", "the next")


def test_a_page_of_measures_alone_speaks_of_nothing_else():
    html = page(Results("two", (cell("a", skip=SKIP), cell("b", skip=SKIP))))
    assert "depth as a dynamical system, by its layers left out." in html
    assert "Depth as dynamics: layers left out in 2 cells, told below." in html
    assert "nothing yet" not in html
    assert "surrogate" not in html.split("</style>")[1].split("study.toml")[0]
    assert "Spearman" not in html


def test_one_cell_alone_is_not_compared():
    facts = [Facts(each, each.model, each.model) for each in (cell("a", skip=SKIP), cell("b"))]
    assert dynamics.section(facts) is None
    (found,) = dynamics.measures(facts[0])
    assert found.count("<figure>") == len(skip.SHOWN.figures)
    assert dynamics.measures(facts[1]) == []


def test_more_cells_than_can_be_told_apart_are_counted():
    facts = [Facts(cell(f"m{i}", skip=SKIP), f"m{i}", f"c{i}") for i in range(dynamics.MOST + 2)]
    section = dynamics.section(facts)
    assert section is not None
    assert f"The first {dynamics.MOST} of {dynamics.MOST + 2} cells." in str(section.body)
    assert f"m{dynamics.MOST - 1}" in str(section.body)
    assert f"m{dynamics.MOST}" not in str(section.body)


@pytest.mark.parametrize("values", [np.full((2, 3), np.nan), np.zeros((2, 3))])
def test_a_curve_that_a_log_axis_cannot_show_is_left_out(values):
    stage = Stage({"layer": (("layer",), np.arange(3)), "kl": (("prompt", "layer"), values)})
    drawn = Drawn("t", "s", "layer", (Curve("kl", "divergence"),), "nats", log=True)
    shown = Shown("c", frozenset(), (drawn,), lambda stage: [])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dynamics, "SHOWN", {"skip": shown})
        assert dynamics.measures(Facts(cell("a", skip=stage), "a", "a")) == []


def test_coupling_in_words():
    m = np.array([[0.0, 0.8, 1.0], [0.6, 0.0, 1.0], [1.0, 1.2, 0.0]])
    stage = Stage({"coupling": (("prompt", "layer", "layer_2"), m[None])}, {"top": 10})
    first, second = SHOWN["coupling"].verdicts(stage)
    assert "with 10 leading directions, layers miss each other by 0.933 on average" in first
    assert "neighbours by 0.900" in first  # of 0.8, 0.6, 1.0, 1.2
    assert second == "the directions of layer 0 diagonalise layer 1 best (0.600)"


def test_shapes_in_words():
    prompts = {"line_shape": [2.0, 3.0, 9.0], "length_ratio": [1.5] * 3, "spacing_r2": [0.5] * 3,
               "spacing_rate": [np.log(2)] * 3, "growth_r2": [0.25] * 3}  # fmt: skip
    stage = Stage({name: (("prompt",), np.array(v)) for name, v in prompts.items()}
                  | {"step": (("prompt", "layer"), np.ones((3, 4)))})  # fmt: skip
    first, second = SHOWN["shape"].verdicts(stage)
    assert "score is 3.00 (1: a straight line, 2.00: steps at right angles)" in first
    assert "ways are 1.50 times as long" in first
    assert "2.00 times as long as the one before it, which explains 50 %" in second
    still = Stage(stage.variables | {"spacing_rate": (("prompt",), np.full(3, np.nan))})
    assert len(SHOWN["shape"].verdicts(still)) == 1


def test_lenses_in_words():
    readers = ["logit lens", "J-lens", "mean state"]
    right = np.array([[0, 0, 1.0], [0, 1.0, 1.0], [1.0, 0, 0]])[..., None]
    stage = Stage(
        {
            "reader": (("reader",), np.array(readers)),
            "depth": (("depth",), np.array([0, 5, 10])),
            "agreement": (("reader", "depth", "prompt"), right),
            "kl": (("reader", "depth", "prompt"), right + 2),
            "share": (("depth",), np.array([0.5, 0.75, 1.0])),
        }
    )
    first, second, third = SHOWN["lens"].verdicts(stage)
    assert "at depth 5: logit lens 0 % (2.00 nats), J-lens 100 % (3.00 nats), mean state 0" in first
    assert second == (
        "most prompts are read right from depth 10 (logit lens), 5 (J-lens) on; the mean state "
        "alone, the same for all prompts, is right for 0 %, and more than that are read from depth "
        "10 (logit lens), 5 (J-lens) on"
    )
    assert "holds 0.500 of its prompts' own at depth 0 and 0.750 at depth 5" in third
    without = {**stage.variables, "reader": (("reader",), np.array([*readers[:2], "other"]))}
    _, second, _ = SHOWN["lens"].verdicts(Stage(without))
    assert second == "most prompts are read right from depth 10 (logit lens), 5 (J-lens) on"
    agreement = np.array([[0, 0.6, 0.7], [0.6, 0.6, 0.7], [0.65, 0.65, 0.65]])[..., None]
    above = {**stage.variables, "agreement": (("reader", "depth", "prompt"), agreement)}
    _, second, _ = SHOWN["lens"].verdicts(Stage(above))
    assert "from depth 5 (logit lens), 0 (J-lens) on" in second
    assert "for 65 %, and more than that are read from depth 10 (logit lens), 10 (J-lens)" in second
    never = {**stage.variables, "agreement": (("reader", "depth", "prompt"), 0 * right)}
    _, second, _ = SHOWN["lens"].verdicts(Stage(never))
    assert "from depth none (logit lens), none (J-lens) on;" in second


def lens_of(last: float) -> Stage:
    """Two readers at three depths, the last of which is read with so many nats."""
    kl = np.array([[9.0, 3.0, last], [2.0, 1.5, last]])[..., None]
    return Stage(
        {
            "reader": (("reader",), np.array(["logit lens", "J-lens"])),
            "depth": (("depth",), np.array([0, 5, 10])),
            "agreement": (("reader", "depth", "prompt"), np.ones((2, 3, 1))),
            "kl": (("reader", "depth", "prompt"), kl),
        }
    )


def test_where_lenses_are_exact_no_divergence_is_drawn_but_tables_have_it():
    html = page(Results("one", (cell("a", lens=lens_of(1e-13)),)))
    assert "J-lens, 5: 1.50" in html
    assert "J-lens, 10: 1.00e-13" not in html
    assert "10⁻¹³" not in html
    (table,) = SHOWN["lens"].report(lens_of(1e-13)).tables
    assert "1.00e-13" in table.rows[2]
    # the last depth of a lens need not be behind the last block
    assert "J-lens, 10: 0.0100" in page(Results("one", (cell("a", lens=lens_of(0.01)),)))


def test_logarithmic_axes_say_so():
    html = page(Results("one", (cell("a", skip=SKIP),)))
    assert ">nats, log scale</text>" in html
    assert ">shift of the readout</text>" in html


def test_spectra_in_words_and_quantiles_of_moduli():
    modulus = np.array([[3.0, 2.0, 1.0, 0.5, 0.0], [1.0] * 5])
    stage = Stage(
        {
            "of": (("of",), np.array(["layer"])),
            "modulus": (("of", "layer", "mode"), modulus[None]),
            "departure": (("of", "layer"), np.array([[0.5, 0.25]])),
            "rank_to_end": (("depth",), np.array([2.0, 3.0, 5.0])),
            "growth_from_start": (("depth",), np.array([1.0, 2.0, 4.5])),
            "modal_growth": (("depth",), np.array([1.0, 3.0, 9.0])),
        }
    )
    _, growth, _, shrinks = SHOWN["spectra"].verdicts(stage)
    assert growth == (
        "a small change of the first state is 4.50 times as long at the end, at most (norm of that "
        "product); the largest eigenvalues of the layers, multiplied, would say 9.00"
    )
    assert shrinks.startswith("20 %")
    drawn = next(each for each in SHOWN["spectra"].figures if each.short == "modulus")
    found = [curve.values(stage, "layer") for curve in drawn.curves]
    np.testing.assert_allclose(found, [[3, 1], [2.6, 1], [1, 1], [0.2, 1]])


def test_the_middle_of_a_curve_is_a_mean_a_median_a_quantile_or_the_largest():
    stage = Stage({"a": (("layer", "mode"), np.array([[0.0, 1.0, 8.0]]))})
    middles = {"mean": 3.0, "median": 1.0, "largest": 8.0, 0.25: 0.5}
    for middle, expected in middles.items():
        np.testing.assert_allclose(Curve("a", "", middle=middle).values(stage, "layer"), [expected])


def test_a_page_without_gains_has_no_heading_of_gains():
    auc = {name: (("depth",), np.full(4, 0.9)) for name in ("auc", "auc_low", "auc_high")}
    html = page(Results("one", (cell("a", skip=Stage(SKIP.variables | auc)),)))
    assert "<h3>Gains</h3>" not in html
    assert "<h3>Concept direction</h3>" in html
    assert "Separation of held-out texts" in html
    assert "Concept direction" not in page(Results("one", (cell("a", skip=SKIP),)))


def test_a_number_that_a_figure_is_read_against_is_marked():
    stage = Stage({"kl": (("prompt", "layer"), np.array([[0.5, 2.0]]))})
    for reference, marks in ((1.0, 1), (None, 0), (50.0, 0)):
        drawn = Drawn("t", "s", "layer", (Curve("kl", ""),), "", log=True, reference=reference)
        assert _drawn(drawn, stage).count('class="ref"') == marks


def test_an_axis_of_places_that_double_is_logarithmic():
    stage = Stage(
        {
            "kept": (("kept",), np.array([1, 10, 100])),
            "a": (("kept",), np.array([3.0, 2.0, 1.0])),
        }
    )
    drawn = Drawn("t", "s", "kept", (Curve("a", "curve"),), "", log_x=True)
    html = _drawn(drawn, stage)
    x = [float(each) for each in re.findall(r'<circle class="m" cx="([\d.]+)"', html)][-3:]
    np.testing.assert_allclose(x[1] - x[0], x[2] - x[1], atol=0.2)
    assert ">kept, log scale</text>" in html


def _drawn(drawn: Drawn, stage: Stage) -> str:
    """A page's part of a measure with that one figure."""
    shown = Shown("c", frozenset(), (drawn,), lambda stage: [])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dynamics, "SHOWN", {"skip": shown})
        (found,) = dynamics.measures(Facts(cell("a", skip=stage), "a", "a"))
    return found


def test_tables_of_many_curves_are_shown_in_parts_of_which_nothing_is_cut():
    readers = ["logit lens", "J-lens", "J-lens about the mean", "mean state"]
    values = np.full((4, 2, 1), 0.123)
    stage = Stage(
        {
            "reader": (("reader",), np.array(readers)),
            "depth": (("depth",), np.array([0, 1])),
            **{name: (("reader", "depth", "prompt"), values) for name in ("agreement", "kl")},
            "share": (("depth",), np.array([0.5, 1.0])),
        }
    )
    screen = Screen()
    screen.show(SHOWN["lens"].report(stage))
    text = screen.text()
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 100
    assert text.split().count("0.123") == 16


def test_few_whole_jacobians_are_minded_and_no_doubt_is_said():
    few = Stage(SKIP.variables, {"n_jacobians": 3})
    html = page(Results("one", (cell("a", skip=few),)))
    assert "Whole Jacobians are of 3 prompts alone: others may have others" in html
    enough = Stage(SKIP.variables, {"n_jacobians": 20})
    html = page(Results("one", (cell("a", skip=enough),)))
    assert "Whole Jacobians are of" not in html
    assert "The results say nothing against themselves" in html
