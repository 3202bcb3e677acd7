"""What is drawn on Axes."""

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg

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


def written_over(fig):
    """Pairs of texts of a figure that write over each other, and texts that leave it."""
    canvas = FigureCanvasAgg(fig)
    canvas.draw()
    renderer, page = canvas.get_renderer(), fig.bbox.padded(1)
    faults = []
    for ax in fig.axes:
        boxes = []
        for axis in (ax.xaxis, ax.yaxis) if ax.get_visible() and ax.axison else ():
            low, high = sorted(axis.get_view_interval())
            ticks = [*axis.get_major_ticks(), *axis.get_minor_ticks()]
            labels = [t.label1 for t in ticks if low <= t.get_loc() <= high]
            boxes += [label for label in labels if label.get_visible() and not label.get_rotation()]
        legend = ax.get_legend()
        texts = [ax.title, ax.xaxis.label, *boxes, *ax.texts]
        texts += [] if legend is None else legend.get_texts()
        shown = [t for t in texts if t.get_text() and not t.get_rotation()] if boxes else []
        extents = [text.get_window_extent(renderer) for text in shown]
        faults += [t.get_text() for t, box in zip(shown, extents, strict=True) if out(box, page)]
        faults += [
            (shown[i].get_text(), shown[j].get_text())
            for i, box in enumerate(extents)
            for j in range(i)
            # boxes have a little room around the letters
            if box.shrunk(0.95, 0.85).overlaps(extents[j])
        ]
    return faults


def out(box, page):
    return box.x0 < page.x0 or box.y0 < page.y0 or box.x1 > page.x1 or box.y1 > page.y1


def marks_of(line):
    """How many markers of a line are drawn."""
    every = line.get_markevery()
    return int(np.isfinite(line.get_ydata()).sum()) if every is None else len(every)
