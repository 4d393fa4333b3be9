"""Charts as SVG text: small, without scripts, coloured by the page's style sheet so that they follow its theme.

Every function returns markup whose texts are escaped. `css` arguments are classes of `report.css`
(`c-sr`, `c-bicubic`, ...), which set the colour.
"""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from markupsafe import Markup, escape

from sr_core.evaluation.report.summary import number

Floats = npt.NDArray[np.float64]
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Axis:
    """One axis of a plot: its range, its title with unit, and its ticks (value, text)."""

    low: float
    high: float
    label: str
    ticks: Sequence[tuple[float, str]]

    @classmethod
    def over(
        cls, values: Iterable[float], label: str, steps: int = 6, margin: float = 0.04, whole: bool = False
    ) -> Axis:
        """An axis that holds all finite `values`, with about `steps` round ticks; `whole` for counts."""
        found = [float(value) for value in values if math.isfinite(value)]
        low, high = (min(found), max(found)) if found else (0.0, 1.0)
        spread = (high - low) or max(abs(high) * 0.1, 1.0)
        low, high = low - margin * spread, high + margin * spread
        step = max(nice_step((high - low) / steps), 1.0 if whole else 0.0)
        step = 5.0 if whole and step == 2.5 else step
        digits = decimals(step)
        first = math.ceil(low / step)
        ticks = [(i * step, number(i * step, digits)) for i in range(first, math.floor(high / step) + 1)]
        return cls(low, high, label, ticks)

    @classmethod
    def from_zero(cls, values: Iterable[float], label: str, whole: bool = False) -> Axis:
        """As `over`, starting at exactly zero."""
        axis = cls.over([0.0, *values], label, whole=whole)
        return cls(0.0, axis.high, label, [tick for tick in axis.ticks if tick[0] >= 0])

    @classmethod
    def dates(cls, days: Iterable[dt.datetime], steps: int = 7) -> Axis:
        """Time in days since 1970, with ticks at beginnings of months or years."""
        values = [day_number(day) for day in days]
        low, high = min(values) - 3, max(values) + 3
        months = max(1, math.ceil((high - low) / 30.4 / steps))
        months = next((step for step in (1, 2, 3, 6, 12) if step >= months), 12 * math.ceil(months / 12))
        first = dt.date(1970, 1, 1) + dt.timedelta(days=math.floor(low))
        year, month = first.year, 1
        ticks: list[tuple[float, str]] = []
        while (position := (dt.date(year, month, 1) - dt.date(1970, 1, 1)).days) <= high:
            if position >= low:
                text = dt.date(year, month, 1).strftime("%b %Y" if month == 1 or not ticks else "%b")
                ticks.append((position, str(year) if months >= 12 else text))
            year, month = year + (month - 1 + months) // 12, (month - 1 + months) % 12 + 1
        if len(ticks) < 2:
            ends = dict.fromkeys(math.floor(value) for value in (min(values), max(values)))
            ticks = [(day, (dt.date(1970, 1, 1) + dt.timedelta(days=day)).isoformat()) for day in ends]
        return cls(low, high, "", ticks)


