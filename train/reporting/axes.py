"""Scales, ticks and thinned lines of the charts."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

Points = Sequence[tuple[float, float]]
MOST_POINTS = 120  # of one line: more than its pixels can show


@dataclass(frozen=True)
class Axis:
    """Values from `low` to `high` on pixels from `start` to `end`."""

    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        """Return the pixel of a value."""
        share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 1)

    def ticks(self, most: int) -> list[float]:
        """Return round values on the axis, at most about `most`."""
        step = _round_step((self.high - self.low) / most)
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [round(number * step, 12) for number in range(first, last + 1)]


def axis(
    values: Sequence[float], start: float, end: float, *, room: float = 0.06,
    most: float | None = None,
) -> Axis:  # fmt: skip
    """Return an axis that holds all values, with some room at its ends, but not above `most`."""
    low, high = min(values), max(values)
    pad = (high - low) * room
    if high - low < 1e-12:
        pad = abs(high) * 0.1
        low, high = (low, high) if pad else (0.0, 1.0)
    if most is None:
        return Axis(low - pad, high + pad, start, end)
    # What has a highest value has 0 for its lowest.
    return Axis(max(low - pad, min(low, 0.0)), min(high + pad, max(high, most)), start, end)


def thin(points: Points) -> list[tuple[float, float]]:
    """Return at most MOST_POINTS points that keep the lowest and highest of each stretch."""
    if len(points) <= MOST_POINTS:
        return list(points)
    kept: list[tuple[float, float]] = [points[0]]
    num = (MOST_POINTS - 2) // 2
    inner = points[1:-1]
    for number in range(num):
        part = inner[number * len(inner) // num : (number + 1) * len(inner) // num]
        ends = {min(part, key=lambda p: p[1]), max(part, key=lambda p: p[1])}
        kept += sorted(ends)
    return [*kept, points[-1]]


def running_mean(points: Points) -> list[tuple[float, float]]:
    """Return the mean of each point and its neighbours, a twentieth of all to either side."""
    reach = max(1, len(points) // 20)
    totals = [0.0]
    for _, value in points:
        totals.append(totals[-1] + value)
    found = []
    for at, (x, _) in enumerate(points):
        side = min(reach, at, len(points) - 1 - at)  # as far to the left as to the right
        side = max(side, reach // 4)  # but at the ends no single point stands for the mean
        low, high = max(0, at - side), min(len(points), at + side + 1)
        found.append((x, (totals[high] - totals[low]) / (high - low)))
    return found


def short(value: float, form: str = "") -> str:
    """Return a tick: 12k, 0.25, 3e-05; 25% where values have that form."""
    if form.endswith("%}"):
        return f"{100 * value:.4g}%"
    if abs(value) >= 1e6:
        return f"{value / 1e6:g}M"
    return f"{value / 1000:g}k" if abs(value) >= 10_000 else f"{value:.4g}"


def spread(wanted: Sequence[float], *, gap: float, low: float, high: float) -> list[float]:
    """Return places near the wanted ones, `gap` apart, within bounds; in the order given."""
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    places = [0.0] * len(wanted)
    below = low - gap
    for number in order:
        below = places[number] = max(wanted[number], below + gap)
    above = high + gap
    for number in reversed(order):  # what went past the lower end moves up again
        above = places[number] = min(places[number], above - gap)
    return places


def _round_step(step: float) -> float:
    power = 10.0 ** math.floor(math.log10(step))
    return next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= step * 0.999)
