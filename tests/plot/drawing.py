"""What is drawn on Axes."""

import numpy as np

from depthsys import plot


def drawn(tmp_path, function, *arguments, **settings):
    """The Axes and, as saving finds faults that plotting does not, the figure saved."""
    fig, (ax,) = plot.figure()
    function(ax, *arguments, **settings)
    plot.save(fig, tmp_path / "a.png", "png")
    return ax


def lines_of(ax):
    return {line.get_label(): line for line in ax.lines}


def labels_of(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def styles_of(lines):
    return {(line.get_marker(), line.get_linestyle()) for line in lines}


def bars_of(ax):
    """Lowest and highest points of the intervals, in the order drawn."""
    return np.array([segment[:, 1] for c in ax.collections for segment in segments_of(c)])


def segments_of(collection):
    return collection.get_segments() if hasattr(collection, "get_segments") else []


def zeros_of(ax):
    return [line for line in ax.lines if line.get_markerfacecolor() == "w"]
