"""Texts from standard input: read once, and kept beside the results, where they are found again."""

import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from depthsys.files import OutputFolder, content_hash
from depthsys.study import Settings, read_splits

STDIN = "-"
_FORMATS = ("csv", "tsv", "json", "jsonl")
# what they may be kept as
NAMES = tuple(f"texts.{name}" for name in _FORMATS)
_LARGEST = 2**30  # bytes


@dataclass(frozen=True)
class Piped:
    """What came on standard input.

    Attributes
    ----------
    content
        All of it.
    name
        What it is kept as.
    """

    content: bytes
    name: str

    @classmethod
    def taken(cls, texts: Path | None, asked: Settings) -> "Piped | None":
        """What there is on standard input, if texts are ``-``.

        Raises
        ------
        ValueError
            If it is nothing, too much, or no text.
        """
        if texts is None or str(texts) != STDIN:
            return None
        if asked.format not in (None, *_FORMATS):
            raise ValueError(
                f"`--format` must be one of {', '.join(_FORMATS)} for texts from standard input; "
                f"got {asked.format!r}. Give the file by its name."
            )
        content = sys.stdin.buffer.read(_LARGEST + 1)
        if len(content) > _LARGEST:
            raise ValueError(
                f"`TEXTS` must be at most {_LARGEST // 2**30} GiB of texts on standard input; got "
                "more. Name a file."
            )
        if not content.strip():
            raise ValueError(
                "`TEXTS` must hold texts; got nothing on standard input. Pipe texts into the "
                "command, or name a file."
            )
        return cls(content, f"texts.{asked.format or _guessed(content)}")

    def checked_by(self, asked: Settings) -> None:
        """ValueError unless the texts can be read and split."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / self.name
            path.write_bytes(self.content)
            read_splits(path, asked)

    def kept_in(self, folder: OutputFolder) -> Path:
        """Written there; the place."""
        folder.write(self.name, lambda path: path.write_bytes(self.content))
        return folder.folder / self.name


def _guessed(content: bytes) -> str:
    """The format that the first line looks like."""
    first, *others = content.lstrip(b"\xef\xbb\xbf \t\r\n").split(b"\n", 1)
    if first.startswith(b"["):
        return "json"
    if first.startswith(b"{"):  # one line alone may be an object of columns
        has_more = any(other.strip() for other in others)
        return "jsonl" if has_more and first.rstrip().endswith(b"}") else "json"
    return "tsv" if b"\t" in first else "csv"


def output_folder(
    out: Path, files: Sequence[str], force: bool, partial: Path, piped: Piped | None
) -> OutputFolder:
    """The checked output folder, which may hold the same texts already."""
    if piped is None:
        return OutputFolder.checked(out, list(files), force, partial=partial)
    known = [content_hash(piped.content)]
    return OutputFolder.checked(out, [*NAMES, *files], force, partial=partial, known=known)