class Plot:
    """A rectangular plot that is filled mark by mark. Sizes in CSS pixels of the view box."""

    def __init__(self, x: Axis, y: Axis, summary: str, width: int = 560, height: int = 300) -> None:
        self.x, self.y, self.summary = x, y, summary
        self.width, self.height = width, height
        widest = max((len(text) for _, text in y.ticks), default=0)
        self.left, self.right, self.top, self.bottom = (
            max(58.0, 32.0 + 7.5 * widest),
            width - 14.0,
            14.0,
            height - (46.0 if x.label else 28.0),
        )
        self.marks: list[Markup] = []

    def px(self, value: float) -> float:
        return self.left + (value - self.x.low) / (self.x.high - self.x.low) * (self.right - self.left)

    def py(self, value: float) -> float:
        return self.bottom - (value - self.y.low) / (self.y.high - self.y.low) * (self.bottom - self.top)

    def dots(self, xs: Iterable[float], ys: Iterable[float], css: str, size: float = 5.0) -> Plot:
        """Points as one path of zero-length strokes; those that fall on each other are drawn once."""
        spots = dict.fromkeys(
            (round(self.px(x) * 2) / 2, round(self.py(y) * 2) / 2)
            for x, y in zip(xs, ys, strict=True)
            if math.isfinite(x) and math.isfinite(y)
        )
        path = "".join(f"M{x:g} {y:g}h0" for x, y in spots)
        self.marks.append(Markup('<path class="dots {}" stroke-width="{}" d="{}"/>').format(css, f"{size:g}", path))
        return self

    def line(self, xs: Iterable[float], ys: Iterable[float], css: str) -> Plot:
        spots = [(self.px(x), self.py(y)) for x, y in zip(xs, ys, strict=True) if math.isfinite(x) and math.isfinite(y)]
        if spots:
            path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in spots)
            self.marks.append(Markup('<path class="line {}" d="{}"/>').format(css, path))
        return self

    def bar(self, low: float, high: float, value: float, css: str, title: str) -> Plot:
        """A bar from zero to `value` over [low, high] of the x axis; `title` is shown on hovering."""
        left, right, top = self.px(low), self.px(high), self.py(value)
        self.marks.append(
            Markup('<rect class="bar {}" x="{}" y="{}" width="{}" height="{}"><title>{}</title></rect>').format(
                css,
                f"{left + 0.75:.1f}",
                f"{top:.1f}",
                f"{max(right - left - 1.5, 0.5):.1f}",
                f"{max(self.py(0) - top, 0):.1f}",
                title,
            )
        )
        return self

    def rule_x(self, value: float, text: str, css: str = "") -> Plot:
        """A vertical line with a label at its top."""
        x = self.px(value)
        if self.left <= x <= self.right:
            end = x > (self.left + self.right) / 2
            self.marks.append(
                Markup(
                    '<line class="rule {}" x1="{x}" x2="{x}" y1="{}" y2="{}"/>'
                    '<text class="note" x="{}" y="{}" text-anchor="{}">{}</text>'
                ).format(
                    css,
                    f"{self.top:g}",
                    f"{self.bottom:g}",
                    f"{x - 5 if end else x + 5:.1f}",
                    f"{self.top + 10:g}",
                    "end" if end else "start",
                    text,
                    x=f"{x:.1f}",
                )
            )
        return self

    def rule_y(self, value: float, text: str, css: str = "") -> Plot:
        """A horizontal line with a label at its right end."""
        y = self.py(value)
        if self.top <= y <= self.bottom:
            self.marks.append(
                Markup(
                    '<line class="rule {}" x1="{}" x2="{}" y1="{y}" y2="{y}"/>'
                    '<text class="note" x="{}" y="{}" text-anchor="end">{}</text>'
                ).format(
                    css,
                    f"{self.left:g}",
                    f"{self.right:g}",
                    f"{self.right - 4:g}",
                    f"{y - 5 if y > self.top + 18 else y + 13:.1f}",
                    text,
                    y=f"{y:.1f}",
                )
            )
        return self

    def svg(self) -> Markup:
        grid, texts = [], []
        for value, text in self.y.ticks:
            y = f"{self.py(value):.1f}"
            grid.append(
                Markup('<line x1="{}" x2="{}" y1="{y}" y2="{y}"/>').format(f"{self.left:g}", f"{self.right:g}", y=y)
            )
            texts.append(
                Markup('<text x="{}" y="{}" dy=".32em" text-anchor="end">{}</text>').format(
                    f"{self.left - 8:g}", y, text
                )
            )
        for value, text in self.x.ticks:
            x = f"{self.px(value):.1f}"
            grid.append(
                Markup('<line x1="{x}" x2="{x}" y1="{}" y2="{}"/>').format(
                    f"{self.bottom:g}", f"{self.bottom + 5:g}", x=x
                )
            )
            texts.append(
                Markup('<text x="{}" y="{}" text-anchor="middle">{}</text>').format(x, f"{self.bottom + 19:g}", text)
            )
        middle = (self.top + self.bottom) / 2
        axes = Markup(
            '<text class="axis" x="{}" y="{}" text-anchor="middle">{}</text>'
            '<text class="axis" transform="translate(13 {}) rotate(-90)" text-anchor="middle">{}</text>'
        ).format(f"{(self.left + self.right) / 2:g}", f"{self.height - 6:g}", self.x.label, f"{middle:g}", self.y.label)
        return _svg(
            self.width,
            self.height,
            self.summary,
            Markup('<g class="grid">{}</g>{}<g class="ticks">{}</g>{}').format(
                Markup("").join(grid), Markup("").join(self.marks), Markup("").join(texts), axes
            ),
        )


def histogram(values: Floats, label: str, summary: str, bars: int = 24) -> Markup:
    """How often values occur; those below zero in the colour of a loss."""
    step = nice_step(max(float(np.ptp(values)), 1e-3) / bars)
    first, last = math.floor(values.min() / step), math.floor(values.max() / step) + 1
    # zero is always an edge, so that no bar mixes gains and losses
    edges = np.arange(first, last + 1) * step
    counts, _ = np.histogram(values, edges)
    digits = decimals(step)
    plot = Plot(
        Axis.over([*edges, 0.0], label, steps=7),
        Axis.from_zero([1.2 * counts.max(), 4.0], "samples", whole=True),
        summary,
        height=280,
    )
    for low, high, n in zip(edges[:-1], edges[1:], counts, strict=True):
        if n:
            title = f"{number(low, digits)} to {number(high, digits)} dB: {number(n)}"
            plot.bar(low, high, float(n), "c-sr" if low >= -step / 2 else "c-loss", title)
    plot.rule_x(0.0, "")
    mean = float(values.mean())
    return plot.rule_x(mean, f"mean {number(mean, 2)} dB", "strong").svg()


