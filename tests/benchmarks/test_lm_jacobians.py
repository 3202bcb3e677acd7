"""Full Jacobians of one block against whole-sequence autograd, and of all against their floor."""

import pytest
import torch

from tests.benchmarks import lm_setup, lm_slow, measure

ONE = "2a. Full Jacobian of one block, one prompt, time (wanted: 30 times)"
ALL = "5. Full Jacobians of all layers (wanted: 2 times the floor)"


def vectorized_fits(n_features: int, n_tokens: int) -> bool:
    """Whether all H backward passes at once fit: about 16 numbers per row, token and feature."""
    need = 4 * 16 * n_features**2 * n_tokens
    return need < 0.7 * measure.available_bytes(lm_setup.DEVICE)


@pytest.mark.parametrize("n_tokens", lm_setup.SIZES.tokens)
def test_jacobian_of_one_block(subject, record, n_tokens):
    """`torch.autograd.functional.jacobian` as it is, and with ``vectorize=True``."""
    model, ids = subject.model, subject.ids(1, n_tokens)
    layer = model.n_layers // 2
    block = model.run(ids).batches[0].blocks[layer]
    last_token, hidden = lm_slow.whole_sequence_map(model.hf, subject.tensor(ids), layer)
    sides = {
        "depthsys": lambda _: block.jacobian()[0],
        "autograd": lambda _: lm_slow.whole_sequence_jacobian(last_token, hidden, vectorize=False),
    }
    if vectorized_fits(model.n_features, n_tokens):
        sides["vectorized"] = lambda _: lm_slow.whole_sequence_jacobian(
            last_token, hidden, vectorize=True
        )
    found = measure.in_turns(sides, lm_setup.DEVICE, budget=lm_setup.SIZES.budget)
    ours = found.pop("depthsys")
    row = subject.columns | {"T": str(n_tokens), "depthsys": f"{ours.seconds:.3g} s"}
    for name in ("autograd", "vectorized"):
        row |= {name: "does not fit", f"{name} / depthsys": "", f"{name}: difference": ""}
        if name in found:
            side = found[name]
            difference = measure.relative_difference(ours.outputs[-1], side.outputs[-1])
            lm_setup.check_difference("derivatives", subject.precision, difference)
            row |= {
                name: f"{side.seconds:.3g} s",
                f"{name} / depthsys": f"{side.seconds / ours.seconds:.1f}",
                f"{name}: difference": f"{difference:.0e}",
            }
    record(ONE, row)


# their cost hardly depends on T: four prompts at the shortest only
CASES = [(lm_setup.SIZES.tokens[0], 4)] + [(n_tokens, 1) for n_tokens in lm_setup.SIZES.tokens]


@pytest.mark.parametrize(("n_tokens", "n_prompts"), CASES)
def test_jacobians_of_all_layers(subject, record, n_tokens, n_prompts):
    """Floor: H directions through 12 H^2 weights, 24 H^3 flops, per layer and prompt."""
    model = subject.model
    H, L = model.n_features, model.n_layers
    run = model.run(subject.ids(n_prompts, n_tokens))
    blocks = [block for batch in run.batches for block in batch.blocks]
    bare = measure.products(model.hf, H)
    v = torch.randn(1, H, device=model.device, dtype=model.dtype)
    probed = blocks[L // 2]

    def jacobians(_):
        for block in blocks:
            J = block.jacobian()
            if block is probed:
                image = v @ J.mT
        return image

    sides = measure.in_turns(
        {"depthsys": jacobians, "bare": lambda _: bare()},
        lm_setup.DEVICE,
        budget=lm_setup.SIZES.budget,
    )
    image = sides["depthsys"].outputs[-1]
    difference = measure.relative_difference(image, probed.jvp(v))
    lm_setup.check_difference("derivatives", subject.precision, difference)
    rate = measure.product_flops(model.hf, H) / sides["bare"].seconds
    floor = n_prompts * L * 24 * H**3 / rate
    record(
        ALL,
        subject.columns
        | {
            "T": str(n_tokens),
            "prompts": str(n_prompts),
            "depthsys": f"{sides['depthsys'].seconds:.3g} s",
            "rate of products (H rows)": f"{rate / 1e9:.0f} Gflop/s",
            "floor": f"{floor:.3g} s",
            "depthsys / floor": f"{sides['depthsys'].seconds / floor:.2f}",
            "J v against jvp": f"{difference:.0e}",
        },
    )
