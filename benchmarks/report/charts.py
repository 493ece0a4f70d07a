"""Charts as SVG, drawn by hand: a picture is a few dozen elements, and a drawing library would be the heaviest thing
here. They are legible on a white and on a dark page, because they bring their own background."""

from __future__ import annotations

import math
from typing import Callable, List, Tuple
from xml.sax.saxutils import escape

from benchmarks.report.model import LIMIT, OURS, Chart, Series
from benchmarks.report.words import number

WIDTH, HEIGHT = 900, 430
LEFT, RIGHT, TOP, BOTTOM = 80, 290, 50, 60
BAR = 26  # height of a bar with its gap
LABELS = 290  # width left of the bars
OURS_COLOUR = "#c2410c"
LIMIT_COLOUR = "#6b7280"
PEER_COLOURS = ("#1d4ed8", "#047857", "#7c3aed", "#0e7490", "#a16207", "#be185d", "#4d7c0f", "#334155")

Scale = Callable[[float], float]


def draw(chart: Chart) -> str:
    """The SVG document."""
    return _bars(chart) if chart.kind == "bars" else _lines(chart)


def _document(width: float, height: float, title: str, parts: List[str]) -> str:
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" '
        f'height="{height:.0f}" font-family="sans-serif" font-size="12" role="img">'
    )
    background = f'<rect width="{width:.0f}" height="{height:.0f}" fill="#ffffff"/>'
    return "\n".join(
        [
            head,
            f"<title>{escape(title)}</title>",
            background,
            _text(14, 24, title, size=15, weight="bold"),
            *parts,
            "</svg>",
            "",
        ]
    )


def _text(
    x: float,
    y: float,
    text: str,
    *,
    anchor: str = "start",
    size: int = 12,
    colour: str = "#111827",
    weight: str = "normal",
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" font-weight="{weight}" '
        f'fill="{colour}">{escape(text)}</text>'
    )


def _line(x1: float, y1: float, x2: float, y2: float, colour: str = "#e5e7eb", dashes: str = "") -> str:
    dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"{dashed}/>'


def _colours(series: List[Series]) -> List[str]:
    peers = iter(PEER_COLOURS * 4)
    return [OURS_COLOUR if one.role == OURS else LIMIT_COLOUR if one.role == LIMIT else next(peers) for one in series]


# -- bars --------------------------------------------------------------------------------------------------------


def _bars(chart: Chart) -> str:
    width, height = WIDTH, TOP + BAR * len(chart.series) + BOTTOM
    values = [one.points[0][1] for one in chart.series]
    most = max([*values, chart.limit[1] if chart.limit else 0.0]) or 1.0
    scale, ticks = _axis(0.0, most, LABELS, width - 90, log=chart.log_x, least=min(values))
    parts = [_line(scale(tick), TOP - 6, scale(tick), height - BOTTOM) for tick in ticks]
    parts += [_text(scale(tick), height - BOTTOM + 16, number(tick), anchor="middle", size=11) for tick in ticks]
    for place, (one, value, colour) in enumerate(zip(chart.series, values, _colours(chart.series))):
        y = TOP + place * BAR
        end = scale(value) if value > 0 else LABELS
        parts.append(
            f'<rect x="{LABELS}" y="{y}" width="{max(end - LABELS, 1):.1f}" height="{BAR - 8}" fill="{colour}"/>'
        )
        parts.append(
            _text(LABELS - 8, y + 13, one.label, anchor="end", weight="bold" if one.role == OURS else "normal")
        )
        parts.append(_text(end + 5, y + 13, number(value)))
    if chart.limit:
        x = scale(chart.limit[1])
        parts.append(_line(x, TOP - 10, x, height - BOTTOM, LIMIT_COLOUR, "5 3"))
        parts.append(_text(x, TOP - 13, chart.limit[0], anchor="end", size=11, colour=LIMIT_COLOUR))
    parts.append(_text((LABELS + width) / 2, height - 14, chart.x_label, anchor="middle"))
    return _document(width, height, chart.title, parts)


# -- lines -------------------------------------------------------------------------------------------------------


