"""Labelled text -> three disjoint splits -> batches of one length."""

import csv
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Generic, TypeVar

import numpy as np

from depthsys.lm.kinds import short
from depthsys.splits import SPLITS, split_sizes

Part = TypeVar("Part", covariant=True)
Other = TypeVar("Other")


@dataclass(frozen=True)
class Texts:
    """Texts with a binary label, distinct, in a fixed order.

    Attributes
    ----------
    texts
        The texts.
    labels
        (text) of 0 and 1.
    classes
        The names behind 0 and 1, in sorted order: a higher readout means ``classes[1]``.
    source
        Where they came from: a path, or "list".
    n_duplicates, n_conflicts
        Copies that were dropped, and texts dropped because they came with both labels.
    """

    texts: tuple[str, ...]
    labels: np.ndarray = field(repr=False)
    classes: tuple[str, str]
    source: str = "list"
    n_duplicates: int = 0
    n_conflicts: int = 0

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def sha256(self) -> str:
        """Fingerprint of texts, labels and their order."""
        rows = [[text, int(label)] for text, label in zip(self.texts, self.labels, strict=True)]
        return hashlib.sha256(json.dumps(rows, ensure_ascii=False).encode()).hexdigest()

    def first(self, count: int) -> "Texts":
        """The first ``count`` texts, or all if there are fewer."""
        return self._take(np.arange(min(count, len(self))))

    def split(
        self,
        sizes: str | None = None,
        *,
        concept: int | None = None,
        operating: int | None = None,
        held_out: int | None = None,
        seed: int = 0,
    ) -> "Splits[Texts]":
        """Three disjoint, stratified splits with the given number of texts PER CLASS.

        Parameters
        ----------
        sizes
            All three, as on the command line: "concept/operating/held-out".
        concept, operating, held_out
            Or each by name; those that are left out are 400, 200 and 200.
        seed
            Of the shuffling.

        Raises
        ------
        TypeError
            If ``sizes`` is no string, or given beside sizes by name.
        ValueError
            If a size is below 1 or a class has fewer texts than the three sizes together.

        Examples
        --------
        >>> from depthsys import lm
        >>> texts = lm.read_texts([(f"text {i}", i % 2) for i in range(20)])
        >>> texts.split("5/3/2").sizes == texts.split(concept=5, operating=3, held_out=2).sizes
        True
        """
        return self._split(_sizes(sizes, concept, operating, held_out), seed)

    def _split(self, sizes: dict[str, int], seed: int) -> "Splits[Texts]":
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"`{name}` must be >= 1; got {size}. Give texts per class.")
        needed = sum(sizes.values())
        found = [int((self.labels == label).sum()) for label in (0, 1)]
        if min(found) < needed:
            wanted = "/".join(map(str, sizes.values()))
            raise ValueError(
                f"`texts` must hold {needed} distinct texts per class for the splits "
                f"{wanted}; got {found[0]} of class {self.classes[0]!r} "
                f"and {found[1]} of class {self.classes[1]!r} from {self.source} "
                f"({self.n_duplicates} duplicates and {self.n_conflicts} texts with both labels "
                "dropped). Add texts or ask for smaller splits."
            )
        rng = np.random.default_rng(seed)
        shuffled = [rng.permutation(np.flatnonzero(self.labels == label)) for label in (0, 1)]
        parts, start = {}, 0
        for name, size in sizes.items():
            chosen = np.concatenate([order[start : start + size] for order in shuffled])
            parts[name] = self._take(rng.permutation(chosen))
            start += size
        return Splits(
            **parts, seed=seed, n_duplicates=self.n_duplicates, n_conflicts=self.n_conflicts
        )

    def _take(self, rows: np.ndarray) -> "Texts":
        return Texts(
            tuple(self.texts[i] for i in rows), self.labels[rows], self.classes, self.source
        )


