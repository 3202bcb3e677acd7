"""How long a command took counts its imports."""

from depthsys.cli import clock


def test_the_first_command_counts_from_the_import_and_later_ones_from_their_start(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(clock.time, "monotonic", lambda: now[0])
    made = clock._Clock()
    now[0] = 107.0  # numpy, torch, transformers
    made.start()
    assert made.seconds == 7
    now[0] = 200.0
    made.start()
    now[0] = 203.0
    assert made.seconds == 3


def test_nothing_slow_is_imported_before_the_clock_runs():
    import subprocess
    import sys

    code = "import sys, depthsys.cli.clock as c; import time\n"
    code += "print(c.CLOCK.seconds >= 0, *sorted({'torch', 'transformers'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True"]
