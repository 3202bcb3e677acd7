"""Whether this package itself calls the modules of a model, which then must not be steered."""

import contextlib
import threading

_STATE = threading.local()


@contextlib.contextmanager
def own_work():
    """Calls of the model's modules in here are the package's own, in this thread."""
    _STATE.depth = getattr(_STATE, "depth", 0) + 1
    try:
        yield
    finally:
        _STATE.depth -= 1


def is_own_work() -> bool:
    """Whether a call is the package's own."""
    return getattr(_STATE, "depth", 0) > 0
