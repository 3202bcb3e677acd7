"""Import time of the numpy wing over its floor. Run with `make bench`."""

import subprocess
import sys
import time


def seconds(module: str) -> float:
    best = float("inf")
    for _ in range(7):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", f"import {module}"], check=True)
        best = min(best, time.perf_counter() - start)
    return best


def test_import_time():
    floor = seconds("xarray, scipy.sparse.linalg")
    for module in ("depthsys", "depthsys.ltv"):
        print(f"\nimport {module}: {seconds(module) - floor:+.3f} s over xarray and scipy.sparse")
