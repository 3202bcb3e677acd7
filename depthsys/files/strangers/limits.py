"""What a file of somebody else may ask for: sizes, counts, time, and the length of what is said."""

import os
from collections.abc import Mapping
from pathlib import Path

OBJECTS = 10_000  # variables, groups, attributes, members of an archive
CHUNKS = 2**20  # of one variable
FILES = 2**20  # of a store
TEXT = 2**20  # characters of an attribute or of a label
DESCRIPTION = 2**24  # characters of a description in JSON
# A file may declare so many bytes whatever its size, and so many for each byte that it has: zlib
# packs a thousand zeros into one, matrices of measured numbers hardly at all.
FREE, RATIO = 2**26, 200
SECONDS, RATE = 10.0, 2e7  # for what is small, and bytes a second beyond that
MESSAGE = 400  # characters


class Refused(Exception):
    """A file is not read; the text says why, and is one short line."""


def one_line(said: object, limit: int = MESSAGE) -> str:
    """What an error says, in one line of bounded length without control characters."""
    text = str(said)[: 4 * limit]
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return text if len(text) <= limit else f"{text[: limit - 4].rstrip()} ..."


def check_sizes(declared: Mapping[str, int], stored: int, most: int) -> int:
    """All bytes that are to be read.

    Parameters
    ----------
    declared
        Bytes of each variable, as the file says.
    stored
        Bytes of the file.
    most
        Bytes that memory may take.

    Raises
    ------
    Refused
        If they are too many for the file, or for the memory.
    """
    total = sum(declared.values())
    largest = max(declared, key=lambda name: declared[name], default="")
    if total > FREE + RATIO * stored:
        raise Refused(
            f"it declares {readable(total)}, most of it in {one_line(repr(largest), 60)}, and has "
            f"{readable(stored)} on the disk"
        )
    if total > most:
        raise Refused(
            f"it declares {readable(total)}, most of it in {one_line(repr(largest), 60)}, and half "
            f"of the memory that is free is {readable(most)}"
        )
    return total


def half_of_memory(meminfo: Path = Path("/proc/meminfo")) -> int:
    """Bytes that one file may take: half of what is free, or of all where nobody says."""
    try:
        lines = meminfo.read_text().splitlines()
        free = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
        return free * 1024 // 2
    except (OSError, StopIteration, ValueError, IndexError):
        pass
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    except (AttributeError, ValueError, OSError):
        return 2**32


def readable(count: float) -> str:
    """A number of bytes for people."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} PB"
