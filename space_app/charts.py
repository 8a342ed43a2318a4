"""Pictures as SVG that takes its colours from the page, so that it is right in light and dark."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

Point = tuple[float, float]
WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 340, 150, 40, 24, 22


def line_chart(title: str, points: Sequence[Point], form: str, low: float, high: float, until: float) -> str:
    """Points joined by a line, over seconds.

    Args:
        title: says what the line is.
        points: (seconds, value).
        form: of a value, for `format`.
        low, high: of the vertical axis; widened where a point lies outside.
        until: seconds at the right end.
    """
    low, high = min([low, *(y for _, y in points)]), max([high, *(y for _, y in points)])
    until, span = max(until, 1.0), (high - low) or 1.0

    def place(point: Point) -> str:
        x = LEFT + point[0] / until * (WIDTH - LEFT - 10)
        y = HEIGHT - BOTTOM - (point[1] - low) / span * (HEIGHT - BOTTOM - TOP)
        return f"{x:.1f},{y:.1f}"

    path = " ".join(map(place, points))
    dots = "".join(f'<circle cx="{p.split(",")[0]}" cy="{p.split(",")[1]}" r="3"/>' for p in map(place, points))
    last = format(points[-1][1], form) if points else "not measured yet"
    return f"""<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}: {last}">
<text x="0" y="12" class="title">{escape(title)}</text>
<text x="{WIDTH - 10}" y="12" class="value" text-anchor="end">{last}</text>
<line x1="{LEFT}" x2="{WIDTH - 10}" y1="{HEIGHT - BOTTOM}" y2="{HEIGHT - BOTTOM}" class="axis"/>
<line x1="{LEFT}" x2="{WIDTH - 10}" y1="{TOP}" y2="{TOP}" class="grid"/>
<text x="{LEFT - 6}" y="{TOP + 4}" text-anchor="end">{format(high, form)}</text>
<text x="{LEFT - 6}" y="{HEIGHT - BOTTOM + 4}" text-anchor="end">{format(low, form)}</text>
<text x="{LEFT}" y="{HEIGHT - 6}">0 s</text>
<text x="{WIDTH - 10}" y="{HEIGHT - 6}" text-anchor="end">{until:.0f} s</text>
<polyline points="{path}"/>{dots}</svg>"""


def scatter(title: str, across: str, up: str, points: Sequence[tuple[str, float, float]]) -> str:
    """Named points.

    Args:
        title: of the picture.
        across, up: names of the axes.
        points: (name, x, y).
    """
    width, height, left, bottom, top = 640, 300, 60, 44, 34
    if not points:
        return "<p>Nothing to show yet.</p>"
    xs, ys = [x for _, x, _ in points], [y for _, _, y in points]
    x_high, y_low, y_high = max(xs) * 1.25, min(ys), max(ys)
    margin = 0.15 * (y_high - y_low) or 1.0
    y_low, y_high = y_low - margin, y_high + margin

    def place(x: float, y: float) -> tuple[float, float]:
        return (
            left + x / x_high * (width - left - 10),
            height - bottom - (y - y_low) / (y_high - y_low) * (height - bottom - top),
        )

    marks = []
    for name, x, y in points:
        px, py = place(x, y)
        right = px > 0.7 * width
        anchor, shift = ("end", -9) if right else ("start", 9)
        marks.append(
            f'<circle cx="{px:.1f}" cy="{py:.1f}" r="5"><title>{escape(name)}: {x:.2f}, {y:.2f}</title></circle>'
            f'<text x="{px + shift:.1f}" y="{py + 4:.1f}" text-anchor="{anchor}" class="name">{escape(name)}</text>'
        )
    ticks = "".join(
        f'<text x="{place(share * x_high, y_low)[0]:.1f}" y="{height - bottom + 16}" text-anchor="middle">'
        f"{share * x_high:.1f}</text>"
        for share in (0, 0.25, 0.5, 0.75, 1)
    )
    said = escape("; ".join(f"{name}: {x:.2f} and {y:.2f}" for name, x, y in points))
    return f"""<svg class="chart wide" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}. {said}">
<text x="0" y="14" class="title">{escape(title)}</text>
<line x1="{left}" x2="{width - 10}" y1="{height - bottom}" y2="{height - bottom}" class="axis"/>
<line x1="{left}" x2="{left}" y1="{top}" y2="{height - bottom}" class="axis"/>
<text x="{left - 8}" y="{top + 8}" text-anchor="end">{y_high:.1f}</text>
<text x="{left - 8}" y="{height - bottom}" text-anchor="end">{y_low:.1f}</text>
{ticks}<text x="{(width + left) / 2}" y="{height - 8}" text-anchor="middle">{escape(across)}</text>
<text x="{left + 6}" y="{top + 8}">{escape(up)}</text>{"".join(marks)}</svg>"""
