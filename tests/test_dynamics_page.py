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
    shares = [100 * row["rank"] for row in (trained, untrained)]
    assert "{:.0f} % of the width, against {:.0f} % with random weights".format(*shares) in WORDS
    skip = numbers("spectra")["skip"].values()
    middle = [row["agreement"]["without the first and the last two"] for row in skip]
    errors = [one["relative_l2"][0] for one in middle]
    assert "to a relative L2 of {:.2f} and {:.2f}".format(*errors) in WORDS
    curves = [(row["curves"]["predicted"], row["curves"]["shift"]) for row in skip]
    wrong = [sum(p[k] * r[k] < 0 for k in range(2, 28)) for p, r in curves]
    assert wrong == [1, 3]
    assert "wrong sign at one and three of them" in WORDS


def test_what_is_said_of_detached_maps():
    found = numbers("detached")
    agreed = found["models"]["SmolLM2-135M, movies"]["agreement"]
    errors = [agreed[f"detached, {name}"]["relative_l2"]["all"][0] for name in ("up", "gate")]
    assert "relative L2 {:.2f} and {:.2f} on movies".format(*errors) in WORDS
    energies = found["steering"]["movies"]["energies"]
    more = sorted(100 * (energies[f"detached, {n}"]["multiple"] - 1) for n in ("up", "gate"))
    assert "costs {:.0f} to {:.0f} % more energy".format(*more) in WORDS


def test_what_is_said_of_the_residual_stream_and_of_coupling():
    near = [numbers("residual")[name]["teleportation"]["own rest, 3 spreads"]["contraction"][1:3]
            for name in ("wikitext2", "tinystories")]  # fmt: skip
    shrunk = [value for pair in near for value in pair]
    assert f"shrink to {min(shrunk):.2f} to {max(shrunk):.2f} in six layers" in WORDS
    coupling = numbers("coupling")
    trained, untrained = (
        coupling[name]["signed, K = 10"][0] for name in ("SmolLM2-135M", "SmolLM2-135M, untrained")
    )
    assert f"by {trained:.2f} on average, where 0 is coupled" in WORDS
    assert f"untrained weights give {untrained:.2f}." in WORDS
    assert f"(R² {coupling['SmolLM2-135M']['from 2']['growth_r2'][0]:.2f} from depth 2 on)" in WORDS


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
