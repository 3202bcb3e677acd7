"""The command line: `depthsys demo | identify | gains | control | compare | export | import`.

Commands read options, call the steps of `depthsys.study`, and write and show what those return.
torch is loaded inside the commands, so that `--help` and bad input answer at once.
"""

from depthsys.cli.clock import CLOCK  # isort: split

from depthsys.cli.app import main

__all__ = ["CLOCK", "main"]
