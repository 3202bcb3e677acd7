"""Time of a page of fifty cells, in seconds of this process. Run with `make bench`."""

import time

from depthsys.report.html import page
from depthsys.study.reported import read_results
from tests.report import stores

CELLS, TURNS = 50, 5


def test_report_of_fifty_cells(study_store, tmp_path):
    many = stores.multiplied(study_store, tmp_path / "many.zarr", CELLS)
    best = {"read": float("inf"), "build": float("inf")}
    made = ""
    for _ in range(TURNS):
        start = time.process_time()
        results = read_results(many)
        read = time.process_time()
        made = page(results)
        end = time.process_time()
        best = {"read": min(best["read"], read - start), "build": min(best["build"], end - read)}
    told = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in best.items())
    print(f"\nreport of {CELLS} cells: {told}, {len(made.encode()) / 1e6:.2f} MB")
    assert made.count('<details id="cell-') == CELLS
