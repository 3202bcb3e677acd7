"""A run that is killed or interrupted at any step leaves the old thing or the new one."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MEMORY = Path("/dev/shm")  # a disk that knows the same renames and links, and lets nobody wait
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks, and renameat2")


# by default each of two signals on the disk that can do most or least; .ci/run runs all
ALL = "of linux", "with links", "without links"


@pytest.mark.parametrize(
    ("name", "disks", "least"),
    [
        ("SIGKILL", ALL[:1], 250),
        ("SIGINT", ALL[2:], 250),
        pytest.param("SIGKILL", ALL[1:], 500, marks=pytest.mark.slow),
        pytest.param("SIGINT", ALL[:2], 500, marks=pytest.mark.slow),
        pytest.param("SIGTERM", ALL, 800, marks=pytest.mark.slow),
    ],
)
def test_killed_at_every_step(name, disks, least, tmp_path):
    """Files, folders, results and resumable work, on disks that can do more and less."""
    disk = MEMORY if os.access(MEMORY, os.W_OK) else tmp_path
    with tempfile.TemporaryDirectory(dir=disk) as place:
        done = subprocess.run(
            [sys.executable, "-W", "error", "-m", "tests.files.killed", name, *disks],
            capture_output=True, text=True, check=False, cwd=ROOT, env={"TMPDIR": place},
        )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert int(done.stdout) > least
