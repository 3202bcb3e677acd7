"""What is drawn on Axes."""

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
