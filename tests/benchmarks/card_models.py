"""Models, prompts and sizes of `tests.benchmarks.card_table`: one shape, made on the device."""

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import xarray as xr
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
)

from depthsys import lm
from depthsys.demo import real
from tests.benchmarks import lm_setup, measure

# tokens of a text of a made-up task: movie review snippets have 24 on average
TEXT_TOKENS, LONGEST_TEXT = 24, 64
DTYPES = {"float32": torch.float32, "tf32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Shape:
    """What is measured on a model of one shape.

    Attributes
    ----------
    config
        Of the random model.
    works
        Names in `card_works.WORKS`, the most important first.
    tokens, prompts, jacobian_prompts
        T, and prompts of one batch.
    split
        Texts per class of the main job and of `compare`.
    compare
        Options of `compare` other than the defaults.
    real
        Whether real weights and texts are used where they are.
    """

    config: PretrainedConfig
    works: tuple[str, ...]
    tokens: tuple[int, ...]
    prompts: int
    jacobian_prompts: int
    split: tuple[int, int, int] = (400, 200, 200)
    compare: dict[str, Any] = field(default_factory=dict)
    real: bool = False


def gpt2(n_layers: int, width: int, heads: int, vocabulary: int) -> GPT2Config:
    return GPT2Config(
        n_layer=n_layers,
        n_embd=width,
        n_head=heads,
        vocab_size=vocabulary,
        bos_token_id=0,
        eos_token_id=0,
    )


def llama(n_layers: int, width: int, heads: int, vocabulary: int, **more: Any) -> LlamaConfig:
    sizes = {"num_hidden_layers": n_layers, "hidden_size": width, "num_attention_heads": heads}
    return LlamaConfig(vocab_size=vocabulary, **sizes, **more)


FLOORS = ("gain curves", "identification", "all Jacobians")
PREFILLS = (
    "prefill",
    "Krylov 32",
    "measured gains",
    "linear gains",
    "mean Jacobians",
    "ensemble 4, profile",
    "one Jacobian",
)
JOBS = ("main job", "compare")
SHAPES = {
    "GPT-2-large": Shape(gpt2(36, 1280, 20, 50257), FLOORS, (64, 256), 16, 4),
    "SmolLM2": Shape(
        llama(
            30, 576, 9, 49152,
            num_key_value_heads=3, intermediate_size=1536, max_position_embeddings=8192,
            tie_word_embeddings=True,
        ),
        JOBS, (32,), 16, 4,
        real=True,
    ),
    "Llama-8B": Shape(
        llama(
            32, 4096, 32, 128256,
            num_key_value_heads=8, intermediate_size=14336, max_position_embeddings=8192,
        ),
        PREFILLS, (128,), 32, 2,
    ),
    # smoke runs, whose times mean nothing
    "tiny": Shape(
        gpt2(3, 32, 2, 100), (*FLOORS, *JOBS), (6,), 3, 2,
        split=(12, 6, 6),
        compare={"methods": ("ensemble",), "orders": (1,), "n_each": 1, "n_bootstrap": 2},
    ),
    "tiny-llama": Shape(
        llama(3, 32, 4, 100, num_key_value_heads=2, intermediate_size=64), PREFILLS, (6,), 3, 2
    ),
}  # fmt: skip


@dataclass
class Subject:
    """The model of one shape on one device, and what was found about it."""

    name: str
    shape: Shape
    device: torch.device
    hf: Any
    tokenizer: Any
    weights: str
    models: dict[str, Any] = field(default_factory=dict)
    prefill_seconds: dict[str, float] = field(default_factory=dict)

    @property
    def n_layers(self) -> int:
        return self.shape.config.num_hidden_layers

    @property
    def n_features(self) -> int:
        return self.shape.config.hidden_size

    @property
    def heading(self) -> str:
        """Name, sizes and weights, such as "Llama-8B shape (32 x 4096), random weights"."""
        config = self.shape.config
        return (
            f"{self.name} shape ({config.num_hidden_layers} x {config.hidden_size}), {self.weights}"
        )

    def wrapped(self, precision: str) -> None:
        """Make the `DepthModel` of that precision: what torch's own switch says is not for it."""
        self.models[precision] = lm.DepthModel(
            self.hf,
            self.tokenizer,
            name=self.name,
            max_tokens=max(*self.shape.tokens, 128),
            products="tf32" if precision == "tf32" else "float32",
        )

    def ids(self, count: int, n_tokens: int) -> lm_setup.Ids:
        return lm_setup.random_ids(count, n_tokens, self.shape.config.vocab_size)

    def tensor(self, ids: lm_setup.Ids) -> torch.Tensor:
        return torch.tensor(ids).to(self.device)

    def concept(self) -> xr.Dataset:
        return lm_setup.random_concept(self.n_layers, self.n_features)

    def step(self, precision: str) -> float:
        """Of measured gains: a small one drowns in 16 bits or TF32, and is refused."""
        return lm_setup.step(self.n_features, precision)

    def order(self, wanted: int) -> int:
        return min(wanted, self.n_features // 2)

    @torch.no_grad()
    def prefill(self, ids: torch.Tensor) -> None:
        """The model's own pass over all prompts in one batch, without cache and head."""
        self.hf.get_decoder()(ids, use_cache=False)

    def plain_prefill(self, precision: str) -> float:
        """Seconds of `prefill`, measured once for each precision."""
        if precision not in self.prefill_seconds:
            ids = self.tensor(self.ids(self.shape.prompts, self.shape.tokens[0]))
            with products(precision):
                found = measure.in_turns(
                    {"prefill": lambda _: self.prefill(ids)}, self.device, budget=5, max_rounds=3
                )
            self.prefill_seconds[precision] = found["prefill"].seconds
        return self.prefill_seconds[precision]

    def texts(self) -> lm.Splits[lm.Texts]:
        """One task: that of the fetched movie reviews, or one made of random words."""
        sizes = dict(zip(("concept", "operating", "held_out"), self.shape.split, strict=True))
        if self.weights.startswith("real"):
            return lm.read_texts(real.default_folder() / "movies.csv").split(**sizes)
        return lm.read_texts(made_up_texts(self.shape, sum(sizes.values()))).split(**sizes)


@contextlib.contextmanager
def products(precision: str) -> Iterator[None]:
    """What is not the package's: products of float32 matrices in TF32, or with all digits."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def made(name: str, device: torch.device, precision: str) -> Subject:
    """The model of a shape: real weights where asked for and at hand, else random ones."""
    shape = SHAPES[name]
    if shape.real and all((real.default_folder() / file).is_file() for file in _REAL):
        path = real.default_folder() / real.MODEL
        loaded = lm.DepthModel.load(path, device=device, dtype=DTYPES[precision])
        hf, tokenizer, weights = loaded.hf, loaded.tokenizer, "real weights and texts"
    else:
        hf, tokenizer = random_model(shape, device, precision), None
        weights = "random weights"
        if "main job" in shape.works:
            tokenizer = word_tokenizer(shape.config.vocab_size)
            weights += f", a made-up task of random words ({TEXT_TOKENS} tokens on average)"
    return Subject(name, shape, device, hf, tokenizer, weights)


_REAL = (real.MODEL, "movies.csv")


def random_model(shape: Shape, device: torch.device, precision: str) -> Any:
    """Made where it will be: to draw and to copy eight billion numbers takes a CPU minutes."""
    torch.manual_seed(0)
    place = device if device.type == "cuda" else torch.device("cpu")
    with place:
        hf = AutoModelForCausalLM.from_config(shape.config, dtype=DTYPES[precision])
    return hf.to(device).eval().requires_grad_(False)


def word_tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """One token for each of the words w0, w1, ..."""
    numbers = {f"w{i}": i for i in range(vocabulary)}
    words = Tokenizer(models.WordLevel(numbers, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words)


def made_up_texts(shape: Shape, per_class: int) -> list[tuple[str, int]]:
    """Texts of random words, as long as review snippets are, with labels that mean nothing."""
    rng = np.random.default_rng(0)
    count = 2 * per_class
    # e^N(m, 1/2) has the mean e^(m + 1/8)
    lengths = np.exp(rng.normal(math.log(TEXT_TOKENS) - 1 / 8, 0.5, count)).round().astype(int)
    return [
        (" ".join(f"w{i}" for i in rng.integers(1, shape.config.vocab_size, n)), label % 2)
        for label, n in enumerate(lengths.clip(2, LONGEST_TEXT))
    ]
