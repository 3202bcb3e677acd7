"""States that are put elsewhere, against whole sequences with hooks."""

import numpy as np
import pytest
import torch
import xarray as xr

from depthsys import lm
from depthsys.lm.frozen import FrozenBlock
from depthsys.lm.teleportation import _by_ring, basin_radius
from tests.conftest import tiny_gpt2, tiny_llama
from tests.lm import families, whole_sequence
from tests.lm.conftest import labelled_ids, no_block_runs

STARTS = [0, 1, 2, 3]
ATTENTION = {"gpt2": "attn", "llama": "self_attn"}


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def made(request):
    make = {"gpt2": tiny_gpt2, "llama": tiny_llama}[request.param]
    model, texts = lm.DepthModel(make().double()), labelled_ids(9, 6)
    dynamics = lm.residual_dynamics(model, texts, n_units=0, n_shuffles=0, n_components=4)
    return request.param, model, texts, dynamics


def flown(hf, part: str, ids: list[int], start: int, state, stop: int) -> np.ndarray:
    """State at sublayer ``stop`` when the last token's at ``start`` is replaced.

    Between the parts the attention is made to write what leads there.
    """
    blocks, seen, handles = whole_sequence.blocks(hf), {}, []

    def entering(at):
        def hook(module, args, kwargs):
            hidden = (args[0] if args else kwargs["hidden_states"]).clone()
            if at == start:
                hidden[:, -1] = torch.as_tensor(state)
            seen[at] = hidden[0, -1]
            return (
                ((hidden, *args[1:]), kwargs)
                if args
                else (args, {**kwargs, "hidden_states": hidden})
            )

        return hook

    def attended(at):
        def hook(module, args, output):
            written = output[0].clone()
            if at == start:
                written[:, -1] = torch.as_tensor(state) - seen[at - 1]
            seen[at] = seen[at - 1] + written[0, -1]
            return (written, *output[1:])

        return hook

    for number, block in enumerate(blocks):
        handles.append(block.register_forward_pre_hook(entering(2 * number), with_kwargs=True))
        handles.append(getattr(block, part).register_forward_hook(attended(2 * number + 1)))

    def left(module, args, output):
        seen[2 * len(blocks)] = (output[0] if isinstance(output, tuple) else output)[0, -1]

    handles.append(blocks[-1].register_forward_hook(left))
    with torch.no_grad():
        hf(torch.tensor([ids]), use_cache=False)
    for handle in handles:
        handle.remove()
    return seen[stop].numpy()


@pytest.mark.parametrize("n_sublayers", [2, 3])
@pytest.mark.parametrize("outside", ["mean", "own"])
def test_ends_are_those_of_whole_sequences(made, outside, n_sublayers):
    name, model, texts, dynamics = made
    found = lm.teleport(
        model, texts, dynamics, starts=STARTS, n_sublayers=n_sublayers, grid=2, outside=outside
    )
    centre, axes = dynamics["centre"].values, dynamics["axes"].values[:2]
    own = lm.sublayer_states(model, texts).values
    for prompt in (0, 4):
        for number, start in enumerate(STARTS):
            for row in (0, 1):
                p = found["begin"].values[number, row, 1]
                state = centre + p @ axes
                if outside == "own":
                    x = own[start, prompt]
                    state = x + (p - (x - centre) @ axes.T) @ axes
                stop = start + n_sublayers
                ids = texts.ids[prompt]
                end = flown(model.hf, ATTENTION[name], ids, start, state, stop)
                here = found["end"].isel(start=number, prompt=prompt, row=row, column=1)
                expected = (end - centre) @ axes.T
                np.testing.assert_allclose(here, expected, rtol=1e-7, atol=1e-8)
            mine = (own[start, prompt] - centre) @ axes.T
            np.testing.assert_allclose(found["own_begin"][number, prompt], mine, atol=1e-9)
            if stop < len(own):
                mine = (own[stop, prompt] - centre) @ axes.T
                np.testing.assert_allclose(found["own_end"][number, prompt], mine, atol=1e-9)


