from depthsys import plot


def test_saved_figures_are_whole_and_reproducible(energies, tmp_path):
    for name in ("a.svg", "b.svg"):
        fig, (ax,) = plot.figure()
        plot.schedule(ax, energies)
        plot.save(fig, tmp_path / name, "svg")
    plot.save(fig, tmp_path / "a.png", "png")
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    assert b"minimum-energy schedule" in (tmp_path / "a.svg").read_bytes()
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"


def test_a_figure_may_have_rows():
    _, axes = plot.figure(columns=3, rows=2)
    assert len(axes) == 6
