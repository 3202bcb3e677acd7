"""What Hugging Face prints while it loads, and what is warned of."""

import warnings

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
