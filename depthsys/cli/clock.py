"""When a command began: before its imports, which take longer than many a command."""

import time


class _Clock:
    """Counts from the import of this module; in later commands of a process from `start`."""

    def __init__(self) -> None:
        self._begun = time.monotonic()
        self._first = True

    def start(self) -> None:
        """A command begins."""
        if not self._first:
            self._begun = time.monotonic()
        self._first = False

    @property
    def seconds(self) -> float:
        """Since the command began."""
        return time.monotonic() - self._begun


CLOCK = _Clock()