def _sizes(text: str | None, *by_name: int | None) -> dict[str, int]:
    """Sizes of the splits from one text, or from numbers by name."""
    given = {name: n for name, n in zip(SPLITS, by_name, strict=True) if n is not None}
    if text is None:
        return {"concept": 400, "operating": 200, "held_out": 200} | given
    if not isinstance(text, str) or given:
        got = f"{text!r} and {given}" if given else repr(text)
        raise TypeError(
            "`sizes` must be one text such as '400/200/200', without sizes by name; got "
            f"{got:.80}. Or write split(concept=400, operating=200, held_out=200)."
        )
    return split_sizes(text, "sizes")


@dataclass(frozen=True)
class Splits(Generic[Part]):
    """Disjoint texts for the concept direction, the identification and the verification.

    ``Splits[Texts]`` come from `Texts.split`; runs of them are made by ``splits.each(model.run)``,
    and taken wherever the texts are.

    Attributes
    ----------
    concept, operating, held_out
        The three parts.
    seed
        Of the split.
    n_duplicates, n_conflicts
        Texts that were dropped before splitting.
    """

    concept: Part
    operating: Part
    held_out: Part
    seed: int = 0
    n_duplicates: int = 0
    n_conflicts: int = 0

    @property
    def sizes(self) -> str:
        """Texts per class as "concept/operating/held-out", for example "400/200/200"."""
        return "/".join(str(int((_labels(getattr(self, s)) == 0).sum())) for s in SPLITS)

    def each(self, function: "Callable[[Part], Other]") -> "Splits[Other]":
        """What a function makes of every part: ``splits.each(model.run)`` prefills all three."""
        return Splits(
            function(self.concept),
            function(self.operating),
            function(self.held_out),
            self.seed,
            self.n_duplicates,
            self.n_conflicts,
        )


@short.register
def _(value: Texts) -> str:
    return f"Texts, {len(value)} of them"


@short.register
def _(value: Splits) -> str:
    return "Splits"


def _labels(part: Any) -> np.ndarray:
    """Those of texts, or of the texts of a run."""
    return part.labels if hasattr(part, "labels") else part.texts.labels


def read_texts(source: str | Path | Iterable[tuple[str, object]]) -> Texts:
    """Labelled texts from a file or from Python pairs, duplicates removed and counted.

    Parameters
    ----------
    source
        A .csv or .tsv file with a header, or a .jsonl file, with the columns ``text`` and
        ``label`` (quoting as usual in CSV, none in TSV); or pairs (text, label). Labels are any
        two values; sorted as text, the first becomes 0. A text that comes with both labels is
        dropped.

    Raises
    ------
    FileNotFoundError
        If the file does not exist.
    ValueError
        If the format, columns, labels or a text is not usable; the message names the row.

    Examples
    --------
    >>> from depthsys import lm
    >>> lm.read_texts([("good", 1), ("bad", 0), ("good", 1)])
    Texts(texts=('good', 'bad'), classes=('0', '1'), source='list', n_duplicates=1, n_conflicts=0)
    """
    if isinstance(source, (str, Path)):
        path = Path(source)
        return _texts(_rows(path), str(path))
    rows = []
    for number, pair in enumerate(source, start=1):
        if isinstance(pair, str) or len(pair) != 2:
            raise ValueError(
                f"`source` must hold pairs (text, label); got {short(pair)} in row {number}. "
                "Zip texts and labels."
            )
        rows.append((pair[0], _label(pair[1], number, "list")))
    return _texts(rows, "list")


def _rows(path: Path) -> list[tuple[str, str]]:
    if not path.is_file():
        raise FileNotFoundError(
            f"`texts` must be an existing file; got {str(path)!r}. "
            "Give a CSV, TSV or JSONL file with the columns text and label."
        )
    kind = path.suffix.lower()
    if kind not in (".csv", ".tsv", ".jsonl"):
        raise ValueError(
            f"`texts` must be a .csv, .tsv or .jsonl file; got {path.name!r}. Convert it first."
        )
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            records = _json_lines(file) if kind == ".jsonl" else _table(file, kind)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"`texts` must be a UTF-8 file; got {path.name!r}: {error}. Save it as UTF-8."
        ) from error
    if not records:
        raise ValueError(f"`texts` must not be empty; {path.name!r} has no rows. Add texts.")
    rows = []
    for number, record in enumerate(records, start=1):
        if not isinstance(record, dict) or not {"text", "label"} <= record.keys():
            found = sorted(map(str, record)) if isinstance(record, dict) else type(record).__name__
            raise ValueError(
                f"`texts` must have the columns 'text' and 'label'; got {found} in row {number} "
                f"of {path.name!r}. Rename the columns."
            )
        if record["text"] is None or record["label"] is None:
            raise ValueError(
                f"`texts` must have a text and a label in every row; row {number} of "
                f"{path.name!r} lacks one. Fill it in or delete the row."
            )
        rows.append((record["text"], _label(record["label"], number, path.name)))
    return rows


