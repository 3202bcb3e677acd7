"""Sizes of a model from its configuration alone: nothing is loaded, no weight is made."""

from dataclasses import dataclass

import torch
from transformers import AutoModelForCausalLM

from depthsys.lm.hf.checkpoint import find_blocks, read_config


@dataclass(frozen=True)
class ModelSizes:
    """What the cost of work on a model follows from.

    Attributes
    ----------
    n_layers, n_features
        Blocks, and the width of their states.
    n_parameters, n_block
        Numbers in the model, and in one block on average.
    n_keys
        Numbers that a token leaves in the context of a block, keys and values.
    """

    n_layers: int
    n_features: int
    n_parameters: int
    n_block: int
    n_keys: int


def model_sizes(name_or_path: str) -> ModelSizes:
    """The sizes of a model.

    Raises
    ------
    ValueError
        If there is no such model, or it is of no known kind.
    """
    config = read_config(name_or_path)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    blocks = find_blocks(model)
    text = config.get_text_config(decoder=True)
    heads = getattr(text, "num_attention_heads", 1)
    width = getattr(text, "head_dim", None) or text.hidden_size // heads
    keys = getattr(text, "num_key_value_heads", None) or heads
    inside = sum(p.numel() for block in blocks for p in block.parameters())
    return ModelSizes(
        len(blocks),
        text.hidden_size,
        sum(p.numel() for p in model.parameters()),
        inside // len(blocks),
        2 * keys * width,
    )
