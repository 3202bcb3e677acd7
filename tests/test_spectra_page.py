"""docs/dynamics/spectra.md: its table and its words are those of the stored numbers."""

import importlib.util
import json
import re
from pathlib import Path

import numpy as np

from depthsys.report import markdown
from depthsys.report.page import between

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/dynamics/spectra.md").read_text("utf-8")
WORDS = " ".join(PAGE.split())
NUMBERS = json.loads((ROOT / "docs/dynamics/spectra.json").read_text("utf-8"))
spec = importlib.util.spec_from_file_location("spectra_page", ROOT / "examples/spectra_page.py")
script = importlib.util.module_from_spec(spec)
spec.loader.exec_module(script)
SKIP = {name: row["curves"] for name, row in NUMBERS["skip"].items()}
MOVIES = NUMBERS["spectra"]["movies"]


def ranged(values, digits=2) -> str:
    return f"{min(values):.{digits}f} to {max(values):.{digits}f}"


def test_the_table_is_that_of_the_numbers():
    assert between(PAGE, *script.MARKERS) == markdown(script.skip_table(NUMBERS["skip"]))


def test_the_agreement_of_curves_is_that_of_the_stored_ones():
    for row in NUMBERS["skip"].values():
        p, r = (np.array(row["curves"][name]) for name in ("predicted", "shift"))
        assert row["agreement"].keys() == script.PARTS.keys()
        for part, layers in script.PARTS.items():
            error = np.linalg.norm(p[layers] - r[layers]) / np.linalg.norm(r[layers])
            assert np.isclose(row["agreement"][part]["relative_l2"][0], error, rtol=2e-3)


def test_what_is_said_of_layers_left_out():
    later = [row["agreement"]["without the first two"] for row in NUMBERS["skip"].values()]
    errors, ranks = ([row[n][0] for row in later] for n in ("relative_l2", "spearman"))
    assert "mean curves {:.2f} and {:.2f}, Spearman {:.2f} and {:.2f}".format(
        *errors, *ranks
    ) in WORDS  # fmt: skip
    middle = [row["agreement"]["without the first and the last two"]["relative_l2"][0]
              for row in NUMBERS["skip"].values()]  # fmt: skip
    assert "2 to 27 alone are predicted to {:.2f} and {:.2f}".format(*middle) in WORDS
    ends, wrong, most = [], [], []
    for curves in SKIP.values():
        p, r = (np.array(curves[name]) for name in ("predicted", "shift"))
        ends.append(100 * (r[28:] ** 2).sum() / (r[2:] ** 2).sum())
        wrong.append([layer for layer in range(2, 28) if p[layer] * r[layer] < 0])
        most.append(np.abs(r[2:28]).max())
    assert "{:.0f} % of the squares of the movies' curve and {:.0f} % of".format(*ends) in WORDS
    assert wrong == [[13], [6, 16, 21]]
    assert "at layer 13 of movies ({:.1f} predicted, {:.1f} really) and at 6, 16 and 21".format(
        *(SKIP["movies"][name][13] for name in ("predicted", "shift"))
    ) in WORDS  # fmt: skip
    small = [abs(SKIP[name]["shift"][at]) for name, row in zip(SKIP, wrong, strict=True)
             for at in row]  # fmt: skip
    said = f"({max(small):.1f} at most, where the largest of these layers are "
    assert said + "{:.0f} and {:.0f})".format(*most) in WORDS
    assert "layer 27 of movies, {:.0f} predicted for {:.0f}.".format(
        *(SKIP["movies"][name][27] for name in ("predicted", "shift"))
    ) in WORDS  # fmt: skip
    updates = [value for curves in SKIP.values() for value in curves["update"][2:]]
    assert f"{100 * min(updates):.0f} to {100 * max(updates):.0f} % of the state" in WORDS
    assert {f"{c['update'][0]:.0f} and {c['update'][1]:.1f} times" for c in SKIP.values()} == {
        re.search(r"updates there are (14 and 1\.1 times)", WORDS)[1]
    }
    movies, amazon = SKIP["movies"], SKIP["amazon"]
    wrong = [movies["predicted"][1], movies["shift"][1]]
    assert "layer 1 on movies ({:.0f} predicted, {:.0f} really)".format(*wrong) in WORDS
    both = [*amazon["predicted"][:2], *amazon["shift"][:2]]
    assert "({:.1f} and {:.1f} predicted, {:.1f} and {:.1f} really)".format(*both) in WORDS
    for curves in (movies, amazon):
        assert "{:.2f} and {:.2f}".format(curves["kl"][24], curves["kl"][27]) in WORDS
    assert f"{min(movies['kl'][2:24]):.3f} to {max(movies['kl'][2:24]):.2f} nats" in WORDS
    assert f"({min(amazon['kl'][2:24]):.3f} to {max(amazon['kl'][2:24]):.2f} on amazon)" in WORDS
    for curves in (movies, amazon):
        for ends in (curves["kl"][:2], curves["kl"][-2:]):
            assert "{:.1f} and {:.1f}".format(*ends) in WORDS
        assert curves["predicted"][-1] == curves["shift"][-1]


