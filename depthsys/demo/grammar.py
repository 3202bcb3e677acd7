"""A seeded grammar of short reviews, tweets and stories with two controlled concepts.

Every text has a **sentiment** (0 = negative, 1 = positive) and a **domain** (0 = food and
restaurants, 1 = films), drawn independently. The sentiment is that of the verdict the text
arrives at, not of the words it uses: praise can be negated, expected and missed, reported of
others and rejected, or outweighed by a later clause. Counting good and bad words therefore
does not settle it. The domain can mostly be read off the nouns.

The module needs the standard library only, so the text is the same on every machine.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

from depthsys.demo.words import (
    ADJECTIVES,
    ASIDES,
    DAYS,
    DOMAINS,
    ENDS,
    EXCLAMATIONS,
    HEDGES,
    INTENSIFIERS,
    NAMES,
    OTHERS,
    PREDICATES,
    STARS,
    VERDICTS,
    Domain,
)

__all__ = ["CONCEPTS", "labelled", "training_documents"]

CONCEPTS = ("sentiment", "domain")
"""The binary concepts; labels are 0/1 = negative/positive and food/film."""

_SHORTEST, _LONGEST = 6, 40
# A document of several texts must fit the 128 positions of the demo models with its verdict.
_LONGEST_SERIES = 68


def labelled(
    count_per_class: int, concept: str = "sentiment", seed: int = 0
) -> list[tuple[str, int]]:
    """Distinct texts with the label of one concept, balanced and crossed with the other.

    Each class holds `count_per_class` texts, half of them with either value of the other
    concept (one more of one value when the count is odd), so that a direction separating the
    classes cannot do so by way of the other concept.

    Parameters
    ----------
    count_per_class
        Number of texts with label 0 and with label 1.
    concept
        ``"sentiment"`` (0 = negative, 1 = positive) or ``"domain"`` (0 = food, 1 = film).
    seed
        Chooses texts and order; the same seed gives the same list.

    Returns
    -------
    list[tuple[str, int]]
        ``2 * count_per_class`` pairs of text and label, shuffled. Texts have 6 to 40 words
        and end in ``.`` or ``!`` whatever their labels.

    Raises
    ------
    ValueError
        If `concept` is unknown or `count_per_class` is less than 1.

    Examples
    --------
    "Not disappointing" is praise, "anything but good" is not:

    >>> for text, label in labelled(2, "sentiment", seed=401):
    ...     print(label, text)
    1 The cast was fairly lovely. I found the costumes not disappointing. We paid by card.
    0 The potatoes were anything but good. It rained all evening!
    0 All in all it was not worth the money. The show was truly terrible!
    1 We ordered the set menu at the noodle bar on Tuesday. I found the cook delightful.

    Labels are balanced and texts distinct:

    >>> pairs = labelled(50, "domain")
    >>> sum(label for _, label in pairs), len({text for text, _ in pairs})
    (50, 100)
    """
    if concept not in CONCEPTS:
        raise ValueError(
            f"`concept` must be one of 'sentiment', 'domain'; got {concept!r}. "
            "Choose one of the two concepts that the grammar controls."
        )
    _check_count("count_per_class", count_per_class)
    rng = random.Random(f"labelled {concept} {seed}")
    seen: set[str] = set()
    pairs = []
    for label in (0, 1):
        for position in range(count_per_class):
            # Starting the alternation at the label keeps the other concept balanced over
            # both classes together when the count is odd.
            other = (position + label) % 2
            sentiment, domain = (label, other) if concept == "sentiment" else (other, label)
            text = _text(rng, sentiment, domain)
            while text in seen:
                text = _text(rng, sentiment, domain)
            seen.add(text)
            pairs.append((text, label))
    rng.shuffle(pairs)
    return pairs


def training_documents(count: int, seed: int = 0) -> Iterator[str]:
    """Documents for language modelling: a text and what follows from both of its concepts.

    Most documents are one text followed by a continuation whose first words already depend
    on sentiment and domain, so that a language model must hold both at the last token of the
    text. One in ten is a series: several texts that agree in sentiment and domain, then one
    continuation.

    Parameters
    ----------
    count
        Number of documents.
    seed
        Chooses the documents; the same seed gives the same documents, and fewer of them are
        a prefix of more.

    Yields
    ------
    str
        One document, at most about 110 words.

    Raises
    ------
    ValueError
        If `count` is less than 1.

    Examples
    --------
    >>> for document in training_documents(2, seed=1255):
    ...     print(document)
    I cannot say that the acting was original. Avoid. Verdict: one star for this film.
    The paper called the movie bad, but I disagree. What a joy. I clapped at the credits.
    """
    _check_count("count", count)
    # The check must run at the call, not at the first `next`, hence the inner generator.
    return _documents(count, seed)


def _documents(count: int, seed: int) -> Iterator[str]:
    rng = random.Random(f"training_documents {seed}")
    for _ in range(count):
        sentiment, domain = rng.randrange(2), rng.randrange(2)
        parts = [_text(rng, sentiment, domain)]
        if rng.random() < 0.1:
            for _ in range(rng.randint(1, 3)):
                text = _text(rng, sentiment, domain)
                if _words(" ".join([*parts, text])) <= _LONGEST_SERIES:
                    parts.append(text)
        parts.append(_continuation(rng, sentiment, domain))
        yield " ".join(parts)


def _check_count(name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(
            f"`{name}` must be an integer of at least 1; got {value!r}. Ask for one text or more."
        )


def _words(text: str) -> int:
    return len(text.split())


def _text(rng: random.Random, sentiment: int, domain: int) -> str:
    while True:
        write = rng.choices(_FORMS, _FORM_WEIGHTS)[0]
        text = write(rng, sentiment, DOMAINS[domain])
        if _SHORTEST <= _words(text) <= _LONGEST:
            return text


def _continuation(rng: random.Random, sentiment: int, domain: int) -> str:
    subject = DOMAINS[domain]
    exclamation = rng.choice(EXCLAMATIONS[sentiment])
    advice = rng.choice(subject.advice[sentiment])
    outlook = rng.choice(subject.outlook[sentiment])
    stars = rng.choice(STARS[sentiment])
    verdict = f"Verdict: {stars} for this {subject.one}."
    opening = rng.choices((exclamation, advice, outlook, verdict), (4, 4, 2, 1))[0]
    rest = [part for part in (exclamation, advice, outlook, verdict) if part != opening]
    return " ".join([opening, *rng.sample(rest, rng.randint(1, 2))])


# Clauses: each returns a clause that conveys `sentiment`, without capital or full stop.


def _adjective(rng: random.Random, sentiment: int, subject: Domain, general: bool = False) -> str:
    if general or rng.random() < 0.6:
        return rng.choice(ADJECTIVES[sentiment])
    return rng.choice(subject.adjectives[sentiment])


def _thing(rng: random.Random, subject: Domain) -> tuple[str, str, bool]:
    """A noun phrase, its verb, and whether only general adjectives suit it."""
    kind = rng.random()
    if kind < 0.25:
        return rng.choice(subject.whole), "was", True
    if kind < 0.38:
        return *rng.choice(subject.people), True
    return *rng.choice(subject.aspects), False


def _quality(rng: random.Random, sentiment: int, subject: Domain, general: bool) -> str:
    """A predicate adjective, a quarter of the time by denying its opposite."""
    same = _adjective(rng, sentiment, subject, general)
    opposite = _adjective(rng, 1 - sentiment, subject, general)
    kind = rng.random()
    if kind < 0.38:
        return same
    if kind < 0.67:
        return f"{rng.choice(INTENSIFIERS)} {same}"
    if kind < 0.74:
        # Here "not" does not negate; without such cases it would be a sign by itself.
        other = _adjective(rng, sentiment, subject, general)
        return f"not only {same} but {other}" if other != same else f"not just {same}"
    return rng.choice(
        (
            f"not {opposite} at all",
            f"not {opposite}",
            f"far from {opposite}",
            f"anything but {opposite}",
            f"never {opposite}",
            f"by no means {opposite}",
            f"not {rng.choice(INTENSIFIERS[:5])} {opposite}",
        )
    )


def _clause(rng: random.Random, sentiment: int, subject: Domain) -> str:
    noun, verb, general = _thing(rng, subject)
    kind = rng.random()
    if kind < 0.6:
        clause = f"{noun} {verb} {_quality(rng, sentiment, subject, general)}"
    elif kind < 0.72:
        clause = f"I found {noun} {_quality(rng, sentiment, subject, general)}"
    elif kind < 0.92:
        clause = f"{noun} {rng.choice(PREDICATES[sentiment])}"
    else:
        opposite = _adjective(rng, 1 - sentiment, subject, general)
        clause = rng.choice(
            (
                f"I cannot say that {noun} {verb} {opposite}",
                f"nobody could call {noun} {opposite}",
                f"it would be wrong to call {noun} {opposite}",
                f"I do not agree that {noun} {verb} {opposite}",
            )
        )
    return clause


def _verdict(rng: random.Random, sentiment: int, subject: Domain) -> str:
    del subject  # verdicts fit either domain; the signature is that of all clauses
    return f"{rng.choice(ENDS)} {rng.choice(VERDICTS[sentiment])}"


def _contrast(rng: random.Random, sentiment: int, subject: Domain) -> str:
    """Two clauses against each other; the main clause carries the sentiment."""
    main = _clause(rng, sentiment, subject)
    minor = _clause(rng, 1 - sentiment, subject)
    verdict = _verdict(rng, sentiment, subject)
    return rng.choice(
        (
            f"{minor}, but {main}",
            f"{minor}, yet {main}",
            f"although {minor}, {main}",
            f"even though {minor}, {main}",
            f"{main}, even if {minor}",
            f"{main}, although {minor}",
            f"it is true that {minor}, but {verdict}",
            f"{minor}; {verdict}",
            f"{verdict}, even though {minor}",
        )
    )


def _expectation(rng: random.Random, sentiment: int, subject: Domain) -> str:
    """An opinion held before or by others, confirmed or overturned."""
    whole = rng.choice(subject.whole)
    held = rng.randrange(2)
    adjective = _adjective(rng, held, subject, general=True)
    other = rng.choice(OTHERS)
    if held == sentiment:
        return rng.choice(
            (
                f"I expected {whole} to be {adjective}, and so it was",
                f"I expected {whole} to be {adjective}, and I was right",
                f"{other} called {whole} {adjective}, and I agree",
                f"{other} told me that {whole} was {adjective}, and that is true",
                f"I had heard that {whole} was {adjective}, and nobody had lied to me",
            )
        )
    return rng.choice(
        (
            f"I expected {whole} to be {adjective}, but it was nothing of the sort",
            f"I expected {whole} to be {adjective}, and I was wrong",
            f"{other} called {whole} {adjective}, but I disagree",
            f"{other} told me that {whole} was {adjective}, and that is not true",
            f"I had heard that {whole} was {adjective}, but somebody had lied to me",
        )
    )


def _comparison(rng: random.Random, sentiment: int, subject: Domain) -> str:
    best, worst = ("best", "worst") if sentiment else ("worst", "best")
    better, worse = ("better", "worse") if sentiment else ("worse", "better")
    one, had = subject.one, subject.had
    year = rng.choice(("this year", "in years", "in a long time", "this month"))
    return rng.choice(
        (
            f"I have never {had} a {better} {one}",
            f"I have {had} many a {worse} {one}",
            f"this was the {best} {one} I have {had} {year}",
            f"I have not {had} a {better} {one} {year}",
            f"no {one} could have been {better}",
            f"it was far from the {worst} {one} I have {had} {year}",
            f"I have {had} nothing {better} {year}",
        )
    )


def _change(rng: random.Random, sentiment: int, subject: Domain) -> str:
    """A quality that changed; the later state counts."""
    whole = rng.choice(subject.whole)
    before = _adjective(rng, 1 - sentiment, subject, general=True)
    after = _adjective(rng, sentiment, subject, general=True)
    return rng.choice(
        (
            f"{whole} was {before} at first and {after} later",
            f"{whole} was {after} after a {before} start",
            f"what began as {_a(before)} {subject.one} became {_a(after)} one",
            f"the first half was {before}, the rest was {after}",
            f"I wanted to call {whole} {before} after ten minutes, and {after} after an hour",
        )
    )


def _a(adjective: str) -> str:
    return f"{'an' if adjective[0] in 'aeiou' else 'a'} {adjective}"


def _assertion(rng: random.Random, sentiment: int, subject: Domain) -> str:
    """One of the ways above to convey a sentiment."""
    ways = (_clause, _verdict, _contrast, _expectation, _comparison, _change)
    assertion = rng.choices(ways, (50, 6, 17, 11, 8, 8))[0](rng, sentiment, subject)
    return f"{rng.choice(HEDGES)}, {assertion}" if rng.random() < 0.12 else assertion


# Forms: each returns a whole text.


def _sentence(clause: str, mark: str = ".") -> str:
    return clause[0].upper() + clause[1:] + mark


def _mark(rng: random.Random) -> str:
    return "!" if rng.random() < 0.2 else "."


def _aside(rng: random.Random, subject: Domain) -> str:
    return rng.choice(ASIDES if rng.random() < 0.5 else subject.asides)


def _review(rng: random.Random, sentiment: int, subject: Domain) -> str:
    clauses = [_assertion(rng, sentiment, subject)]
    if rng.random() < 0.35:
        clauses.append(_clause(rng, sentiment, subject))
    if rng.random() < 0.35:
        clauses.insert(rng.randint(0, len(clauses)), _aside(rng, subject))
    if rng.random() < 0.5 or not any(noun in " ".join(clauses) for noun in _nouns(subject)):
        went = f"we {rng.choice(subject.went)} {rng.choice(subject.where)} {rng.choice(DAYS)}"
        clauses.insert(0, went)
    *first, last = clauses
    return " ".join([*map(_sentence, first), _sentence(last, _mark(rng))])


def _tweet(rng: random.Random, sentiment: int, subject: Domain) -> str:
    start = rng.choice(("just back", "home again", "quick note", "so", "well", "ok"))
    where = f" {rng.choice(subject.where)}" if rng.random() < 0.4 else ""
    day = rng.choice(DAYS)
    assertion = _assertion(rng, sentiment, subject)
    return f"{start}, {day}{where}: {assertion} {rng.choice(subject.tags)}{_mark(rng)}"


def _story(rng: random.Random, sentiment: int, subject: Domain) -> str:
    first, second = rng.sample(NAMES, 2)
    hoped = rng.randrange(2)
    adjective = _adjective(rng, hoped, subject, general=True)
    whole = rng.choice(subject.whole)
    opening = rng.choice(
        (
            f"{first} and {second} {rng.choice(subject.went)} {rng.choice(subject.where)}",
            f"{first} took {second} out {rng.choice(DAYS)} {rng.choice(subject.where)}",
        )
    )
    if hoped == sentiment:
        turn = rng.choice(
            (
                f"{first} said it would be {adjective}, and {second} had to agree",
                f"{first} called {whole} {adjective}, and {second} thought so too",
                f"they had heard that {whole} was {adjective}, and it was",
            )
        )
    else:
        turn = rng.choice(
            (
                f"{first} said it would be {adjective}, but {second} saw that it was not",
                f"{first} had feared that {whole} was {adjective}, without reason"
                if not hoped
                else f"{first} had hoped that {whole} was {adjective}, in vain",
                f"they had heard that {whole} was {adjective}, and it was not",
            )
        )
    parts = [opening, turn]
    if rng.random() < 0.4:
        closing = (
            ("they left with long faces", "they did not smile on the way home"),
            ("they left with a smile", "there were no long faces on the way home"),
        )
        parts.append(rng.choice(closing[sentiment]))
    if rng.random() < 0.3:
        parts.append(_aside(rng, subject).replace("we ", "they ").replace("I ", "they "))
    *start, last = parts
    return " ".join([*map(_sentence, start), _sentence(last, _mark(rng))])


def _nouns(subject: Domain) -> Iterator[str]:
    yield from subject.whole
    yield subject.one
    for noun, _ in (*subject.aspects, *subject.people):
        yield noun


_FORMS: tuple[Callable[[random.Random, int, Domain], str], ...] = (_review, _tweet, _story)
_FORM_WEIGHTS = (64, 22, 14)