def _lines(chart: Chart) -> str:
    drawn = [one for one in chart.series if one.points]
    if chart.kind == "distribution":
        # Percentiles by how rare the rest is: 90, 99 and 99.9 are the same distance apart.
        drawn = [Series(one.label, one.role, [[100 / (100 - x), y] for x, y in one.points]) for one in drawn]
    xs = [x for one in drawn for x, _ in one.points]
    ys = [y for one in drawn for _, y in one.points] + ([chart.limit[1]] if chart.limit else [])
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    log_x = chart.log_x or chart.kind == "distribution"
    x_scale, x_ticks = _axis(min(xs), max(xs), LEFT, right, log=log_x, least=min(xs))
    y_scale, y_ticks = _axis(0.0, max(ys), bottom, TOP, log=chart.log_y, least=min(ys))
    parts = [_line(LEFT, y_scale(tick), right, y_scale(tick)) for tick in y_ticks]
    parts += [_text(LEFT - 8, y_scale(tick) + 4, number(tick), anchor="end", size=11) for tick in y_ticks]
    for tick in x_ticks:
        words = f"{100 - 100 / tick:g} %" if chart.kind == "distribution" else number(tick)
        parts += [
            _line(x_scale(tick), TOP, x_scale(tick), bottom),
            _text(x_scale(tick), bottom + 16, words, anchor="middle", size=11),
        ]
    if chart.limit:
        y = y_scale(chart.limit[1])
        parts.append(_line(LEFT, y, right, y, LIMIT_COLOUR, "5 3"))
        parts.append(_text(right - 4, y - 5, chart.limit[0], anchor="end", size=11, colour=LIMIT_COLOUR))
    for place, (one, colour) in enumerate(zip(drawn, _colours(drawn))):
        parts += _one_line(one, colour, place, x_scale, y_scale)
    parts.append(_text((LEFT + right) / 2, HEIGHT - 18, chart.x_label, anchor="middle"))
    parts.append(_text(LEFT - 60, TOP - 12, chart.y_label, size=11))
    return _document(WIDTH, HEIGHT, chart.title, parts)


def _one_line(one: Series, colour: str, place: int, x_scale: Scale, y_scale: Scale) -> List[str]:
    path = " ".join(f"{x_scale(x):.1f},{y_scale(y):.1f}" for x, y in one.points)
    thick = 3 if one.role == OURS else 1.5
    dashed = ' stroke-dasharray="4 3"' if one.role == LIMIT else ""
    legend = TOP + 10 + place * 20
    right = WIDTH - RIGHT
    return [
        f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{thick}"{dashed}/>',
        *[f'<circle cx="{x_scale(x):.1f}" cy="{y_scale(y):.1f}" r="2.5" fill="{colour}"/>' for x, y in one.points],
        f'<rect x="{right + 14}" y="{legend - 8}" width="14" height="6" fill="{colour}"/>',
        _text(right + 34, legend, one.label, weight="bold" if one.role == OURS else "normal"),
    ]


# -- axes --------------------------------------------------------------------------------------------------------


def _axis(low: float, high: float, start: float, end: float, *, log: bool, least: float) -> Tuple[Scale, List[float]]:
    """Where a value lies between the two ends, and which values are written beside the axis."""
    if log and least > 0 and high > 0:
        first, last = math.floor(math.log10(least) + 1e-9), math.ceil(math.log10(high) - 1e-9)
        last = max(last, first + 1)
        step = (end - start) / (last - first)
        return lambda value: start + (math.log10(max(value, 10.0**first)) - first) * step, [
            10.0**power for power in range(first, last + 1)
        ]
    low = min(low, 0.0)
    span = (high - low) or 1.0
    unit = 10 ** math.floor(math.log10(span))
    step_value = next(unit * factor for factor in (0.2, 0.5, 1, 2) if span / (unit * factor) <= 6)
    top = low + math.ceil(span / step_value - 1e-9) * step_value
    count = round((top - low) / step_value)
    return lambda value: start + (value - low) / (top - low) * (end - start), [
        low + step_value * place for place in range(count + 1)
    ]
