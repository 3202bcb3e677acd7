"""What the options of the commands mean, and what of them can be refused before any work."""

from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from depthsys import demo as demo_package

if TYPE_CHECKING:
    from depthsys.lm import Method

# the names in lm.methods.METHODS and functions of lm, told here without loading torch
BASES = (
    "ensemble",
    "balanced",
    "two_sided",
    "krylov",
    "arnoldi",
    "pod",
    "adjoint",
    "random",
)
CONCEPTS = ("mean_difference", "whitened", "logistic", "pca")
READOUTS = ("concept", "profile")
# what a stored system must say for its model and texts to be found again
NEEDED_ATTRS = {
    "texts", "split", "seed", "max_tokens", "model", "order", "readout", "dtype",
    "prompts_sha256", "concept_sha256", "held_out_sha256", "model_fingerprint", "tokens_sha256",
}  # fmt: skip
NEEDED_VARIABLES = {"A", "B", "C", "D", "v", "auc", "gain_full", "state_norm", "y_std"}
DEFAULT_ORDERS = (1, 2, 4, 8, 16, 32)
DEFAULT_EACH = 64


@dataclass(frozen=True)
class Settings:
    """How texts are split and a system is identified."""

    basis: str
    order: int | None
    tolerance: float | None
    concept: str
    readout: str
    split: tuple[int, int, int]
    seed: int
    max_tokens: int
    any_given: bool

    @classmethod
    def given(
        cls,
        *,
        basis: str | None = None,
        order: int | None = None,
        tolerance: float | None = None,
        concept: str | None = None,
        readout: str | None = None,
        split: str | None = None,
        seed: int | None = None,
        max_tokens: int | None = None,
    ) -> "Settings":
        """Settings from options of the command line, checked; None = not given."""
        options = (basis, order, tolerance, concept, readout, split, seed, max_tokens)
        if basis is not None and basis not in BASES:
            raise ValueError(
                f"`--basis` must be one of {', '.join(BASES)}; got {basis!r}. Pick one."
            )
        if order is not None and order < 1:
            raise ValueError(f"`--order` must be >= 1; got {order}. The default is 32.")
        if tolerance is not None and not 0 < tolerance < 1:
            raise ValueError(
                f"`--tolerance` must be a fraction between 0 and 1; got {tolerance}. Try 0.01."
            )
        if order is not None and tolerance is not None:
            raise ValueError(
                f"`--order` and `--tolerance` must not both be given; got {order} and "
                f"{tolerance}. Leave one out."
            )
        for name, value, allowed in (
            ("concept", concept, CONCEPTS),
            ("readout", readout, READOUTS),
        ):
            if value is not None and value not in allowed:
                raise ValueError(
                    f"`--{name}` must be {', '.join(allowed[:-1])} or {allowed[-1]}; got "
                    f"{value!r}. Pick one."
                )
        if max_tokens is not None and max_tokens < 1:
            raise ValueError(f"`--max-tokens` must be >= 1; got {max_tokens}. The default is 128.")
        if seed is not None and seed < 0:
            raise ValueError(f"`--seed` must be >= 0; got {seed}. The default is 0.")
        return cls(
            basis=basis or "krylov",
            order=order,
            tolerance=tolerance,
            concept=concept or "mean_difference",
            readout=readout or "concept",
            split=_parse_split(split or "400/200/200"),
            seed=seed or 0,
            max_tokens=max_tokens or 128,
            any_given=any(option is not None for option in options),
        )

    def method(self) -> "Method":
        """The reduction method with its settings."""
        from depthsys.lm.methods import METHODS

        return METHODS[self.basis](order=self.order, tolerance=self.tolerance)


def _parse_split(text: str) -> tuple[int, int, int]:
    parts = text.split("/")
    if len(parts) != 3 or not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise ValueError(
            f"`--split` must be three positive numbers concept/operating/held-out; got {text!r}. "
            "The default is 400/200/200 per class."
        )
    concept, operating, held_out = (int(part) for part in parts)
    return concept, operating, held_out


@dataclass(frozen=True)
class Plan:
    """What `depthsys compare` compares."""

    methods: tuple[str, ...]
    orders: tuple[int, ...]
    eps: float
    n_each: int

    @classmethod
    def given(
        cls,
        *,
        methods: str | None,
        orders: str | None,
        eps: float,
        n_each: int | None,
        n_held_out: int,
    ) -> "Plan":
        """A plan from options of the command line, checked; None = not given."""
        check_eps(eps)
        if n_each is not None and not 0 <= n_each <= n_held_out:
            raise ValueError(
                f"`--each` must be in 0..{n_held_out}, the number of held-out prompts; got "
                f"{n_each}. With 0 no prompt gets a system of its own."
            )
        return cls(
            methods=BASES if methods is None else _parse_methods(methods),
            orders=DEFAULT_ORDERS if orders is None else _parse_orders(orders),
            eps=eps,
            n_each=min(DEFAULT_EACH, n_held_out) if n_each is None else n_each,
        )

    def for_width(self, n_features: int) -> "Plan":
        """Without default orders above the width; ValueError if such an order was asked for."""
        if self.orders is DEFAULT_ORDERS:
            return replace(self, orders=tuple(r for r in DEFAULT_ORDERS if r <= n_features))
        if self.orders[-1] > n_features:
            raise ValueError(
                f"`--orders` must be at most {n_features}, the width of the model; got "
                f"{self.orders[-1]}. Leave it out."
            )
        return self


def _parse_methods(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(","))
    for name in names:
        if name not in BASES:
            raise ValueError(
                f"`--methods` must be names out of {', '.join(BASES)}; got {name!r}. Write them "
                "as in ensemble,krylov,pod."
            )
        if names.count(name) > 1:
            raise ValueError(
                f"`--methods` must name a method once; got {name!r} {names.count(name)} times. "
                "Leave it out elsewhere."
            )
    return names


def _parse_orders(text: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",")]
    # more digits than any width has: int() of thousands of them would raise an error of its own
    orders = [int(p) for p in parts if p.isascii() and p.isdecimal() and len(p) < 10]
    rising = all(a < b for a, b in pairwise(orders))
    if len(orders) < len(parts) or not rising or orders[0] < 1:
        raise ValueError(
            f"`--orders` must be rising whole numbers >= 1; got {text!r}. Write them as in 1,2,4,8."
        )
    return tuple(orders)


def check_eps(eps: float) -> None:
    """ValueError unless the step is positive and finite."""
    if not 0 < eps < float("inf"):
        raise ValueError(f"`--eps` must be positive and finite; got {eps}. The default is 0.1.")


def is_system(source: str) -> bool:
    """Whether a command's first argument is a stored system rather than a model."""
    return source.endswith(".nc")


def check_model(name: str, device: str, dtype: str | None) -> tuple[str, int]:
    """Check all that can be checked without the weights; the path or name to load, and H."""
    from depthsys.lm.hf.checkpoint import DTYPES, checked_device, read_config

    checked_device(device)
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"`--dtype` must be one of {sorted(DTYPES)}; got {dtype!r}. Pick one.")
    path = demo_package.model_path(name) if name in demo_package.MODELS else Path(name)
    source = str(path.resolve()) if path.is_dir() else name
    return source, read_config(source).get_text_config(decoder=True).hidden_size
