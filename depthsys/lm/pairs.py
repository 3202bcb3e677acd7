"""Contrast pairs: texts that come in twos, one on each side of a concept, and are kept so."""

import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from depthsys.lm import cards
from depthsys.lm.kinds import short
from depthsys.lm.prompts import Splits, Texts, check_alike, check_text, texts_of
from depthsys.lm.records import Records, known_columns, records_of
from depthsys.lm.rows import Text, has_pairs, label_name, pair_rows


@dataclass(frozen=True, repr=False)
class Pairs(Texts):
    """Contrast pairs: `Texts` of which two and two belong together.

    They are taken wherever texts are. Text 2i is the positive one of pair i (label 1), text 2i + 1
    the negative one (label 0). A text may be in several pairs, always on the same side.

    Attributes
    ----------
    texts, labels, classes, source, n_duplicates, n_conflicts
        See `Texts`; ``n_duplicates`` and ``n_conflicts`` count pairs: copies, and those of which a
        text came on both sides.

    Raises
    ------
    ValueError
        If the texts are not two and two.
    """

    labels: np.ndarray = field(default=None)  # pyright: ignore

    def __post_init__(self):
        expected = np.tile([1, 0], len(self.texts) // 2)
        if self.labels is None:
            object.__setattr__(self, "labels", expected)
        if len(self.texts) % 2 or not np.array_equal(self.labels, expected):
            raise ValueError(
                f"`texts` must be positive, negative, positive, negative and so on; got "
                f"{len(self.texts)} of them with labels {short(np.asarray(self.labels).tolist())}. "
                "`lm.read_pairs` makes them from pairs."
            )
        super().__post_init__()

    @property
    def _card(self) -> cards.Card:
        return cards.of_pairs(self)

    @property
    def n_pairs(self) -> int:
        """Number of pairs: half of that of the texts."""
        return len(self) // 2

    @property
    def positives(self) -> tuple[Text, ...]:
        """The positive text of every pair."""
        return self.texts[::2]

    @property
    def negatives(self) -> tuple[Text, ...]:
        """The negative text of every pair."""
        return self.texts[1::2]

    @property
    def letter_note(self) -> str:
        """That the positive text of every pair ends in the same answer letter, as (A); or nothing.

        Then the letter separates the classes as well as the concept does.
        """
        ends = {_answer_letter(text) for text in self.positives}
        if self.n_pairs < 2 or len(ends) > 1 or None in ends:
            return ""
        return (
            f"every positive answer is ({ends.pop()}), so that the letter separates the classes as "
            "well as the concept: balance the answers over the letters"
        )

    @property
    def sha256(self) -> str:
        """Fingerprint of the pairs and their order."""
        rows = [list(pair) for pair in zip(self.positives, self.negatives, strict=True)]
        text = json.dumps({"pairs": rows}, ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()

    def first(self, count: int) -> "Pairs":
        """The first ``count`` texts, without the half of a pair: ``count // 2`` pairs."""
        return self._take(np.arange(2 * min(count // 2, self.n_pairs)))

    def _split(self, sizes: dict[str, int], seed: int) -> "Splits[Texts]":
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"`{name}` must be >= 1; got {size}. Give a number of pairs.")
        rng = np.random.default_rng(seed)
        groups = self._groups()
        groups = [groups[i] for i in rng.permutation(len(groups))]
        groups.sort(key=len, reverse=True)  # those that are alone fill what is left
        parts = {}
        for name, size in sizes.items():
            chosen, groups = _filled(groups, size)
            if len(chosen) < size:
                self._refuse(sizes)
            numbers = rng.permutation(chosen)
            parts[name] = self._take(np.stack([2 * numbers, 2 * numbers + 1], axis=1).ravel())
        return Splits(
            **parts,
            seed=seed,
            n_duplicates=self.n_duplicates,
            n_conflicts=self.n_conflicts,
        )

    def _groups(self) -> list[list[int]]:
        """Numbers of pairs that share a text, directly or through others; alone where none does."""
        first: dict[Text, int] = {}
        root = list(range(self.n_pairs))

        def top(pair: int) -> int:
            while root[pair] != pair:
                root[pair] = pair = root[root[pair]]
            return pair

        for row, text in enumerate(self.texts):
            root[top(row // 2)] = top(first.setdefault(text, row // 2))
        groups = defaultdict(list)
        for pair in range(self.n_pairs):
            groups[top(pair)].append(pair)
        return list(groups.values())

    def _refuse(self, sizes: dict[str, int]) -> None:
        wanted = "/".join(map(str, sizes.values()))
        found = sorted((len(group) for group in self._groups() if len(group) > 1), reverse=True)
        about = ""
        if found:
            some = ", ".join(map(str, found[:8])) + (", ..." if len(found) > 8 else "")
            about = (
                f", {sum(found)} of which share a text with others and stay with them (groups of "
                f"{some} pairs)"
            )
        if self.n_pairs >= sum(sizes.values()):
            raise ValueError(
                f"`pairs` must fill the splits {wanted} without dividing pairs that share a text; "
                f"no way to place them was found for {self.n_pairs} from {self.source}{about}. Add "
                "pairs that share no text, or ask for other sizes."
            )
        raise ValueError(
            f"`pairs` must hold {sum(sizes.values())} distinct pairs for the splits {wanted}; got "
            f"{self.n_pairs} from {self.source}{about} ({self.n_duplicates} duplicates and "
            f"{self.n_conflicts} pairs with a text on both sides dropped). Add pairs or ask for "
            "smaller splits."
        )

    def _take(self, rows: np.ndarray) -> "Pairs":
        return Pairs(tuple(self.texts[i] for i in rows), None, self.classes, self.source)  # pyright: ignore


def _answer_letter(text: Text) -> str | None:
    """A of a text that ends in (A), None of others."""
    found = re.search(r"\(([A-Z])\)\s*\Z", text) if isinstance(text, str) else None
    return found and found[1]


def _filled(groups: list[list[int]], size: int) -> tuple[list[int], list[list[int]]]:
    """Pairs of the first groups that fit into ``size``, and the groups that are left."""
    chosen: list[int] = []
    left = []
    for group in groups:
        if len(chosen) + len(group) <= size:
            chosen += group
        else:
            left.append(group)
    return chosen, left


def read_pairs(
    source: Any,
    *,
    columns: tuple[str, str] | None = None,
    text_column: str | None = None,
    positive: str | None = None,
    subset: str | None = None,
    format: str | None = None,
) -> Pairs:
    """Contrast pairs from a file or from rows of Python, each pair once.

    Parameters
    ----------
    source
        Pairs (positive text, negative text), as steering-vectors takes them, or its or repeng's
        own objects; or a file or a table, see `read_texts`, with two columns. A text may be a list
        of token ids.
    columns
        Those of the positive and of the negative text: by default ``positive`` and ``negative``;
        or, of questions with two answers (as in contrastive activation addition),
        ``answer_matching_behavior`` and ``answer_not_matching_behavior``.
    text_column
        What stands before both: by default ``question`` of questions with two answers; otherwise
        nothing. A space comes between where there is none.
    positive
        The column whose texts get label 1: by default the first.
    subset, format
        See `read_texts`.

    Returns
    -------
    Pairs
        The classes are called by the columns. A pair that comes again, and a pair of which a text
        is also on the other side, are left out and counted.

    Raises
    ------
    ValueError, TypeError, OSError, ImportError
        As `read_texts`.

    Examples
    --------
    >>> from depthsys import lm
    >>> pairs = lm.read_pairs([("I love it", "I hate it"), ("So good", "So bad")])
    >>> pairs.positives, pairs.labels.tolist(), pairs.classes
    (('I love it', 'So good'), [1, 0, 1, 0], ('negative', 'positive'))
    >>> rows = [{"prompt": "It was", "chosen": "good", "rejected": "bad"}]
    >>> lm.read_pairs(rows, columns=("chosen", "rejected"), text_column="prompt").texts
    ('It was good', 'It was bad')
    """
    wanted = known_columns(text_column, *(() if columns is None else _two_names(columns)))
    records, name = records_of(source, wanted, subset=subset, format=format)
    return pairs_of(records, name, columns=columns, text_column=text_column, positive=positive)


def pairs_of(
    records: Records,
    source: str,
    *,
    columns: Sequence[str] | None = None,
    text_column: str | None = None,
    positive: str | None = None,
) -> Pairs:
    """The pairs of records; see `read_pairs`."""
    names = None if columns is None else _two_names(columns)
    rows, (one, other) = pair_rows(records, names, text_column)
    if positive is not None and (chosen := label_name(positive, "as `positive`")) != one:
        if chosen != other:
            raise ValueError(
                f"`positive` must be one of the columns of the pairs, {one!r} or {other!r}; got "
                f"{chosen!r:.40}. The readout grows towards it."
            )
        rows, (one, other) = [pair[::-1] for pair in rows], (other, one)
    if not rows:
        raise ValueError(f"`pairs` must not be empty; {source} has no rows. Add pairs.")
    texts = [text for pair in rows for text in pair]
    for number, text in enumerate(texts):
        check_text(text, f"row {number // 2 + 1} of {source}")
    check_alike(texts[::2] + texts[1::2], source)
    return _distinct(rows, (other, one), source)


def _distinct(rows: Sequence[tuple[Text, Text]], classes: tuple[str, str], source: str) -> Pairs:
    """Every pair once, without those of which a text is also on the other side."""
    both = {positive for positive, _ in rows} & {negative for _, negative in rows}
    kept = [pair for pair in rows if both.isdisjoint(pair)]
    once = list(dict.fromkeys(kept))
    if not once:
        raise ValueError(
            f"`pairs` must hold two different texts each; in {source} a text of every pair is also "
            "on the other side. Correct the columns."
        )
    return Pairs(
        tuple(text for pair in once for text in pair),
        classes=classes,
        source=source,
        n_duplicates=len(kept) - len(once),
        n_conflicts=len(rows) - len(kept),
    )


def _two_names(columns: Any) -> tuple[str, str]:
    good = not isinstance(columns, str) and len(columns) == 2
    if not good or not all(isinstance(name, str) for name in columns) or len(set(columns)) < 2:
        raise ValueError(
            f"`columns` must be the names of two columns, of the positive and of the negative "
            f"text; got {short(columns)}. Write them as in ('chosen', 'rejected')."
        )
    return columns[0], columns[1]


def read_texts_or_pairs(
    source: Any,
    *,
    pairs: tuple[str, str] | None = None,
    positive: str | None = None,
    text_column: str | None = None,
    label_column: str | None = None,
    classes: Sequence[object] | None = None,
    against_rest: bool = False,
    subset: str | None = None,
    format: str | None = None,
) -> Texts:
    """`Pairs` where ``pairs`` names their columns or the columns are those of pairs; or `Texts`.

    Parameters
    ----------
    source
        A file.
    pairs
        Columns of the positive and of the negative text.
    positive, text_column, label_column, classes, against_rest, subset, format
        See `read_texts` and `read_pairs`.

    Raises
    ------
    ValueError
        As those two; and if options of labels come with pairs.
    """
    wanted = known_columns(text_column, label_column, *(() if pairs is None else pairs))
    records, name = records_of(source, wanted, subset=subset, format=format)
    labelled = {
        "label_column": label_column,
        "classes": classes,
        "against_rest": against_rest or None,
    }
    given = [option for option, value in labelled.items() if value is not None]
    if pairs is None and (given or not has_pairs(records)):
        return texts_of(
            records,
            name,
            positive=positive,
            text_column=text_column,
            label_column=label_column,
            classes=classes,
            against_rest=against_rest,
        )
    if given:
        raise ValueError(
            f"`{given[0]}` must come without `pairs`, whose two columns are the classes; got both. "
            "Leave one out."
        )
    return pairs_of(records, name, columns=pairs, text_column=text_column, positive=positive)


@short.register
def _(value: Pairs) -> str:
    return f"Pairs, {value.n_pairs} of them"