def nice_step(step: float) -> float:
    """The least of 1, 2, 2.5, 5 times a power of ten that is not below `step`."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= step * 0.999)


def decimals(step: float) -> int:
    """Digits behind the point that a multiple of `step` needs."""
    return next(digits for digits in range(12) if math.isclose(step, round(step, digits), rel_tol=1e-6))


def day_number(day: dt.datetime) -> float:
    """Days since 1970, a naive UTC time as a number for a plot."""
    return (day - dt.datetime(1970, 1, 1)).total_seconds() / 86400


def ground_map(cells: Sequence[Box], footprints: Mapping[str, Iterable[Box]], summary: str, width: int = 560) -> Markup:
    """Map in UTM metres, north up: cells as outlines, footprints (xmin, ymin, xmax, ymax) filled by class.

    `footprints` maps a style class to its squares; equal ones are drawn once.
    """
    squares = {css: list(dict.fromkeys(boxes)) for css, boxes in footprints.items()}
    every = np.array([*cells, *(square for boxes in squares.values() for square in boxes)], dtype=float)
    (west, south), (east, north) = every[:, :2].min(0), every[:, 2:].max(0)
    margin = 0.04 * max(east - west, north - south)
    west, south, east, north = west - margin, south - margin, east + margin, north + margin
    left, top, bottom_margin = 72.0, 10.0, 50.0
    scale = min((width - left - 12) / (east - west), 520 / (north - south))
    map_width, map_height = (east - west) * scale, (north - south) * scale
    height = top + map_height + bottom_margin

    def path(boxes: Iterable[Box]) -> str:
        return "".join(
            f"M{left + (x0 - west) * scale:.1f} {top + (north - y1) * scale:.1f}"
            f"h{(x1 - x0) * scale:.1f}v{(y1 - y0) * scale:.1f}h{-(x1 - x0) * scale:.1f}z"
            for x0, y0, x1, y1 in boxes
        )

    parts = [
        Markup('<rect class="paper" x="{}" y="{}" width="{}" height="{}"/>').format(
            f"{left:g}", f"{top:g}", f"{map_width:.1f}", f"{map_height:.1f}"
        )
    ]
    step = nice_step(max(east - west, north - south) / 5)
    ticks = []
    for i in range(math.ceil(west / step), math.floor(east / step) + 1):
        x = left + (i * step - west) * scale
        ticks.append(
            Markup('<line x1="{x}" x2="{x}" y1="{}" y2="{}"/>').format(
                f"{top:g}", f"{top + map_height:.1f}", x=f"{x:.1f}"
            )
        )
        parts.append(
            Markup('<text class="tick" x="{}" y="{}" text-anchor="middle">{}</text>').format(
                f"{x:.1f}", f"{top + map_height + 16:.1f}", number(i * step)
            )
        )
    for i in range(math.ceil(south / step), math.floor(north / step) + 1):
        y = top + (north - i * step) * scale
        ticks.append(
            Markup('<line x1="{}" x2="{}" y1="{y}" y2="{y}"/>').format(
                f"{left:g}", f"{left + map_width:.1f}", y=f"{y:.1f}"
            )
        )
        parts.append(
            Markup('<text class="tick" x="{}" y="{}" dy=".32em" text-anchor="end">{}</text>').format(
                f"{left - 6:g}", f"{y:.1f}", number(i * step)
            )
        )
    parts.insert(1, Markup('<g class="grid">{}</g>').format(Markup("").join(ticks)))
    parts.append(Markup('<path class="cell" d="{}"/>').format(path(dict.fromkeys(cells))))
    parts += [
        Markup('<path class="ground {}" d="{}"/>').format(css, path(boxes)) for css, boxes in squares.items() if boxes
    ]
    bar = nice_step((east - west) / 6)
    if bar * scale > map_width / 3:
        bar /= 2
    y = height - 12
    text = f"{number(bar / 1000, 1 if bar % 1000 else 0)} km" if bar >= 1000 else f"{number(bar)} m"
    parts.append(
        Markup(
            '<path class="scalebar" d="M{} {}v5h{}v-5"/><text class="tick" x="{}" y="{}">{}</text>'
            '<g class="north" transform="translate({} {})"><path d="M0 -13l5 14l-5 -4l-5 4z"/>'
            '<text x="10" y="0">N</text></g>'
        ).format(
            f"{left:g}",
            f"{y - 5:.1f}",
            f"{bar * scale:.1f}",
            f"{left + bar * scale + 8:.1f}",
            f"{y + 2:.1f}",
            text,
            f"{left + map_width - 22:.1f}",
            f"{y + 3:.1f}",
        )
    )
    return _svg(math.ceil(left + map_width + 12), math.ceil(height), summary, Markup("").join(parts))


def _svg(width: int, height: int, summary: str, content: Markup) -> Markup:
    return Markup('<svg class="chart" viewBox="0 0 {} {}" style="--w:{}px" role="img" aria-label="{}">{}</svg>').format(
        width, height, width, escape(summary), content
    )