def test_who_stays_at_his_place_ends_where_he_would(made):
    """With the prompt's own part outside the plane, its own place in it leads to its own end."""
    _, model, texts, dynamics = made
    alone = texts.ids[3:4]
    here = lm.teleport(model, alone, dynamics, starts=[1], n_sublayers=4)["own_begin"][0, 0].values
    # a grid of two points along each component, whose first corner is that place
    score = np.stack([here, here + 1.0])[None].repeat(2 * model.n_layers, axis=0)
    plane = dynamics[["centre", "axes"]].isel(component=slice(2))
    plane["score"] = (("sublayer", "trajectory", "component"), score)
    options = {"starts": [1], "n_sublayers": 4, "grid": 2, "outside": "own"}
    found = lm.teleport(model, alone, plane, **options)
    ends = found["end"].isel(start=0, prompt=0)
    np.testing.assert_allclose(ends[0, 0], found["own_end"][0, 0], atol=1e-9)
    assert not np.allclose(ends[1, 1], found["own_end"][0, 0], atol=1e-3)


def test_grids(made):
    _, model, texts, dynamics = made
    options = {"starts": [0, 2], "n_sublayers": 2, "grid": 3}
    whole = lm.teleport(model, texts, dynamics, **options)["begin"]
    score = dynamics["score"].values[..., :2]
    for axis in (0, 1):
        values = whole.isel(component=axis)
        assert float(values.min()) == pytest.approx(score[..., axis].min())
        assert float(values.max()) == pytest.approx(score[..., axis].max())
    np.testing.assert_allclose(whole[0], whole[1])
    own = lm.teleport(model, texts, dynamics, span=2.0, **options)["begin"]
    for number, start in enumerate((0, 2)):
        middle = score[start].mean(0)
        np.testing.assert_allclose(own[number, 1, 1], middle, atol=1e-12)
        reach = np.sqrt(((score[start] - middle) ** 2).sum(-1).mean())
        np.testing.assert_allclose(own[number, 2, 2] - middle, 2 * reach, rtol=1e-9)
        # columns run along the first component
        assert own[number, 0, 2, 1] == own[number, 0, 0, 1]


def test_a_grid_about_one_place_is_a_hundredth_of_its_length(made):
    _, model, texts, dynamics = made
    one = dynamics.isel(trajectory=[0, 0])
    one["score"] = one["score"] * (1 + 1e-7 * xr.DataArray([0, 1], dims="trajectory"))  # rounding
    found = lm.teleport(model, texts, one, starts=[0, 2], n_sublayers=2, grid=3, span=2.0)
    for number, start in enumerate((0, 2)):
        place = one["score"].values[start].mean(0)[:2]
        begin = found["begin"].values[number]
        np.testing.assert_allclose(begin[1, 1], place)
        length = np.linalg.norm(place)
        np.testing.assert_allclose(begin[2, 2] - place, 0.02 * length, rtol=1e-6)
        # where prompts differ it is by their spread
        spread = lm.teleport(model, texts, dynamics, starts=[start], n_sublayers=2, span=2.0)
        assert np.ptp(spread["begin"].values) > 0.05 * length


def test_rings_by_hand():
    distance = np.array([[[[0.0, 1.0], [1.5, 4.0]]]])
    inward = np.array([[[[True, True], [False, True]]]])
    counts, shares = _by_ring(distance, inward, np.array([[1.0, 2.0, 3.0, 4.0]]))
    assert counts.tolist() == [[2, 1, 0, 1]]
    np.testing.assert_array_equal(shares, [[1.0, 0.0, np.nan, 1.0]])
    assert basin_radius(np.array([[1.0, 2.0, 3.0, 4.0]]), shares).tolist() == [1.0]
    # a distance that is the edge but for rounding is inside
    counts, _ = _by_ring(distance * (1 + 1e-14), inward, np.array([[1.0, 2.0, 3.0, 4.0]]))
    assert counts.tolist() == [[2, 1, 0, 1]]
    empty_between = np.array([[0.6, np.nan, 0.5, 0.4]])
    assert basin_radius(np.array([[1.0, 2.0, 3.0, 4.0]]), empty_between).tolist() == [3.0]
    assert basin_radius(np.array([[1.0]]), np.array([[0.2]])).tolist() == [0.0]