def _label(label: object, row: int, source: str) -> str:
    if not isinstance(label, (str, int, np.integer, np.bool_)):
        raise ValueError(
            f"`label` must be text, a whole number or a boolean; got {short(label)} in row {row} "
            f"of {source}. Convert the labels."
        )
    return str(label).strip()


def _json_lines(file: IO[str]) -> list:
    records = []
    for number, line in enumerate(file, start=1):
        if line.strip():
            try:
                records.append(json.loads(line))
            except (json.JSONDecodeError, RecursionError) as error:
                raise ValueError(
                    f"`texts` must hold one JSON object per line; line {number} is none: "
                    f"{error}. Correct the line."
                ) from error
    return records


def _table(file: IO[str], kind: str) -> list[dict]:
    if kind == ".csv":
        reader = csv.DictReader(file, strict=True)
    else:  # tab-separated values know no quoting: a quotation mark is text
        reader = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
    try:
        names = reader.fieldnames or []
        if len(set(names)) < len(names):
            raise ValueError(
                f"`texts` must have distinct column names; got {list(names)}. Rename one."
            )
        rows = []
        for row in reader:
            if None in row:
                raise ValueError(
                    f"`texts` must have {len(names)} cells in every row; line {reader.line_num} "
                    "has more. Put texts that hold the delimiter in quotes."
                )
            rows.append(row)
        return rows
    except csv.Error as error:
        raise ValueError(
            f"`texts` must be a well-formed {kind} file; got an error near line "
            f"{reader.line_num}: {error}. Put fields that hold quotes or delimiters in quotes, and "
            'write " inside them as "".'
        ) from error


def _texts(rows: Sequence[tuple[str, str]], source: str) -> Texts:
    for number, (text, label) in enumerate(rows, start=1):
        if not isinstance(text, str) or not text.strip():
            raise ValueError(
                f"`texts` must hold non-empty strings; got {short(text)} in row {number} of "
                f"{source}. Delete the row."
            )
        if not label:
            raise ValueError(
                f"`label` must not be empty; row {number} of {source} has none. Fill it in or "
                "delete the row."
            )
        if not text.isascii() and any("\ud800" <= c <= "\udfff" for c in text):
            raise ValueError(
                f"`texts` must be valid Unicode; row {number} of {source} holds half of a "
                "surrogate pair. Re-encode the text."
            )
    classes = sorted({label for _, label in rows})
    if len(classes) != 2:
        shown = classes if len(classes) <= 5 else [*classes[:5], "..."]
        first = {c: next(i for i, (_, y) in enumerate(rows, 1) if y == c) for c in classes[:5]}
        raise ValueError(
            f"`label` must take exactly two values; got {len(classes)}: {shown} in {source} "
            f"(first rows {first}). Keep the rows of two classes."
        )
    labels_of: dict[str, set[str]] = {}
    for text, label in rows:
        labels_of.setdefault(text, set()).add(label)
    kept = [text for text, labels in labels_of.items() if len(labels) == 1]
    counts = Counter(text for text, _ in rows)
    return Texts(
        texts=tuple(kept),
        labels=np.array([classes.index(next(iter(labels_of[text]))) for text in kept], dtype=int),
        classes=(classes[0], classes[1]),
        source=source,
        n_duplicates=sum(counts[text] - 1 for text in kept),
        n_conflicts=len(labels_of) - len(kept),
    )
