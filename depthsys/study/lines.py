"""Lines of a text file as texts without labels, for measures that are about no concept."""

from pathlib import Path
from typing import TYPE_CHECKING

from depthsys.study.settings import Settings, typed

if TYPE_CHECKING:
    from depthsys.lm import Splits, Texts

LINES = ".txt"
MIN_WORDS = 8  # of a line that counts as a text: headings are none
# settings that say something of labels
OF_LABELS = (
    "split", "concept", "positive", "text_column", "label_column", "pairs", "classes", "subset",
    "against_rest",
)  # fmt: skip
_ONE = "text"  # what both classes of unlabelled texts are called


def are_lines(texts: str | Path, settings: Settings) -> bool:
    """Whether a file is read as lines: a .txt that is not said to be of another format."""
    return Path(texts).suffix.lower() == LINES and settings.format is None


def have_labels(texts: "Texts") -> bool:
    """Whether the labels of texts mean something; those of lines do not."""
    return texts.classes != (_ONE, _ONE)


def check_lines(settings: Settings, *, lines: bool) -> None:
    """ValueError where settings are of the other kind of texts."""
    if not lines and "n_lines" in settings.asked:
        raise ValueError(
            f"`--lines` must come with a {LINES}; got {settings.n_lines} with labelled texts. Use "
            "`--split`, which says how many of each class."
        )
    for name in OF_LABELS if lines else ():
        if name in settings.asked:
            raise ValueError(
                f"`{typed(name)}` must be left out for lines of text, which have no labels; got "
                f"{getattr(settings, name)!r}. Leave it out, or give labelled texts."
            )


def read_lines(path: Path, settings: Settings) -> "Splits":
    """Lines of a file, as many as are asked for: each of the three parts is all of them."""
    from depthsys import lm

    texts = lines_of(path, settings.n_lines, settings.seed)
    return lm.Splits(texts, texts, texts, settings.seed)


def lines_of(path: Path, count: int, seed: int) -> "Texts":
    """Some lines of a text file, drawn at random, each as a text.

    Parameters
    ----------
    path
        Of a file in UTF-8.
    count
        How many at most; lines with fewer than `MIN_WORDS` words, and copies, are left out.
    seed
        Of the draw.

    Raises
    ------
    ValueError
        If it is no text, or no line is long enough.
    """
    import numpy as np

    from depthsys import lm

    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"`texts` must be text in UTF-8; {str(path)!r} is not: {error.reason} at byte "
            f"{error.start}. Convert it."
        ) from error
    whole = list(dict.fromkeys(line.strip() for line in lines if len(line.split()) >= MIN_WORDS))
    if not whole:
        raise ValueError(
            f"`texts` must have lines of {MIN_WORDS} words or more; got none in {str(path)!r}. "
            "Put each text on a line of its own."
        )
    drawn = np.random.default_rng(seed).permutation(len(whole))[:count]
    texts = tuple(whole[number] for number in drawn)
    return lm.Texts(texts, np.zeros(len(texts), dtype=int), (_ONE, _ONE), str(path.resolve()))
