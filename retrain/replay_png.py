"""A replay as one PNG, drawn by matplotlib (extra `train`)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from retrain.replay_charts import Chart, Line, odds
from retrain.replay_page import shown, ticks

#: the series colours of the page on a light screen
COLOURS = (
    *("#2f6fb5", "#d9822b", "#3c9a6a", "#b5485d", "#7b62b3"),
    *("#8a7a3c", "#4aa6b5", "#a85fa0", "#6d7a88", "#c2a23a"),
)
DPI = 80


def draw(path: Path, title: str, charts: Sequence[Chart]) -> None:
    """Raises ModuleNotFoundError where matplotlib is not installed."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = (len(charts) + 1) // 2
    figure = Figure(figsize=(12.0, 4.2 * rows), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=12)
    for axes, chart in zip(figure.subplots(rows, 2, squeeze=False).flat, charts, strict=False):
        _draw(axes, chart)
    for axes in figure.axes[len(charts) :]:
        axes.set_axis_off()
    figure.savefig(path, metadata={"Software": None}, pil_kwargs={"optimize": True})


def _draw(axes: Any, chart: Chart) -> None:
    axes.set_title(chart.title, fontsize=9)
    axes.set_xlabel(chart.x_name, fontsize=9)
    axes.set_ylabel(chart.y_name, fontsize=9)
    (left, right), (low, high) = chart.range("x"), chart.range("y")
    along = odds if chart.x_unit == "odds" else float
    for at, line in enumerate(chart.lines):
        _draw_line(axes, line, along, zorder=2 + len(chart.lines) - at)
    if chart.level is not None:
        axes.axhline(chart.level[0], color=COLOURS[3], linestyle=":", label=chart.level[1])
    axes.set_xlim(along(left), along(right))
    axes.set_ylim(low, high)
    across, up = ticks(left, right, chart.x_unit), ticks(low, high, chart.y_unit)
    axes.set_xticks([*map(along, across)], [shown(value, chart.x_unit) for value in across])
    axes.set_yticks(up, [shown(value, chart.y_unit) for value in up])
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=7, loc="best")


def _draw_line(axes: Any, line: Line, along: Any, zorder: int) -> None:
    colour = COLOURS[line.colour % len(COLOURS)]
    style = "--" if line.dashed else "-"
    if line.points:
        xs, ys = zip(*((along(x), y) for x, y in line.points), strict=True)
        axes.plot(xs, ys, style, color=colour, label=line.name, linewidth=1.6, zorder=zorder)
    if line.points and line.band:
        xs, lows, highs = zip(*line.band, strict=True)
        axes.fill_between([*map(along, xs)], lows, highs, color=colour, alpha=0.16, linewidth=0)
    elif line.band:
        for x, low, high in line.band:
            axes.plot([along(x)] * 2, [low, high], color=colour, linewidth=1)
    marked = [dot for dot in line.dots if dot.marked]
    if marked:
        label = None if line.points else line.name
        xs, ys = zip(*((along(dot.x), dot.y) for dot in marked), strict=True)
        axes.plot(
            *(xs, ys, "o"),
            color=colour,
            markeredgecolor="#1c2430",
            markersize=6,
            label=label,
            zorder=zorder + 1,
        )
