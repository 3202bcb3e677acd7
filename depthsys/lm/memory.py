"""How much memory this process may still take."""

import contextlib
import os
from pathlib import Path

import torch


def available_memory(root: Path = Path("/")) -> int | None:
    """Bytes that this process may still take without swapping; None where nobody says.

    On Linux what the kernel calls available, or less where a control group (a container, a batch
    job) sets a limit; elsewhere the physical memory. ``root`` holds proc/ and sys/.
    """
    try:
        meminfo = (root / "proc/meminfo").read_text().splitlines()
    except OSError:
        try:
            return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        except (AttributeError, ValueError, OSError):
            return None
    found = [int(line.split()[1]) * 1024 for line in meminfo if line.startswith("MemAvailable:")]
    with contextlib.suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers == "":
                top, *files = root / "sys/fs/cgroup", *_CGROUP_2
            elif "memory" in controllers.split(","):
                top, *files = root / "sys/fs/cgroup/memory", *_CGROUP_1
            else:
                continue
            group = top / path.lstrip("/")
            groups = [g for g in (group, *group.parents) if g.is_relative_to(top)]
            found += [left for g in groups if (left := _left_in(g, *files)) is not None]
    return min(found, default=None)


def free_on(device: torch.device) -> int:
    """Bytes that are free on an accelerator; 0 for the CPU, whose memory is the host's."""
    if device.type == "cpu":
        return 0
    module = torch.get_device_module(device)
    # what torch has reserved and not handed out is free for torch
    idle = module.memory_reserved(device) - module.memory_allocated(device)
    return module.mem_get_info(device)[0] + idle


# where a control group writes its limit and its use, and the name of what it would give back
_CGROUP_1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_CGROUP_2 = ("memory.max", "memory.current", "inactive_file")


def _left_in(group: Path, limit: str, usage: str, reclaimable: str) -> int | None:
    """Bytes left below the memory limit of a control group; None without a limit."""
    try:
        most = int((group / limit).read_text())  # version 2 writes "max" where there is none
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return max(0, most - int((group / usage).read_text()) + int(stat[reclaimable]))
    except (OSError, ValueError, KeyError):
        return None
