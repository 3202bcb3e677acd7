"""What a worker of this machine does when it starts: Dask imports this there."""

import signal


def dask_setup(worker: object) -> None:
    """Leave Ctrl-C to the process that was called: it ends its workers, and says what is kept.

    A terminal sends it to all of them, and each would print where it was.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
