"""A replay as one HTML page: charts as inline SVG and a table; no scripts, fonts or links to load.

What a point says is shown when the mouse is over it or the keyboard is on it, and stands in the
table as well.
"""

import math
from collections.abc import Sequence
from html import escape

from retrain.demo.charts import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH
from retrain.demo.page import STYLE
from retrain.replay_charts import Chart, Dot, Line, Unit, odds

_MORE = """
.band { opacity: .18; stroke: none } .dashed { stroke-dasharray: 5 4 }
.level { stroke: var(--k3); stroke-dasharray: 2 3; stroke-width: 1.5 }
.dot { opacity: .55 } .marked { opacity: 1; stroke: var(--ink); stroke-width: 1.2 }
.dot:hover, .dot:focus { opacity: 1; stroke: var(--ink); stroke-width: 3; outline: none }
tr.certified td { font-weight: 600; background: var(--card) }
"""


def page(
    title: str,
    about: Sequence[str],
    charts: Sequence[Chart],
    tables: Sequence[tuple[str, Sequence[Sequence[str]], frozenset[int]]],
    notes: Sequence[str],
) -> str:
    """The document. ``tables``: (title, rows with the head first, which rows are certified)."""
    figures = "".join(
        f"<figure><figcaption>{escape(chart.title)}</figcaption>{svg(chart, focus=not at)}</figure>"
        for at, chart in enumerate(charts)
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}{_MORE}</style></head><body>"
        f"<h1>{escape(title)}</h1>"
        + "".join(f"<p>{escape(line)}</p>" for line in about)
        + f'<div class="charts">{figures}</div>'
        + "".join(
            f'<h2>{escape(name)}</h2><div class="scroll">{_table(rows, certified)}</div>'
            for name, rows, certified in tables
        )
        + "<h2>How to read it</h2><ul>"
        + "".join(f"<li>{escape(note)}</li>" for note in notes)
        + "</ul></body></html>\n"
    )


def _table(rows: Sequence[Sequence[str]], certified: frozenset[int]) -> str:
    head, *body = rows
    cells = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head)
    lines = "".join(
        f"<tr{' class=certified' if at in certified else ''}>"
        + "".join(f"<td>{escape(cell)}</td>" for cell in row)
        + "</tr>"
        for at, row in enumerate(body)
    )
    return f"<table><thead><tr>{cells}</tr></thead><tbody>{lines}</tbody></table>"


def svg(chart: Chart, *, focus: bool = False) -> str:
    """``focus``: the keyboard can go to its points."""
    canvas = _Canvas(chart)
    label = escape(f"{chart.title}: {chart.y_name} by {chart.x_name}")
    # an image has no points to go to
    role = "group" if focus else "img"
    parts = [*canvas.axes(), *canvas.legend()]
    for line in reversed(chart.lines):
        parts += canvas.line(line, focus)
    if chart.level is not None:
        parts += canvas.level(*chart.level)
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="{role}" aria-label="{label}">'
        f"{''.join(parts)}</svg>"
    )


class _Canvas:
    """Where the values of a chart are on the page."""

    def __init__(self, chart: Chart) -> None:
        self._chart = chart
        self._x = chart.range("x")
        self._y = chart.range("y")
        self._top = TOP + 14 * ((len(chart.lines) - 1) // 4)

    def axes(self) -> list[str]:
        chart, bottom = self._chart, HEIGHT - BOTTOM
        parts = []
        for value in ticks(*self._y, chart.y_unit):
            y = self.y(value)
            parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
            parts.append(_text(LEFT - 6, y + 4, shown(value, chart.y_unit), "end"))
        for value in ticks(*self._x, chart.x_unit):
            parts.append(_text(self.x(value), bottom + 16, shown(value, chart.x_unit), "middle"))
        parts.append(f'<path class="axis" d="M{LEFT} {bottom}H{WIDTH - RIGHT}"/>')
        return [*parts, _text((WIDTH + LEFT) / 2, HEIGHT - 6, chart.x_name, "middle")]

    def legend(self) -> list[str]:
        parts = []
        step = (WIDTH - LEFT) / 4
        for at, line in enumerate(self._chart.lines):
            x, y = LEFT + step * (at % 4), 4 + 14 * (at // 4)
            dash = " dashed" if line.dashed else ""
            parts.append(
                f'<path class="curve s{line.colour % 10}{dash}" d="M{x:.1f} {y + 5}h14"/>'
                + _text(x + 18, y + 9, _cut(line.name, 19), "start")
            )
        return parts

    def line(self, line: Line, focus: bool) -> list[str]:
        parts, colour = [], line.colour % 10
        if line.points and line.band:
            above = [f"{self.x(x):.1f} {self.y(high):.1f}" for x, _, high in line.band]
            below = [f"{self.x(x):.1f} {self.y(low):.1f}" for x, low, _ in reversed(line.band)]
            parts.append(f'<path class="band k{colour}" d="M{"L".join(above + below)}Z"/>')
        elif line.band:
            for x, low, high in line.band:
                at = f"M{self.x(x):.1f} {self.y(low):.1f}V{self.y(high):.1f}"
                parts.append(f'<path class="whisker" d="{at}"/>')
        if line.points:
            path = "L".join(f"{self.x(x):.1f} {self.y(y):.1f}" for x, y in line.points)
            dash = " dashed" if line.dashed else ""
            parts.append(f'<path class="curve s{colour}{dash}" d="M{path}"/>')
        return parts + [self._dot(dot, colour, focus) for dot in line.dots]

    def _dot(self, dot: Dot, colour: int, focus: bool) -> str:
        marked = " marked" if dot.marked else ""
        to_focus = f' tabindex="0" role="img" aria-label="{escape(dot.text)}"' if focus else ""
        return (
            f'<circle class="dot k{colour}{marked}" cx="{self.x(dot.x):.1f}" '
            f'cy="{self.y(dot.y):.1f}" r="{6 if dot.marked else 4}"{to_focus}>'
            f"<title>{escape(dot.text)}</title></circle>"
        )

    def level(self, value: float, name: str) -> list[str]:
        y = self.y(value)
        line = f'<path class="level" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>'
        return [line, _text(LEFT + 4, y - 4, name, "start")]

    def x(self, value: float) -> float:
        return LEFT + _part(value, *self._x, self._chart.x_unit) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        bottom = HEIGHT - BOTTOM
        return bottom - _part(value, *self._y, self._chart.y_unit) * (bottom - self._top)


def ticks(low: float, high: float, unit: Unit) -> list[float]:
    """Round values to write at an axis."""
    if unit == "odds":
        return [0.1, 0.5, 0.9, 0.99, 0.999]
    span = (high - low) or 1.0
    size = 10.0 ** math.floor(math.log10(span / 5))
    step = next(size * by for by in (1, 2, 5, 10) if span / (size * by) <= 6)
    first = math.ceil(low / step - 1e-9)
    return [at * step for at in range(first, math.floor(high / step + 1e-9) + 1)]


def shown(value: float, unit: Unit) -> str:
    match unit:
        case "share":
            return f"{100 * value:.3g} %"
        case "usd":
            return f"${value:.4g}"
        case "ms":
            return f"{value:,.0f} ms"
    return f"{value:g}"


def _part(value: float, low: float, high: float, unit: Unit) -> float:
    if unit == "odds":
        value, low, high = odds(value), odds(low), odds(high)
    return min(1.0, max(0.0, (value - low) / ((high - low) or 1.0)))


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
