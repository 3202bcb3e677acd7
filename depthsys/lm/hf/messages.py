"""What Hugging Face prints while it loads."""

from transformers.utils import logging


def silence() -> None:
    """No bars and no warnings of transformers: a command line has its own."""
    logging.disable_progress_bar()
    logging.set_verbosity_error()
