"""Tests. Several processes of them at once have a core each, and gain nothing by threads of theirs.

Said here, before a library of numbers is loaded; the processes that tests start inherit it.
"""

import os

if "PYTEST_XDIST_WORKER" in os.environ:
    for name in ("OMP", "OPENBLAS", "MKL"):
        os.environ.setdefault(f"{name}_NUM_THREADS", "1")
