"""Labelled text -> three disjoint splits -> batches of one length."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np

from depthsys.lm import cards
from depthsys.lm.kinds import short
from depthsys.lm.records import Records, known_columns, records_of
from depthsys.lm.rows import (
    Row,
    Text,
    as_written,
    checked_text,
    in_order,
    label_name,
    label_order,
    labelled_rows,
)
from depthsys.splits import SPLITS, split_sizes

Part = TypeVar("Part", covariant=True)
Other = TypeVar("Other")


@dataclass(frozen=True, repr=False)
class Texts:
    """Texts with a binary label, distinct, in a fixed order.

    Attributes
    ----------
    texts
        The texts; or all of them as token ids, for example ``[[3, 1, 4], [1, 5]]``.
    labels
        (text) of 0 and 1.
    classes
        The names behind 0 and 1: a higher readout means ``classes[1]``.
    source
        Where they came from: a path, or "list".
    n_duplicates, n_conflicts
        Copies that were dropped, and texts dropped because they came with both labels.
    n_other
        Rows of other classes than the two that were chosen.

    Raises
    ------
    ValueError
        If there are not as many labels as texts, or a label is not 0 or 1.
    """

    texts: tuple[Text, ...]
    labels: np.ndarray
    classes: tuple[str, str] = ("0", "1")
    source: str = "list"
    n_duplicates: int = 0
    n_conflicts: int = 0
    n_other: int = 0

    def __post_init__(self):
        labels = np.asarray(self.labels)
        if labels.shape != (len(self.texts),):
            raise ValueError(
                f"`labels` must have one label for each of the {len(self.texts)} texts; got shape "
                f"{labels.shape}. `lm.read_texts` makes both from rows."
            )
        if not np.isin(labels, (0, 1)).all():
            raise ValueError(
                f"`labels` must be 0 or 1; got {np.unique(labels)[:5].tolist()}. `lm.read_texts` "
                "takes labels of any names."
            )
        texts = tuple(checked_text(text, f"in text {i}") for i, text in enumerate(self.texts))
        object.__setattr__(self, "texts", texts)
        object.__setattr__(self, "labels", labels.astype(int))

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def _card(self) -> cards.Card:
        return cards.of_texts(self)

    def __repr__(self) -> str:
        return self._card.text()

    def _repr_html_(self) -> str:
        return self._card.html()

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
            **parts,
            seed=seed,
            n_duplicates=self.n_duplicates,
            n_conflicts=self.n_conflicts,
            n_other=self.n_other,
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


@dataclass(frozen=True, repr=False)
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
    n_duplicates, n_conflicts, n_other
        Texts that were dropped before splitting; see `Texts`.
    """

    concept: Part
    operating: Part
    held_out: Part
    seed: int = 0
    n_duplicates: int = 0
    n_conflicts: int = 0
    n_other: int = 0

    def __repr__(self) -> str:
        return cards.of_splits(self).text()

    def _repr_html_(self) -> str:
        return cards.of_splits(self).html()

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
            self.n_other,
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


