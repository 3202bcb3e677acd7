"""Parts of a page that are written anew from stored numbers, between their markers."""

from pathlib import Path


def replaced(text: str, begin: str, end: str, part: str) -> str:
    """The text with a new part on the lines between two markers.

    Raises
    ------
    ValueError
        If a marker is not there once.
    """
    for marker in (begin, end):
        if text.count(marker) != 1:
            raise ValueError(
                f"`text` must hold {marker!r} once; got {text.count(marker)} of it. Write it where "
                "the part belongs."
            )
    head, rest = text.split(begin)
    return f"{head}{begin}\n{part}\n{end}{rest.split(end)[1]}"


def between(text: str, begin: str, end: str) -> str:
    """What stands on the lines between two markers."""
    return text.split(begin)[1].split(end)[0].strip("\n")


def update(path: Path, parts: dict[tuple[str, str], str]) -> None:
    """Write the parts of a page between their markers (begin, end)."""
    text = path.read_text(encoding="utf-8")
    for (begin, end), part in parts.items():
        text = replaced(text, begin, end, part)
    path.write_text(text, encoding="utf-8")
