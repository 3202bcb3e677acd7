"""How much goes through a block at once: the CPU's numbers, and what an accelerator has free."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from depthsys import lm
from depthsys.lm import at_once
from depthsys.lm.at_once import MOST, MOST_PADDING, Sizes
from depthsys.lm.batches import BATCH_COST, PADDING, length_batches
from depthsys.lm.memory import free_on
from tests import card
from tests.conftest import TINY

GIB = 2**30
CPU = torch.device("cpu")
CARD = torch.device(card.setup(), 0)
# widest of an MLP, heads, weights of a block: the real shapes
SMOLLM2 = (1536, 9, 3_539_520), 576
GPT2_LARGE = (5120, 20, 19_677_440), 1280
LLAMA_8B = (14336, 32, 218_112_000), 4096


@pytest.fixture
def free(monkeypatch):
    """Say how many bytes the card has free."""

    def set_free(size):
        monkeypatch.setattr(type(torch.get_device_module(CARD)), "free", size)

    return set_free


def batches(shape, lengths, device=CARD, dtype=torch.float32, padded=True):
    of_block, width = shape
    rules = at_once.sequences(Sizes(device, *of_block), width, dtype)
    return length_batches(lengths, padded=padded, **vars(rules))


def states(width, device, dtype=torch.float32):
    return torch.zeros(1, width, dtype=dtype).to(device)


def short_texts(count=400):
    """Lengths like those of sentences: 3 to 60 tokens."""
    rng = np.random.default_rng(0)
    return np.clip(rng.lognormal(3.1, 0.5, size=count), 3, 60).astype(int).tolist()


# ------------------------------------------------------------------------------ the CPU


@pytest.mark.parametrize(
    ("shape", "tokens", "prompts"), [(SMOLLM2, 1024, 32), (LLAMA_8B, 1024, 32)]
)
def test_the_numbers_of_the_cpu_are_fixed(shape, tokens, prompts):
    of_block, width = shape
    rules = at_once.sequences(Sizes(CPU, *of_block), width, torch.float32)
    expected = {"max_tokens": tokens, "max_prompts": prompts}
    assert vars(rules) == expected | {"most_padding": PADDING, "batch_cost": BATCH_COST}
    sizes, x = Sizes(CPU, *of_block), states(width, CPU)
    assert at_once.replay_rows(sizes, x, 20, 4096) == 4096
    assert at_once.product_rows(sizes, x, 20) is None
    assert at_once.whole_jacobians(x, 50) == 50


def test_narrow_models_run_more_prompts_together_on_the_cpu():
    rules = at_once.sequences(Sizes(CPU, 400, 4, 10**5), 128, torch.float32)
    assert (rules.max_tokens, rules.max_prompts) == (4096, 128)


# ----------------------------------------------------------------------- an accelerator


def test_400_short_texts_make_two_batches_at_most(free):
    free(70 * GIB)
    lengths = short_texts()
    assert len(batches(SMOLLM2, lengths, CPU)) > 8
    assert len(batches(SMOLLM2, lengths)) <= 2
    # a small card, too: it is the launches that cost there
    free(5 * GIB)
    assert len(batches(SMOLLM2, lengths)) <= 2


def test_texts_of_one_task_make_two_batches_at_most(free, data):
    from transformers import AutoTokenizer

    texts = lm.read_texts(data / "tasks" / "sst2.csv").texts[:400]
    tokenizer = AutoTokenizer.from_pretrained(data / "weights" / "gpt2_6x128")
    lengths = [len(row) for row in tokenizer(list(texts))["input_ids"]]
    free(70 * GIB)
    assert len(batches(SMOLLM2, lengths)) <= 2


def test_32_prompts_of_a_large_model_are_one_batch(free):
    free(48 * GIB)  # 80 GB without the 30 GiB of weights in float32
    assert len(batches(LLAMA_8B, [128] * 32)) == 1


@pytest.mark.parametrize("shape", [SMOLLM2, GPT2_LARGE, LLAMA_8B])
@pytest.mark.parametrize("size", [GIB // 4, 2 * GIB, 6 * GIB, 70 * GIB])
def test_what_goes_through_at_once_fits(free, shape, size):
    """By the counted vectors of one block's forward pass, with nothing freed in between."""
    free(size)
    (widest, n_heads, _), width = shape
    for length in (8, 128, 1024):
        for batch in batches(shape, [length] * 600):
            # norm, q, k, v, attention, projection, sum, norm, output, sum; gate, up, act, product
            vectors = 10 * width + 4 * widest + 4 * n_heads * length
            assert len(batch) == 1 or 4 * vectors * len(batch) * length < size / 3
    sizes, x = Sizes(CARD, *shape[0]), states(width, CARD)
    replayed, products = (
        at_once.replay_rows(sizes, x, 127, 4096),
        at_once.product_rows(sizes, x, 127),
    )
    assert products is not None
    assert 4 * replayed * (10 * width + 4 * widest) < size / 3
    assert 4 * products * (20 * width + 10 * widest) < size / 3
    matrices = at_once.whole_jacobians(x, 4096)
    assert matrices == 1 or 4 * 2 * matrices * width**2 < size / 2
    assert max(replayed, products) <= MOST