def test_what_is_said_of_spectra():
    layer, update, prompt = MOVIES["layer"], MOVIES["update"], MOVIES["prompt"]
    assert [f"{s['layer']['rank_to_end'][0]:.0f}" for s in NUMBERS["spectra"].values()] == [
        "70", "70",
    ]  # fmt: skip
    own = [f"{s['prompt']['rank_to_end'][0]:.0f}" for s in NUMBERS["spectra"].values()]
    assert "({} and {} for the median".format(*own) in WORDS
    d, s = layer["departure"], layer["symmetric_share"]
    assert f"{d[0]:.2f} at layer 0, {ranged(d[1:23])} at layers 1 to 22" in WORDS
    assert f"{ranged(d[23:29])} at 23 to 28, and {d[29]:.2f} again" in WORDS
    assert f"{s[0]:.2f} over {ranged(s[1:23])} to {ranged(s[23:29])}, and back to {s[29]:.2f}" in (
        WORDS
    )
    u = update["departure"]
    assert int(np.argmin(u)) == 11
    assert f"{u[11]:.2f} at layer 11, {ranged(u[23:])} at layers 23 to 29" in WORDS
    assert int(np.argmax(update["symmetric_share"])) == 11
    assert f"largest there ({update['symmetric_share'][11]:.2f})" in WORDS
    assert f"{100 * MOVIES['turned'][9]:.0f} % of the eigenvalues of layer 9's" in WORDS
    assert max(MOVIES["turned"][25:]) < 0.5 < min(MOVIES["turned"][1:25])
    assert f"{layer['modal_growth'][-1]:.2g}" == "6.4e+05"
    start = layer["growth_from_start"]
    assert f"the norm of the product {start[-1]:.0f} ({start[1]:.0f} after" in WORDS
    assert f"{start[2]:.0f} at depth 2 against {layer['modal_growth'][2]:.1f}" in WORDS
    assert f"grows by {prompt['growth_from_start'][-1]:.0f}, and has" in WORDS
    assert f"departures of {ranged(prompt['departure'][1:23])}" in WORDS


def test_what_is_said_of_radii():
    radii = NUMBERS["radii"]
    assert between(PAGE, *script.RADII) == markdown(script.radii_table(radii))
    # the product of the largest is the growth that eigenvalues alone would give
    assert np.isclose(np.prod(radii["layer"]["1"]), MOVIES["layer"]["modal_growth"][-1], rtol=2e-3)
    middle, largest = (radii["layer"][name] for name in ("0.5", "1"))
    assert f"median modulus is {ranged(middle[1:23])} at layers 1 to 22" in WORDS
    assert int(np.argmin(middle)) == 9
    assert "least at layer 9" in WORDS
    assert max(middle[1:25]) < 1 < min(middle[25:])
    assert f"above 1 ({ranged(middle[25:])}), and at layer 0 it is {middle[0]:.2f}" in WORDS
    assert f"largest is {ranged(largest[1:])} behind layer 0, and {largest[0]:.2f} there" in WORDS


def test_what_is_stored_of_other_models_stays():
    stored = {"models": {"mine": 1, script.TRAINED: 2}}
    assert script.with_stored(stored, {script.TRAINED: 3}) == {script.TRAINED: 3, "mine": 1}
    assert script.with_stored({}, {"a": 1}) == {"a": 1}


def test_what_is_said_of_other_models():
    rows = NUMBERS["models"]
    table = markdown(script.model_table(rows))
    assert between(PAGE, *script.OF_MODELS) == table
    trained, untrained = rows[script.TRAINED], rows[script.UNTRAINED]
    assert (
        f"{100 * untrained['rank']:.0f} % of the width, trained {100 * trained['rank']:.0f} %"
        in (WORDS)
    )
    others = [
        row["rank"] for name, row in rows.items() if name not in (script.TRAINED, script.UNTRAINED)
    ]
    assert trained["rank"] < min(others) <= max(others) < untrained["rank"]
    first, last = untrained["departure layer"], untrained["symmetric_share layer"]
    assert "departure {:.2f} to {:.2f}, symmetric share {:.2f} to {:.2f}".format(*first, *last) in (
        WORDS
    )
    assert "departure {:.2f} to {:.2f}), and".format(*untrained["departure update"]) in WORDS
    assert {f"{v:.2f}" for v in untrained["symmetric_share update"]} == {"0.50"}
    assert "symmetry, {:.2f} to {:.2f}, and".format(*trained["symmetric_share update"]) in WORDS
    turned = (100 * row["turned"][0] for row in (trained, untrained))
    assert f"{next(turned):.0f} % of the eigenvalues of the first third's updates" in WORDS
    assert f"{next(turned):.0f} % untrained" in WORDS
    small = rows["gpt280K_tinystories"]
    assert small["departure layer"][0] < small["departure layer"][1]
    assert max(row["skip"][0] for row in rows.values()) == small["skip"][0]
    assert f"({untrained['skip'][0]:.2f} without the first two layers)" in WORDS
    assert f"({small['skip'][0]:.2f})" in WORDS
    d = trained["departure layer"]
    assert f"departure {d[0]:.2f} in the first third, {d[1]:.2f} in the last" in WORDS
    u = trained["departure update"]
    assert f"updates: {u[0]:.2f} and {u[1]:.2f} |" in WORDS
    assert f"effective rank untrained: {100 * untrained['rank']:.0f} % of the width" in WORDS
    assert "blocks untrained: {:.2f} to {:.2f} |".format(*untrained["departure layer"]) in WORDS
