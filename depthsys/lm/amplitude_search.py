"""The first amplitude at which pushed schedules reach their target, all searched together."""

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from scipy.interpolate import PchipInterpolator

# Where the search begins, times the amplitude that is predicted for a schedule, and how it goes on
# where the target is not reached there.
FIRST_LOOK = (0.5, 1.0, 2.0)
GROWTH = 4.0
# Largest amplitude that is tried, times the predicted optimum: 16384 times its energy.
LARGEST = 128.0
# A crossing counts as found when the mean shift is within this part of the target.
TOLERANCE = 1e-4
# A response that turns back just before the target may pass it between two points of the search:
# where it comes as near as that, it is looked at more closely around its largest value.
NEARLY = 0.8
LOOKS_NEAR_MAXIMUM = 3
# or when the bracket around it is as narrow as that part of it.
NARROW = 1e-4
MOST_STEPS = 60
# A response flattens where it rises by less than this part of its steepest rise from the origin.
FLAT = 0.25
# Neighbouring amplitudes that are nearer than this part say nothing of a slope.
CLOSE = 1e-2
# Standard errors of the mean progress that are looked at beyond the crossing.
BEYOND = 4.0
# Points of the interpolation of a resampled response between two amplitudes that were played.
FINE = 8


@dataclass
class Search:
    """The first crossing of every schedule, all of them searched together.

    ``points`` holds, per schedule, the amplitudes tried and the progress made: 1 is the target.
    """

    play: Callable[[np.ndarray, np.ndarray], np.ndarray]
    target: np.ndarray
    predicted: np.ndarray
    points: list[dict[float, float]] = field(init=False)

    def __post_init__(self):
        self.points = [{} for _ in self.predicted]
        self._shifts: list[dict[float, np.ndarray]] = [{} for _ in self.predicted]
        self._limit = LARGEST * self.predicted.min()

    def evaluate(self, rows: list[int], alphas: list[float]) -> None:
        """Play schedules at amplitudes, all in one pass, and note what they reach."""
        if not rows:
            return
        shift = self.play(np.array(rows), np.array(alphas))
        progress = shift.mean(axis=0) @ self.target / (self.target @ self.target)
        for place, (row, alpha) in enumerate(zip(rows, alphas, strict=True)):
            self.points[row][alpha] = float(progress[place])
            self._shifts[row][alpha] = shift[:, place]

    def crossing(self, row: int) -> tuple[float, float] | None:
        """The first bracket of a schedule: the last amplitude that misses, the first that reaches.

        None if none reaches. What is within `TOLERANCE` of the target has reached it.
        """
        before = 0.0
        for alpha in sorted(self.points[row]):
            if self.points[row][alpha] >= 1 - TOLERANCE:
                return before, alpha
            before = alpha
        return None

    @property
    def alpha(self) -> np.ndarray:
        """The least amplitude known to reach the target, NaN where none does."""
        found = [self.crossing(row) for row in range(len(self.points))]
        return np.array([np.nan if one is None else one[1] for one in found])

    @property
    def response(self) -> np.ndarray:
        """Shifts (schedule, prompt, output) at `alpha`."""
        like = next(iter(self._shifts[0].values()))
        none = np.full_like(like, np.nan)
        kept = zip(self._shifts, self.alpha, strict=True)
        return np.stack([shifts.get(float(alpha), none) for shifts, alpha in kept])

    def bracket(self) -> None:
        """Look around the prediction, then further away where the target is not reached."""
        rows, alphas = [], []
        for row, predicted in enumerate(self.predicted):
            for alpha in dict.fromkeys(min(f * predicted, self._limit) for f in FIRST_LOOK):
                rows.append(row)
                alphas.append(alpha)
        self.evaluate(rows, alphas)
        while True:
            rows, alphas = [], []
            for row, points in enumerate(self.points):
                last = max(points)
                if self.crossing(row) is None and last < self._limit:
                    rows.append(row)
                    alphas.append(min(GROWTH * last, self._limit))
            if not rows:
                break
            self.evaluate(rows, alphas)
        for _ in range(LOOKS_NEAR_MAXIMUM):
            rows, alphas = [], []
            for row, points in enumerate(self.points):
                if self.crossing(row) is None and max(points.values()) >= NEARLY:
                    near = _beside_maximum(points)
                    rows += [row] * len(near)
                    alphas += near
            self.evaluate(rows, alphas)

    def refine(self) -> None:
        """Shrink every bracket until its upper end is the target, or until it is narrow."""
        for step in range(MOST_STEPS):
            rows, alphas = [], []
            for row, points in enumerate(self.points):
                ends = self.crossing(row)
                if ends is None or abs(points[ends[1]] - 1) <= TOLERANCE:
                    continue
                if ends[1] - ends[0] > NARROW * ends[1]:
                    rows.append(row)
                    alphas.append(_between(points, *ends, halve=step % 3 == 2))
            if not rows:
                return
            self.evaluate(rows, alphas)

    def progress_at_predicted(self) -> list[float]:
        """The part of the target that is reached at the predicted amplitude; NaN if not played."""
        pairs = zip(self.points, self.predicted.tolist(), strict=True)
        return [points.get(predicted, np.nan) for points, predicted in pairs]

    def monotone(self) -> list[bool]:
        """Whether the mean shift never fell on the way to the crossing, per schedule."""
        found = []
        for row, points in enumerate(self.points):
            end = self.alpha[row] if np.isfinite(self.alpha[row]) else np.inf
            way = [0.0] + [points[a] for a in sorted(points) if a <= end]
            # a fall below the tolerance of the search is rounding
            found.append(bool((np.diff(way) >= -TOLERANCE).all()))
        return found

    def saturates(self) -> list[bool]:
        """Whether the mean shift, having risen, flattens or turns before the target.

        It flattens where, between two amplitudes that were played, it rises by less than `FLAT`
        of its steepest mean rise from the origin so far.
        """
        found = []
        for row, points in enumerate(self.points):
            end = self.alpha[row] if np.isfinite(self.alpha[row]) else np.inf
            way = [(0.0, 0.0), *sorted(point for point in points.items() if point[0] <= end)]
            steepest, flat = 0.0, False
            for (a, p), (b, q) in pairwise(way):
                if b - a > CLOSE * b:
                    flat |= q - p < FLAT * steepest * (b - a)
                steepest = max(steepest, q / b)
            found.append(bool(flat and steepest > 0))
        return found

    def look_beyond(self) -> None:
        """Play what was found somewhat further where resampled prompts may cross further out."""
        rows, alphas = [], []
        for row, alpha in enumerate(self.alpha.tolist()):
            if not np.isfinite(alpha):
                continue
            each = self._progress(row, [alpha])[:, 0]
            error = each.std() / np.sqrt(max(1, len(each) - 1))
            further = alpha * (1 + BEYOND * float(error))
            if max(self.points[row]) < further:
                rows.append(row)
                alphas.append(further)
        self.evaluate(rows, alphas)

    def resampled(self, counts: np.ndarray) -> np.ndarray:
        """Amplitudes (schedule, sample) at which the mean of resampled prompts reaches the target.

        ``counts`` (sample, prompt) says how often each prompt was drawn. Nothing is played: the
        shift of every prompt is known at the amplitudes of the search, and the mean of a sample
        is interpolated between them by monotone cubics. Infinite where it never reaches it.
        """
        found = np.full((len(self.points), len(counts)), np.inf)
        share = counts / counts.sum(axis=1, keepdims=True)
        for row, points in enumerate(self.points):
            alphas = np.array(sorted(points))
            mean = share @ self._progress(row, alphas.tolist())
            found[row] = _first_crossings(alphas, mean)
        return found

    def _progress(self, row: int, alphas: list[float]) -> np.ndarray:
        """The part of the target that each prompt reaches (prompt, amplitude)."""
        shift = np.stack([self._shifts[row][alpha] for alpha in alphas], axis=1)
        return shift @ self.target / (self.target @ self.target)


