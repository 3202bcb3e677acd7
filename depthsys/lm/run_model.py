"""What a run needs of a model: the protocol that `DepthModel` fulfils."""

from typing import Any, Protocol

import numpy as np
import torch

from depthsys.lm.hf.blocks import Blocks
from depthsys.lm.hf.tokens import Tokens
from depthsys.prompting import Prompting


class Model(Protocol):
    """What a run needs of `DepthModel`."""

    n_layers: int
    n_features: int
    dtype: torch.dtype
    device: torch.device
    blocks: Blocks
    left_padding: bool
    products: str
    name: str
    contract: dict[str, float]
    tokenizer: Any
    hf: Any

    @property
    def max_tokens(self) -> int:
        """Longer prompts are cut."""
        ...

    @property
    def numpy_dtype(self) -> np.dtype:
        """A dtype of numpy that holds the states."""
        ...

    @property
    def dtype_name(self) -> str:
        """Name of the dtype."""
        ...

    @property
    def prompting(self) -> Prompting:
        """How texts become prompts."""
        ...

    @property
    def fingerprint(self) -> str:
        """Of the weights."""
        ...

    def tokens(self, prompts) -> Tokens:
        """Token ids, and how many prompts were cut."""
        ...

    def check_weights(self) -> None:
        """ValueError if the weights are not those that were checked."""
        ...

    def head(self, x_last: torch.Tensor) -> torch.Tensor:
        """Logits (row, token) of last states."""
        ...

    def logits(self, ids: torch.Tensor, x_last: torch.Tensor) -> torch.Tensor:
        """Logits (prompt, token) of last states, after the tokens before them."""
        ...