def read_texts(
    source: Any,
    *,
    positive: object = None,
    text_column: str | None = None,
    label_column: str | None = None,
    classes: Sequence[object] | None = None,
    against_rest: bool = False,
    subset: str | None = None,
    format: str | None = None,
) -> Texts:
    """Labelled texts from a file or from rows of Python, duplicates removed and counted.

    Parameters
    ----------
    source
        A .csv or .tsv file with a header (quoting as usual in CSV, none in TSV), a .json file with
        an array of objects, a .jsonl file, a .parquet file, or a folder as `datasets` saves it
        (these two need pyarrow); with columns of texts and of labels. Or rows: pairs (text, label);
        dictionaries, as data sets of Hugging Face give them; a table of pandas, polars or pyarrow;
        a dictionary of columns. A text may be a list of token ids; a column ``input_ids`` ("1 2 3"
        or "[1, 2, 3]" in a file) holds some, and what ``attention_mask`` covers is left out. A text
        that comes with both labels is dropped.
    positive
        The label that becomes 1: the readout grows towards it. By default the second of
        ``classes``; else the larger number, the later class of a data set that names its classes,
        or the later one of two words.
    text_column, label_column
        What the columns are called; by default ``text`` (or ``input_ids``) and ``label``.
    classes
        The two labels that are meant, where there are more; rows with others are left out and
        counted.
    against_rest
        All other labels than ``positive`` are one class, "not" that one.
    subset
        Which of several data sets, where ``source`` is a folder or a dictionary of them: "train".
    format
        What a file is, if its name does not end in it: "csv", "tsv", "json", "jsonl", "parquet" or
        "arrow".

    Raises
    ------
    FileNotFoundError
        If the file does not exist.
    ImportError
        If it takes pyarrow, which is not installed.
    ValueError
        If the format, columns, labels or a text is not usable; the message names the row. If
        ``positive`` or one of ``classes`` is none of the labels.

    Examples
    --------
    >>> from depthsys import lm
    >>> texts = lm.read_texts([("good", 1), ("bad", 0), ("good", 1)])
    >>> texts.texts, texts.classes, texts.n_duplicates
    (('good', 'bad'), ('0', '1'), 1)
    >>> lm.read_texts([{"text": "good", "label": 10}, {"text": "bad", "label": 2}]).classes
    ('2', '10')
    >>> lm.read_texts([("good", "pos"), ("bad", "neg")], positive="neg").classes
    ('pos', 'neg')
    >>> moods = [("hurray", "joy"), ("grrr", "anger"), ("oh no", "fear"), ("hm", "none")]
    >>> lm.read_texts(moods, classes=("anger", "joy")).n_other
    2
    >>> lm.read_texts(moods, positive="joy", against_rest=True).classes
    ('not joy', 'joy')
    """
    wanted = known_columns(text_column, label_column)
    records, name = records_of(source, wanted, subset=subset, format=format)
    return texts_of(
        records,
        name,
        positive=positive,
        text_column=text_column,
        label_column=label_column,
        classes=classes,
        against_rest=against_rest,
    )


def texts_of(
    records: Records,
    source: str,
    *,
    positive: object = None,
    text_column: str | None = None,
    label_column: str | None = None,
    classes: Sequence[object] | None = None,
    against_rest: bool = False,
) -> Texts:
    """The texts of records; see `read_texts`."""
    rows = labelled_rows(records, text_column, label_column)
    for number, (text, label) in enumerate(rows, start=1):
        check_text(text, f"row {number} of {source}")
        if not label:
            raise ValueError(
                f"`label` must not be empty; row {number} of {source} has none. Fill it in or "
                "delete the row."
            )
    check_alike([text for text, _ in rows], source)
    order = label_order(records, label_column)
    side_of, names = _classes(rows, source, order, positive, classes, against_rest)
    kept = [(text, side_of[label]) for text, label in rows if label in side_of]
    return _distinct(kept, names, source, len(rows) - len(kept))


def _distinct(
    rows: Sequence[tuple[Text, int]], classes: tuple[str, str], source: str, n_other: int
) -> Texts:
    """Every text once, if it always has the same label."""
    labels_of: dict[Text, set[int]] = {}
    for text, label in rows:
        labels_of.setdefault(text, set()).add(label)
    kept = [text for text, labels in labels_of.items() if len(labels) == 1]
    counts = Counter(text for text, _ in rows)
    return Texts(
        texts=tuple(kept),
        labels=np.array([next(iter(labels_of[text])) for text in kept], dtype=int),
        classes=classes,
        source=source,
        n_duplicates=sum(counts[text] - 1 for text in kept),
        n_conflicts=len(labels_of) - len(kept),
        n_other=n_other,
    )


def check_alike(texts: Sequence[Any], source: str) -> None:
    """ValueError unless all are strings, or all are token ids."""
    last = {isinstance(text, str): number for number, text in enumerate(texts, start=1)}
    if len(last) > 1:
        raise ValueError(
            f"`texts` must be strings or token ids, all of them alike; got a string in row "
            f"{last[True]} and token ids in row {last[False]} of {source}. Tokenize the strings."
        )