def test_summaries_are_those_of_the_points(made):
    _, model, texts, dynamics = made
    found = lm.teleport(model, texts, dynamics, starts=[0, 2], n_sublayers=4, grid=5)
    after = np.linalg.norm(found["end"].values - found["own_end"].values[:, :, None, None], axis=-1)
    before = np.linalg.norm(
        found["begin"].values[:, None] - found["own_begin"].values[:, :, None, None], axis=-1
    )
    np.testing.assert_array_equal(found["inward"], after < before)
    for number in (0, 1):
        assert float(found["inward_share"][number]) == (after < before)[number].mean()
        ratio = (after / before)[number]
        assert float(found["contraction"][number]) == pytest.approx(np.median(ratio))
        assert int(found["points"][number].sum()) == 9 * 25


def test_a_model_that_does_nothing_leaves_all_where_it_is(made):
    hf = tiny_gpt2().double()
    for name, parameter in hf.named_parameters():
        if "c_proj" in name:
            parameter.data.zero_()
    model, texts = lm.DepthModel(hf), labelled_ids(9, 6)
    still = lm.residual_dynamics(model, texts, n_units=0, n_shuffles=3, n_components=4)
    assert still["turns"].isnull().all()
    assert still["prompt_turns"].isnull().all()
    plane = made[3].drop_attrs()  # of another model
    found = lm.teleport(model, texts, plane, starts=[0, 1], n_sublayers=3, grid=3)
    begin = found["begin"].expand_dims(prompt=9).transpose(*found["end"].dims)
    np.testing.assert_allclose(found["end"], begin, atol=1e-9)
    np.testing.assert_allclose(found["contraction"], 1)


def test_a_plane_of_another_model_is_refused(made):
    model, texts, dynamics = made[1:]
    hf = tiny_gpt2().double()
    next(hf.parameters()).data.mul_(1.1)
    other = lm.DepthModel(hf)
    with pytest.raises(ValueError, match="`dynamics` must be of the model; got model_fingerprint"):
        lm.teleport(other, texts, dynamics, starts=[0], n_sublayers=2)
    for wrong, said in (
        (dynamics.isel(component=[0]), "must have two components"),
        (dynamics.isel(sublayer=slice(2)), "features and 6 sublayers of the model"),
    ):
        with pytest.raises(ValueError, match=said):
            lm.teleport(model, texts, wrong, starts=[0], n_sublayers=2)
    for name in ("centre", "axes", "score"):
        with pytest.raises(ValueError, match=f"`dynamics` must be finite; got NaN .* in {name}"):
            lm.teleport(model, texts, dynamics.assign({name: dynamics[name] * np.nan}))
    whole = lm.teleport(model, texts, dynamics, span=np.float32(2), grid=2)
    xr.testing.assert_equal(whole, lm.teleport(model, texts, dynamics, span=2.0, grid=2))
    for span in (None, [1.0], True):
        with pytest.raises(ValueError, match="`span` must be 'trajectory' or a number > 0"):
            lm.teleport(model, texts, dynamics, starts=[0], n_sublayers=2, span=span)


def test_shards_and_chunks_give_the_same(made, monkeypatch):
    _, model, texts, dynamics = made
    options = {"starts": STARTS, "n_sublayers": 2, "grid": 4}
    whole = lm.teleport(model, texts, dynamics, **options)
    parts = lm.teleport(lm.ShardedRun(model, texts, shard=4), dynamics, **options)
    np.testing.assert_allclose(parts["end"], whole["end"], rtol=1e-9)
    monkeypatch.setattr("depthsys.lm.teleportation.ROWS", 9)
    chunks = lm.teleport(model, texts, dynamics, **options)
    np.testing.assert_allclose(chunks["end"], whole["end"], rtol=1e-9)


def test_rows(made, monkeypatch):
    """A row per prompt, start, point and layer; one more at each end between parts."""
    _, model, texts, dynamics = made
    rows, call = [], FrozenBlock.__call__
    run = model.run(texts)
    monkeypatch.setattr(
        FrozenBlock,
        "__call__",
        lambda block, x: (rows.append(x.shape[0] * x.shape[1]), call(block, x))[1],
    )
    options = {"starts": [0, 2], "n_sublayers": 4, "grid": 3}
    lm.teleport(run, dynamics, **options)
    assert sum(rows) == len(texts) * 2 * 9 * 2
    rows.clear()
    lm.teleport(run, dynamics, **options | {"starts": [1]})
    # half, whole, half; and the own states at both ends and before the join
    assert sum(rows) == len(texts) * (3 * 9 + 3)