def _first_crossings(alphas: np.ndarray, progress: np.ndarray) -> np.ndarray:
    """Where curves through progress (sample, amplitude) first reach 1; infinite where none does."""
    x = np.concatenate([[0.0], alphas])
    y = np.pad(progress, ((0, 0), (1, 0)))
    steps = np.arange(FINE) / FINE
    fine = np.append((x[:-1, None] + np.diff(x)[:, None] * steps).ravel(), x[-1])
    curve = PchipInterpolator(x, y, axis=1)(fine)
    reached = curve >= 1 - 1e-12
    end = np.maximum(reached.argmax(axis=1), 1)
    at = np.arange(len(curve))
    low, high = curve[at, end - 1], curve[at, end]
    with np.errstate(invalid="ignore", divide="ignore"):
        part = (1 - low) / (high - low)
    crossing = fine[end - 1] + part * (fine[end] - fine[end - 1])
    return np.where(reached.any(axis=1), crossing, np.inf)


def _beside_maximum(points: dict[float, float]) -> list[float]:
    """Amplitudes between the one that reaches furthest and its neighbours."""
    alphas = sorted(points)
    best = alphas.index(max(points, key=points.__getitem__))
    ends = alphas[max(0, best - 1) : best + 2]
    return [float(np.sqrt(a * b)) for a, b in pairwise(ends)]


def _between(points: dict[float, float], low: float, high: float, *, halve: bool) -> float:
    """An amplitude inside a bracket, by inverse interpolation of the points nearest to it.

    ``halve`` takes the middle instead (that of the logarithms, where there are some): where
    interpolation crawls, bisection does not.
    """
    if halve:
        return float(np.sqrt(low * high)) if low > 0.01 * high else (low + high) / 2
    known = {0.0: 0.0} | points
    alphas = sorted(known)
    end = alphas.index(high)
    near = [end - 1, end, end + 1 if end + 1 < len(alphas) else end - 2]
    x = np.array([alphas[i] for i in sorted(near) if i >= 0])
    y = np.array([known[alpha] for alpha in x.tolist()])
    if (np.diff(y) > 0).all():
        weights = [np.prod([(1 - q) / (p - q) for q in y if q != p]) for p in y]
        guess = float(np.dot(weights, x))
        if low < guess < high:
            return guess
    share = (1 - known[low]) / (known[high] - known[low])
    return float(low + np.clip(share, 0.05, 0.95) * (high - low))
