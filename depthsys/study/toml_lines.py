"""Where the keys of a TOML file stand: `tomllib` tells values, not lines."""

import re
import tomllib

Path = tuple[str | int, ...]

_PART = r"""(?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*')"""
_KEY = re.compile(rf"\s*(?P<key>{_PART}(?:\s*\.\s*{_PART})*)\s*=")
_ENDS = ("]", "}", '"""', "'''")  # of values over several lines
_TABLE = re.compile(r"\s*(?P<open>\[\[?)\s*(?P<name>[^\[\]]+?)\s*\]\]?\s*(#.*)?$")


def key_lines(text: str) -> dict[Path, int]:
    r"""Line of every table and key, the first line being 1.

    Keys of inline tables are found at the line where the table begins.

    Parameters
    ----------
    text
        A TOML document that `tomllib` reads.

    Examples
    --------
    >>> found = key_lines('seed = 1\n[[models]]\nname = "a"\n[[models]]\nname = "b"\n')
    >>> found["seed",], found["models", 1, "name"]
    (1, 5)
    """
    found: dict[Path, int] = {}
    counts: dict[str, int] = {}
    table: Path = ()
    inside = ""  # lines of a value that goes on
    # no other mark ends a line of TOML: the separators of Unicode may stand in its texts
    for number, line in enumerate(text.replace("\r\n", "\n").split("\n"), start=1):
        if inside:
            inside += "\n" + line
            # looked at only where it may end: long lists would be read anew with every line
            if any(end in line for end in _ENDS) and _is_whole(inside):
                inside = ""
            continue
        if opened := _TABLE.match(line):
            table = _named(opened, counts)
            found[table] = number
        elif key := _KEY.match(line):
            parts = (part.strip("\"'") for part in re.findall(_PART, key["key"]))
            found[(*table, *parts)] = number
            inside = "" if _is_whole(line) else line
    return found


def line_of(lines: dict[Path, int], path: Path) -> int | None:
    """Line of a key, or of the table that it would stand in."""
    for end in range(len(path), 0, -1):
        if path[:end] in lines:
            return lines[path[:end]]
    return None


def _named(opened: re.Match[str], counts: dict[str, int]) -> Path:
    name = opened["name"].strip("\"' ")
    if opened["open"] == "[":
        return tuple(part.strip("\"' ") for part in name.split("."))
    counts[name] = counts.get(name, -1) + 1
    return (name, counts[name])


def _is_whole(line: str) -> bool:
    """Whether a key and its value end here."""
    try:
        tomllib.loads(line)
    except tomllib.TOMLDecodeError:
        return False
    return True
