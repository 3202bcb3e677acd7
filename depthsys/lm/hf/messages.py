"""What Hugging Face prints while it loads, and what is warned of."""

import warnings
from functools import partial

from tqdm.auto import tqdm
from transformers import modeling_gguf_pytorch_utils as gguf
from transformers.utils import logging


class TokensWarning(UserWarning):
    """Tokens are not quite those that a tokenizer would have made."""


def silence() -> None:
    """No bars and no warnings of transformers, no warnings of tokens.

    A command line shows its own bars, and what results say against themselves.
    """
    warnings.simplefilter("ignore", TokensWarning)
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    if hasattr(gguf, "tqdm"):  # a bar of its own, which no switch of transformers reaches
        gguf.tqdm = partial(tqdm, disable=True)