def test_16_bits_let_twice_as_much_through(free):
    free(2 * GIB)
    sizes = Sizes(CARD, *GPT2_LARGE[0])
    single = at_once.product_rows(sizes, states(1280, CARD), 63)
    half = at_once.product_rows(sizes, states(1280, CARD, torch.bfloat16), 63)
    assert half == pytest.approx(2 * single, abs=1)


def test_long_prompts_go_apart_from_short_ones(free):
    """The scores of a long prompt leave room for fewer tokens; the short ones do not pay for it."""
    free(GIB // 4)
    lengths = [1000] * 8 + [10] * 300
    found = batches(SMOLLM2, lengths)
    assert max(len(batch) for batch in found if 0 in batch) < 8
    short = [batch for batch in found if batch.min() >= 8]
    assert sum(map(len, short)) == 300
    # 64 MiB for rows of 10 * 576 + 5 * 1536 + 5 * 9 * 10 numbers: 1207 tokens
    assert max(map(len, short)) <= 120
    assert len(short) == 3


def test_a_batch_costs_more_tokens_where_the_model_is_small(free):
    free(70 * GIB)

    def cost(shape, dtype=torch.float32):
        return at_once.sequences(Sizes(CARD, *shape[0]), shape[1], dtype).batch_cost

    assert cost(SMOLLM2) > 4000 > cost(GPT2_LARGE) > 1000 > cost(LLAMA_8B) > BATCH_COST
    assert cost(GPT2_LARGE, torch.bfloat16) == pytest.approx(2 * cost(GPT2_LARGE), abs=2)


def test_padding_stays_below_its_share(free):
    free(70 * GIB)
    lengths = [4] * 100 + [100] * 10
    found = batches(SMOLLM2, lengths)
    for batch in found:
        tokens = len(batch) * max(lengths[i] for i in batch)
        assert tokens - sum(lengths[i] for i in batch) <= MOST_PADDING * tokens
    assert len(found) == 2


def test_without_padding_batches_have_one_length(free):
    free(70 * GIB)
    lengths = short_texts()
    found = batches(SMOLLM2, lengths, padded=False)
    assert len(found) == len(set(lengths))


def test_what_torch_keeps_for_itself_is_free(free, monkeypatch):
    free(100)
    module = type(torch.get_device_module(CARD))
    monkeypatch.setattr(module, "memory_reserved", lambda *_: 50)
    monkeypatch.setattr(module, "memory_allocated", lambda *_: 20)
    assert free_on(CARD) == 130


def test_a_device_that_does_not_say_gets_the_numbers_of_the_cpu(monkeypatch):
    monkeypatch.delattr(type(torch.get_device_module(CARD)), "mem_get_info")
    assert free_on(CARD) is None
    sizes = Sizes(CARD, *SMOLLM2[0])
    assert at_once.sequences(sizes, 576, torch.float32).max_prompts == 32
    assert at_once.replay_rows(sizes, states(576, CARD), 9, 4096) == 4096
    assert at_once.product_rows(sizes, states(576, CARD), 9) is None
    assert at_once.whole_jacobians(states(576, CARD), 50) == 50


# ------------------------------------------------------------------------- in real work


@pytest.mark.parametrize("family", TINY)
def test_a_model_knows_the_sizes_of_its_blocks(family):
    model = lm.DepthModel(TINY[family]())
    sizes = model.blocks.sizes
    block = model.blocks._list[0]
    assert sizes.device == model.device
    assert sizes.n_weights == sum(p.numel() for p in block.parameters())
    assert sizes.n_heads == {"gpt2": 2, "llama": 4}[family]
    assert sizes.widest == {"gpt2": 64, "llama": 40}[family]


@pytest.mark.parametrize(("told", "expected"), [([2, 8], 8), (None, 32)])
def test_heads_that_differ_by_layer_and_models_that_do_not_say(told, expected):
    model = lm.DepthModel(TINY["llama"]())
    blocks = copy.copy(model.blocks)
    vars(blocks).pop("sizes", None)
    config = SimpleNamespace() if told is None else SimpleNamespace(num_attention_heads=told)
    blocks.hf = SimpleNamespace(config=SimpleNamespace(get_text_config=lambda decoder: config))
    assert blocks.sizes.n_heads == expected


def test_a_run_on_a_card_is_one_batch_with_the_numbers_of_the_cpu(free):
    free(GIB)
    prompts = [[1 + (3 * i + j) % 49 for j in range(1 + i % 7)] for i in range(40)]
    here = lm.DepthModel(TINY["llama"]()).run(prompts)
    there = lm.DepthModel(TINY["llama"]().to(CARD)).run(prompts)
    assert len(there.numbers) == 1 < len(here.numbers)
    np.testing.assert_allclose(there.states, here.states, rtol=1e-4, atol=1e-4)
    V = np.eye(16)[:3]
    np.testing.assert_allclose(there.jvp(1, V).cpu(), here.jvp(1, V), rtol=1e-3, atol=1e-4)


def test_products_go_in_as_few_parts_as_the_memory_allows(free, monkeypatch):
    run = lm.DepthModel(TINY["gpt2"]().to(CARD)).run([[1, 2, 3], [4, 5, 6]])
    monkeypatch.setattr("depthsys.lm.linearize.ROWS", 8)
    block, V = run.batches[0].blocks[1], torch.eye(16).to(CARD)
    parts = []
    original = torch.func.vmap
    monkeypatch.setattr(
        torch.func, "vmap", lambda f: lambda s: parts.append(len(s)) or original(f)(s)
    )
    free(GIB)
    whole = block.vjp(V)
    assert parts == [16]
    parts.clear()
    free(4 * 20 * (30 * 16 + 12 * 64 + 5 * 2 * 3) * 4)  # 20 rows
    np.testing.assert_allclose(block.vjp(V).cpu(), whole.cpu(), rtol=1e-5, atol=1e-6)
    assert parts == [8, 8]


# ------------------------------------------------------------- where it was not enough


def _short_of_memory(*_, **__):
    raise torch.OutOfMemoryError("card out of memory. Tried to allocate 2 GiB.\nMore lines")


def test_a_block_that_does_not_fit_all_the_same(monkeypatch):
    model = lm.DepthModel(TINY["gpt2"]())
    monkeypatch.setattr(model.blocks._list[1], "forward", _short_of_memory)
    message = (
        r"`prompts` must leave room on cpu .* got states of shape \(1, 3, 16\) in torch.float32: "
        r"card out of memory. Tried to allocate 2 GiB. Close .* budget=lm.Budget\(device=0\)"
    )
    with pytest.raises(MemoryError, match=message) as raised:
        model.run([[1, 2, 3]])
    assert "More lines" not in str(raised.value)


def test_a_product_that_does_not_fit_all_the_same(monkeypatch):
    block = lm.DepthModel(TINY["gpt2"]()).run([[1, 2, 3]]).batches[0].blocks[1]
    linear = block.linearised()
    monkeypatch.setattr(torch.autograd, "grad", _short_of_memory)
    with pytest.raises(MemoryError, match=r"got states of shape \(1, 1, 16\) in torch.float32"):
        linear.vjp(torch.eye(16)[:2])


@pytest.mark.parametrize("size", [0, 3000])
def test_a_model_is_wrapped_however_little_is_free(size, free):
    """Its check is of one batch, of unlike lengths too; runs go on in batches of one prompt."""
    free(size)
    model = lm.DepthModel(TINY["llama"]().to(CARD))
    assert model.left_padding
    assert len(model.run([[1, 2, 3], [4, 5], [6, 7]]).numbers) == 3


def test_a_share_is_one_of_derivatives_too_where_no_free_memory_tells_more(monkeypatch):
    from depthsys.lm.linearize import Linearised

    x, most = torch.ones(2, 4), []
    linear = Linearised(lambda states: states**2, x)
    vmap = torch.func.vmap

    def counted(function):
        return lambda seeds: (most.append(len(seeds)), vmap(function)(seeds))[1]

    monkeypatch.setattr(torch.func, "vmap", counted)
    directions = torch.arange(4.0 * 500).reshape(500, 4)
    expected = linear.vjp(directions)
    with at_once.share_of(0.25):
        found = linear.vjp(directions)
        assert at_once.whole_jacobians(x, 50) == 12
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert most == [500, 125, 125, 125, 125]