def test_results_can_be_stored(made, tmp_path):
    _, model, texts, dynamics = made
    flown = lm.teleport(model, texts, dynamics, n_sublayers=2, grid=2)
    for number, found in enumerate((dynamics, flown)):
        path = tmp_path / f"{number}.nc"
        found.to_netcdf(path, engine="h5netcdf")
        with xr.open_dataset(path, engine="h5netcdf") as kept:
            xr.testing.assert_allclose(kept.load(), found)


def test_five_starts_by_default(made):
    _, model, texts, dynamics = made
    found = lm.teleport(model, texts, dynamics, n_sublayers=2, grid=2)
    assert found["start"].values.tolist() == [0, 2, 4]


def test_half_of_the_sublayers_by_default(made):
    _, model, texts, dynamics = made
    found = lm.teleport(model, texts, dynamics, grid=2)  # three layers
    xr.testing.assert_equal(found, lm.teleport(model, texts, dynamics, grid=2, n_sublayers=2))
    assert found.attrs["n_sublayers"] == 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"starts": [5]}, "`starts` must be different sublayers from 0 to 4; got"),
        ({"starts": [0, 0]}, "`starts` must be different"),
        ({"starts": []}, "`starts` must be different"),
        ({"starts": [0.5]}, "`starts` must be different"),
        ({"n_sublayers": 7}, "`n_sublayers` must be a whole number >= 1 and <= 6; got 7"),
        ({"n_sublayers": 0}, "`n_sublayers` must be"),
        ({"grid": 1}, "`grid` must be a whole number >= 2; got 1"),
        ({"n_radii": 0}, "`n_radii` must be a whole number >= 1; got 0"),
        ({"outside": "zero"}, "`outside` must be one of"),
        ({"span": "all"}, "`span` must be 'trajectory' or a number; got 'all'"),
        ({"span": -1.0}, "`span` must be 'trajectory' or a number > 0; got -1.0"),
    ],
)
def test_what_is_refused_runs_no_prompt(made, monkeypatch, options, words):
    _, model, texts, dynamics = made
    no_block_runs(monkeypatch)
    with pytest.raises(ValueError, match=words):
        lm.teleport(model, texts, dynamics, **{"n_sublayers": 2, **options})


def test_other_kinds_are_refused(made):
    _, model, texts, dynamics = made
    with pytest.raises(TypeError, match="`dynamics` must be residual dynamics"):
        lm.teleport(model, texts, xr.Dataset())
    for cut in ({"feature": slice(5)}, {"sublayer": slice(4)}):
        with pytest.raises(ValueError, match="must have the 16 features and 6 sublayers of the mo"):
            lm.teleport(model, texts, dynamics.isel(cut), n_sublayers=2)
    with pytest.raises(ValueError, match="`dynamics` must have two components"):
        lm.teleport(model, texts, dynamics.isel(component=[0]), n_sublayers=2)
    with pytest.raises(ValueError, match="`dynamics` must be of the model; got model_fingerprint"):
        lm.teleport(model, texts, dynamics.assign_attrs(model_fingerprint="v2:0"), n_sublayers=2)


def test_nothing_reads_between_parallel_parts():
    model = lm.DepthModel(families.make("gpt_neox"))
    texts = labelled_ids(9, 6)
    dynamics = lm.residual_dynamics(model, texts, n_units=0, n_shuffles=0, n_components=2)
    with pytest.raises(ValueError, match="`starts` must be even in a model whose parts are parall"):
        lm.teleport(model, texts, dynamics, starts=[1], n_sublayers=2)
    assert lm.teleport(model, texts, dynamics, starts=[0], n_sublayers=2).sizes["start"] == 1


def test_states_that_overflow_are_named(made):
    _, model, texts, dynamics = made
    with pytest.raises(FloatingPointError, match="that were put on the grid overflow"):
        lm.teleport(model, texts, dynamics.assign(score=dynamics["score"] * 1e300), n_sublayers=2)
