"""Labels of the tables of `conftest`."""

import numpy as np

BASES = ["ensemble", "balanced", "pod"]
ORDERS = [1, 4, 16]
PARTS = ["nonlinearity", "averaging", "sampling", "truncation", "total"]


def with_interval(values):
    values = np.asarray(values, float)
    return np.stack([values, 0.5 * values, 2 * values], axis=-1)
