"""docs/dynamics.md: what it says was found is what the pages' stored numbers say."""

import json
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"
WORDS = " ".join((DOCS / "dynamics.md").read_text("utf-8").split())


def numbers(name: str) -> dict:
    return json.loads((DOCS / "dynamics" / f"{name}.json").read_text("utf-8"))


def test_what_is_said_of_spectra():
    models = numbers("spectra")["models"]
    trained, untrained = models["SmolLM2"], models["SmolLM2, untrained"]
    assert f"effective rank of {trained['rank'] * trained['width']:.0f} of 576" in WORDS
    assert f"with random weights {100 * untrained['rank']:.0f} % of the width" in WORDS


def test_what_is_said_of_lenses():
    read = numbers("lens")["read"]["movies"]
    about, state = (read["kl"][name][20] for name in ("J-lens about the mean", "mean state"))
    assert f"to {about:.2f} nats on movies, where the mean state alone has {state:.2f}" in WORDS
    plain, mean = (read["agreement"][name][20] for name in ("J-lens", "mean state"))
    assert plain < mean


def test_every_measure_has_a_row():
    from depthsys.study.measures import MEASURES

    for name in MEASURES:
        assert f"| `{name}` |" in WORDS
