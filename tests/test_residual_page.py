"""docs/dynamics/residual.md: its tables and its words are those of the stored numbers."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import xarray as xr

from depthsys.report import markdown
from depthsys.report.page import between

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/dynamics/residual.md").read_text("utf-8")
WORDS = " ".join(PAGE.split())
NUMBERS = json.loads((ROOT / "docs/dynamics/residual.json").read_text("utf-8"))
spec = importlib.util.spec_from_file_location("residual_page", ROOT / "examples/residual_page.py")
script = importlib.util.module_from_spec(spec)
spec.loader.exec_module(script)
WIKI, STORIES = (NUMBERS[name] for name in script.TEXTS)
BOTH = (WIKI, STORIES)


def test_how_many_lines_there_are():
    assert WIKI["prompts"] == STORIES["prompts"] == 1000
    assert "on 1000 lines each of wikitext2 and of tinystories" in WORDS
    assert "500 lines" not in WORDS
    assert f"{WIKI['n_cut']} and {STORIES['n_cut']} were cut after {script.MAX_TOKENS}" in WORDS


def test_the_tables_are_those_of_the_numbers():
    tables = {
        "side by side": script.side_by_side(NUMBERS),
        "teleportation": script.flights(NUMBERS),
        "basins": script.basins(NUMBERS),
    }
    for name, table in tables.items():
        assert between(PAGE, *script.MARKERS[name]) == markdown(table)


def test_single_numbers_are_those_of_the_curves():
    for one in BOTH:
        curves, summary = one["curves"], one["summary"]
        for name in ("velocity", "density"):
            np.testing.assert_allclose(
                script.thirds(np.array(curves[name])), summary[name], rtol=5e-3
            )
        for first, part in enumerate(script.PARTS):
            for curve, name in (("correlation, 0.5", "correlation"), ("cosine", "cosine"),
                                ("mutual_information", "information")):  # fmt: skip
                here = script.thirds(np.array(curves[curve])[first::2])
                np.testing.assert_allclose(here, summary[f"{name}, {part}"], rtol=5e-3)


def by_thirds(values) -> str:
    return f"{min(values):.2f} to {max(values):.2f}"


def test_what_is_said_of_continuity_and_speed():
    s, t = (one["summary"] for one in BOTH)
    curves = [one["curves"] for one in BOTH]
    assert f"by {min(min(c['correlation, 0.5'][2:]) for c in curves):.2f} or more at" in WORDS
    assert f"({by_thirds(s['correlation, attention'])} by thirds on wikitext2)" in WORDS
    assert f"than where the MLP does ({by_thirds(s['correlation, mlp'])})" in WORDS
    info = [by_thirds(s[f"information, {part}"]) for part in script.PARTS]
    exchanged = s["information, exchanged"][0]
    assert f"({info[0]} and {info[1]} nats; {exchanged:.2f} where" in WORDS
    assert "embedding is left ({:.2f}; {:.2f} on tinystories)".format(
        *(c["correlation, 0.5"][1] for c in curves)
    ) in WORDS  # fmt: skip
    norms = [c["norm"] for c in curves]
    assert "the states there are {:.0f} ({:.0f}) times as long as what enters it".format(
        *(norm[2] / norm[1] for norm in norms)
    ) in WORDS  # fmt: skip
    cosines = [np.array(c["cosine"][3:]) for c in curves]
    assert {int(np.argmin(cosine)) + 3 for cosine in cosines} == {48}  # the attention of layer 24
    assert "for one ({:.2f}, on tinystories {:.2f}, at the attention of layer 24)".format(
        *(cosine.min() for cosine in cosines)
    ) in WORDS  # fmt: skip
    assert f"Cosines are {min(np.sort(c)[1] for c in cosines):.2f} or more from step 3" in WORDS
    updates = [f"{min(c['update_cosine']):.2f} to {max(c['update_cosine']):.2f}" for c in curves]
    assert "right angles, {} on wikitext2 and {} on tinystories".format(*updates) in WORDS
    faster = [
        [x[name][2] / x[name][1] for name in ("velocity", "relative velocity")] for x in (s, t)
    ]
    assert f"moves {faster[0][0]:.1f} times as far in the last third" in WORDS
    assert f"it moves {faster[0][1]:.1f} times as far" in WORDS
    assert "({:.1f} and {:.1f} times on tinystories)".format(*faster[1]) in WORDS
    (wiki, falls), (stories, rises) = (script.density_later(c["density"]) for c in curves)
    assert stories == sorted(stories)
    assert "({:.2f}, {:.2f} and {:.2f} by thirds; rank correlation with depth {:.2f})".format(
        *stories, rises
    ) in WORDS  # fmt: skip
    assert "on wikitext2 ({:.2f}, {:.2f} and {:.2f}; {:.2f})".format(*wiki, falls) in WORDS
    assert "goes from {:.2f} to {:.2f} and from {:.2f} to {:.2f}.".format(
        *t["density"][::2], *s["density"][::2]
    ) in WORDS  # fmt: skip
    densest = [c["density"] for c in curves]
    assert all(np.argmax(one) == 0 for one in densest)
    assert f"densest ({densest[0][0]:.2f} and {densest[1][0]:.2f})" in WORDS


def test_what_is_said_of_rotations():
    s, t = (one["summary"] for one in BOTH)
    assert f"turns {s['turns'][0]:.1f} times (tinystories: {t['turns'][0]:.1f})" in WORDS
    assert "random orders {:.1f} ({:.1f}) times".format(
        *(x["turns, shuffled"][0] for x in (s, t))
    ) in WORDS  # fmt: skip
    assert "single prompts it is {:.1f} ({:.1f})".format(
        *(x["turns, each prompt"][0] for x in (s, t))
    ) in WORDS  # fmt: skip
    differ = [100 * x["turns differ"][0] for x in (s, t)]
    assert "{:.0f} % and {:.0f} % of the units differ from their shuffles".format(*differ) in WORDS
    assert s["turns differ"][1] == t["turns differ"][1] == 0
    alone = [x["turns, states of unit length"] for x in (s, t)]
    assert (
        "it is {:.1f} against {:.1f} ({:.1f} against {:.1f})".format(*alone[0], *alone[1]) in WORDS
    )


def test_what_is_said_of_planes():
    s, t = (one["summary"] for one in BOTH)
    held = [100 * sum(x["explained"]) for x in (s, t)]
    assert "hold {:.0f} % of the variance on wikitext2 and {:.0f} % on".format(*held) in WORDS
    back = [100 * x["given back"][place] for place in (0, 1) for x in (s, t)]
    said = "gives back {:.0f} % and {:.0f} % of texts that it has not seen, two components "
    assert (said + "{:.0f} % and {:.0f} %").format(*back) in WORDS
    at = s["given back at, autoencoder"]
    assert "best ({:.2f}, {:.2f} and {:.2f} by thirds)".format(*at) in WORDS
    within = WIKI["curves"]["explained_within, autoencoder"]
    assert "({:.0f} and {:.0f}: these states".format(*within[:2]) in WORDS
    assert f"and {by_thirds(within[3:58])} from sublayer 3 to 57" in WORDS
    norm = WIKI["curves"]["norm"]
    assert norm[-1] > 200 * norm[1]


def test_what_is_said_of_teleportation():
    near = [one["teleportation"]["own rest, 3 spreads"] for one in BOTH]
    whole = [one["teleportation"]["inverse of the projection, whole plane"] for one in BOTH]
    share = [[f"{100 * value:.0f}" for value in one["inward_share"]] for one in near]
    assert share[0][1:3] == share[1][1:3] == ["100", "100"]
    assert "halved ({:.2f} and {:.2f} on wikitext2, {:.2f} and {:.2f} on tinystories)".format(
        *(value for one in near for value in one["contraction"][1:3])
    ) in WORDS  # fmt: skip
    assert (
        f"it is {share[0][3]} %, at 48 {share[0][4]} % ({share[1][3]} % and {share[1][4]} %"
        in WORDS
    )
    assert f"mostly does not ({share[0][0]} % and {share[1][0]} %)" in WORDS
    far = WIKI["teleportation"]["inverse of the projection, 3 spreads"]
    assert f"is {100 * far['inward_share'][3]:.0f} % instead of {share[0][3]} %" in WORDS
    assert f"distances grow by {far['contraction'][0]:.0f}," in WORDS
    (wiki, stories), (far, off) = ([w[n] for w in whole] for n in ("basin_radius", "farthest"))
    assert wiki[1] == far[1]
    assert f"grid on wikitext2 and {stories[1]:.0f} of {off[1]:.0f} on tinystories" in WORDS
    said = f"that of 24 {wiki[2]:.0f} of {far[2]:.0f} and {stories[2]:.0f} of {off[2]:.0f}."
    assert said in WORDS
    assert wiki[3] == wiki[4] == stories[3] == 0 < stories[4]
    inward = [100 * share for share in whole[0]["inward_share"][3:]]
    assert "{:.0f} % and {:.0f} % of all points are inward there".format(*inward) in WORDS
    assert "last of eight equal rings" in WORDS
    away = [100 * (1 - value) for one in whole for value in one["inward_share"][1:3]]
    assert f"{min(away):.0f} to {max(away):.0f} % of the points do not come nearer" in WORDS


def test_what_is_said_of_cost():
    cost = NUMBERS["cost"]
    assert "prefill {:.0f} and {:.0f} s".format(*cost["prefill"]) in WORDS
    ratio = [d / p for d, p in zip(cost["dynamics"], cost["prefill"], strict=True)]
    assert "{:.0f} and {:.0f} s, {:.1f} and {:.1f} times".format(*cost["dynamics"], *ratio) in WORDS
    assert max(ratio) < 3


def test_a_stage_that_is_kept_is_not_made_again(tmp_path):
    made = []

    def make():
        made.append(1)
        return xr.Dataset({"x": ("n", [1.0, 2.0])})

    for _ in range(2):
        found = script.kept(tmp_path / "new", "stories_5", "own rest, 3 spreads", make)
        np.testing.assert_array_equal(found["x"], [1.0, 2.0])
    assert made == [1]
    script.kept(tmp_path / "new", "stories_6", "own rest, 3 spreads", make)  # of other texts
    assert made == [1, 1]