def check_text(text: Any, where: str) -> None:
    """ValueError unless it is a text, or token ids, that a model can be given."""
    if isinstance(text, tuple):
        if not text or min(text) < 0:
            raise ValueError(
                f"`texts` must hold token ids >= 0; got {list(text)[:8]} in {where}. Delete "
                "the row."
            )
    elif not isinstance(text, str) or not text.strip():
        raise ValueError(
            f"`texts` must hold non-empty strings; got {text!r} in {where}. Delete the row."
        )
    elif not text.isascii() and any("\ud800" <= c <= "\udfff" for c in text):
        raise ValueError(
            f"`texts` must be valid Unicode; {where} holds half of a surrogate pair. Re-encode the "
            "text."
        )


def _classes(
    rows: Sequence[Row],
    source: str,
    order: Sequence[str],
    positive: object,
    classes: Sequence[object] | None,
    against_rest: bool,
) -> tuple[dict[str, int], tuple[str, str]]:
    """0 or 1 for every label that is meant, and the names of the two."""
    labels = {label for _, label in rows}
    named = [name for name in order if name in labels]
    found = named if len(named) == len(labels) else in_order(labels)
    one = None if positive is None else as_written(label_name(positive, "as `positive`"), found)
    if one is not None and one not in found:
        raise ValueError(
            f"`positive` must be one of the labels {some_labels(found)}; got {one!r}. The readout "
            "grows towards it."
        )
    if against_rest:
        return _against_rest(found, one, classes)
    if classes is None:
        pair = _two(found, rows, source)
    else:
        pair = _chosen(classes, found, source)
    if one is not None and one not in pair:
        raise ValueError(
            f"`positive` must be one of the two classes {pair}; got {one!r}. The readout grows "
            "towards it."
        )
    if one is not None:
        pair = sorted(pair, key=lambda label: label == one)
    return {pair[0]: 0, pair[1]: 1}, (pair[0], pair[1])


def _two(found: list[str], rows: Sequence[Row], source: str) -> list[str]:
    """The two labels that there are."""
    if len(found) != 2:
        first = {
            label[:40]: next(i for i, (_, other) in enumerate(rows, 1) if other == label)
            for label in found[:5]
        }
        cure = (
            "Choose two with `classes`, or one against the rest with `positive` and `against_rest`."
            if len(found) > 2
            else "Add texts of another class."
        )
        raise ValueError(
            f"`label` must take exactly two values; got {len(found)}: {some_labels(found)} in "
            f"{source} (first rows {first}). {cure}"
        )
    return found


def _chosen(classes: Sequence[object], found: list[str], source: str) -> list[str]:
    if isinstance(classes, str) or len(classes) != 2:
        raise ValueError(
            f"`classes` must be two labels; got {classes!r:.60}. Write them as in anger,joy: the "
            "readout grows towards the second."
        )
    pair = [as_written(label_name(label, "in `classes`"), found) for label in classes]
    absent = [label for label in pair if label not in found]
    if absent or pair[0] == pair[1]:
        raise ValueError(
            f"`classes` must be two of the labels {some_labels(found)} in {source}; got {pair}. "
            "Choose two."
        )
    return pair


def _against_rest(
    found: list[str], one: str | None, classes: object
) -> tuple[dict[str, int], tuple[str, str]]:
    if one is None or classes is not None:
        raise ValueError(
            "`against_rest` must come with `positive`, and without `classes`; got "
            f"{'no label' if one is None else 'both'}. Name the label that all others are held "
            "against."
        )
    if len(found) < 2:
        raise ValueError(
            f"`against_rest` must have other labels than {one!r}; got none. Add texts of another "
            "class."
        )
    return {label: int(label == one) for label in found}, (f"not {one}", one)


def some_labels(labels: Sequence[str]) -> list[str]:
    """A few of some labels, in their order, each of bounded length."""
    shown = [label if len(label) <= 40 else f"{label[:37]}..." for label in labels[:6]]
    return shown if len(labels) <= 6 else [*shown[:5], "..."]
