"""Small charts as inline SVG. Colours are CSS classes of the page, so that they follow its theme.

`k0` … `k9` are the series colours; text and axes take the page's text colour.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 560, 300
LEFT, RIGHT, TOP, BOTTOM = 52, 20, 38, 44


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """A bar of a group, in [0, 1] of the axis, with its interval where it has one."""

    group: str
    series: str
    value: float
    low: float | None = None
    high: float | None = None
    label: str = ""


def bars(items: Sequence[Bar], *, axis: str, top: float = 1.0, percent: bool = True) -> str:
    """Grouped bars, one colour per series, with whiskers."""
    groups = list(dict.fromkeys(item.group for item in items))
    series = list(dict.fromkeys(item.series for item in items))
    slot = (WIDTH - LEFT - RIGHT) / max(1, len(groups))
    width = min(70.0, 0.72 * slot / max(1, len(series)))
    parts = [_legend(series) if len(series) > 1 else ""]
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        mark = f"{100 * share * top:.0f} %" if percent else f"{share * top:.2f}"
        parts.append(_line(y := _y(share), mark) if share else _tick(y := _y(0.0), mark))
    for item in items:
        at, which = groups.index(item.group), series.index(item.series)
        x = LEFT + slot * (at + 0.5) + width * (which - len(series) / 2)
        y = _y(item.value / top)
        parts.append(
            f'<rect class="k{which}" x="{x + 2:.1f}" y="{y:.1f}" width="{width - 4:.1f}" '
            f'height="{max(0.0, _y(0.0) - y):.1f}" rx="2"/>'
        )
        middle = x + width / 2
        if item.low is not None and item.high is not None:
            parts.append(
                f'<path class="whisker" d="M{middle:.1f} {_y(item.low / top):.1f}'
                f'V{_y(item.high / top):.1f}"/>'
            )
        above = min(y, _y((item.high or 0.0) / top)) - 5
        parts.append(_text(middle, max(above, 26.0), item.label, "middle"))
    for at, group in enumerate(groups):
        parts.append(_text(LEFT + slot * (at + 0.5), HEIGHT - BOTTOM + 18, group, "middle"))
    return _svg(axis, parts)


def mix(lines: Mapping[str, Mapping[str, int]]) -> str:
    """One stacked bar per line: what share of its requests had which reason."""
    reasons = sorted({reason for line in lines.values() for reason in line})
    parts = [_legend(reasons)]
    rows = (len(reasons) + 3) // 4
    top = TOP + 16 * max(0, rows - 1)
    step = (HEIGHT - BOTTOM - top) / max(1, len(lines))
    for at, (name, line) in enumerate(lines.items()):
        y = top + step * at + 0.2 * step
        parts.append(_text(4, y + 0.34 * step, name, "start"))
        total, x = sum(line.values()) or 1, 90.0
        for which, reason in enumerate(reasons):
            share = line.get(reason, 0) / total
            width = share * (WIDTH - 90 - RIGHT)
            if width <= 0:
                continue
            parts.append(
                f'<rect class="k{which}" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" '
                f'height="{0.6 * step:.1f}"><title>{escape(name)}: {escape(reason)} '
                f"{line[reason]} ({100 * share:.1f} %)</title></rect>"
            )
            if share >= 0.06:
                parts.append(
                    _text(x + width / 2, y + 0.36 * step, f"{100 * share:.0f} %", "middle")
                )
            x += width
    return _svg("share of the requests, by the reason of their route", parts)


def histogram(
    series: Mapping[str, Sequence[float]], *, axis: str, mark: float | None, bins: int = 24
) -> str:
    """Counts of probabilities, stacked, on an axis of their odds, with a vertical ``mark``."""
    counts = {
        name: [sum(min(bins - 1, int(_odds(v) * bins)) == at for v in values) for at in range(bins)]
        for name, values in series.items()
    }
    tallest = max((sum(c[at] for c in counts.values()) for at in range(bins)), default=0) or 1
    width = (WIDTH - LEFT - RIGHT) / bins
    parts = [_legend(list(series)), _line(_y(1.0), str(tallest)), _tick(_y(0.0), "0")]
    for at in range(bins):
        base = 0.0
        for which, column in enumerate(counts.values()):
            height = column[at] / tallest
            if column[at]:
                parts.append(
                    f'<rect class="k{which}" x="{LEFT + width * at + 1:.1f}" '
                    f'y="{_y(base + height):.1f}" width="{width - 2:.1f}" '
                    f'height="{_y(base) - _y(base + height):.1f}"/>'
                )
            base += height
    parts += _x_axis([(_odds(v), f"{v:g}") for v in (0.1, 0.5, 0.9, 0.99, 0.999, 0.9999)])
    if mark is not None and mark <= 1.0:
        x = LEFT + _odds(mark) * (WIDTH - LEFT - RIGHT)
        parts.append(f'<path class="mark" d="M{x:.1f} {TOP}V{_y(0.0):.1f}"/>')
        right = _odds(mark) < 0.5
        text = f"threshold {mark:.4g}"
        parts.append(_text(x + (5 if right else -5), TOP + 10, text, "start" if right else "end"))
    return _svg(axis, parts)


def _odds(probability: float) -> float:
    """Its place on an axis of log-odds from 0.05 to 0.99995."""
    low, high = math.log(0.05 / 0.95), math.log(0.99995 / 0.00005)
    kept = min(0.99995, max(0.05, probability))
    return (math.log(kept / (1.0 - kept)) - low) / (high - low)


def curves(series: Mapping[str, Sequence[float]], *, axis: str, longest: float) -> str:
    """The share of values up to x, for x in [0, longest] seconds."""
    parts = [_legend(list(series))]
    for share in (0.25, 0.5, 0.75, 1.0):
        parts.append(_line(_y(share), f"{100 * share:.0f} %"))
    parts.append(_tick(_y(0.0), "0 %"))
    span = WIDTH - LEFT - RIGHT
    for which, values in enumerate(series.values()):
        ordered = sorted(values)
        steps = [f"M{LEFT} {_y(0.0):.1f}"]
        for at, value in enumerate(ordered, start=1):
            x = LEFT + span * min(1.0, value / longest)
            steps.append(f"H{x:.1f}V{_y(at / len(ordered)):.1f}")
        parts.append(f'<path class="curve s{which}" d="{"".join(steps)}"/>')
    parts += _x_axis([(share, f"{share * longest:.1f} s") for share in (0, 0.25, 0.5, 0.75, 1)])
    return _svg(axis, parts)


def _svg(axis: str, parts: Sequence[str]) -> str:
    caption = _text((WIDTH + LEFT) / 2, HEIGHT - 6, axis, "middle")
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(axis)}">'
        f"{''.join(parts)}{caption}</svg>"
    )


def _y(share: float) -> float:
    return HEIGHT - BOTTOM - max(0.0, min(1.0, share)) * (HEIGHT - BOTTOM - TOP)


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _line(y: float, label: str) -> str:
    return f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>' + _label(y, label)


def _tick(y: float, label: str) -> str:
    return f'<path class="axis" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>' + _label(y, label)


def _label(y: float, label: str) -> str:
    return _text(LEFT - 6, y + 4, label, "end")


def _x_axis(marks: Sequence[tuple[float, str]]) -> list[str]:
    span = WIDTH - LEFT - RIGHT
    return [_text(LEFT + span * at, _y(0.0) + 16, label, "middle") for at, label in marks]


def _legend(series: Sequence[str]) -> str:
    step = max(124.0, 7.0 * max(map(len, series), default=0) + 24)
    columns = max(1, int((WIDTH - LEFT) / step))
    parts = []
    for at, name in enumerate(series):
        x, y = LEFT + step * (at % columns), 4 + 16 * (at // columns)
        parts.append(
            f'<rect class="k{at}" x="{x:.1f}" y="{y}" width="10" height="10" rx="2"/>'
            + _text(x + 14, y + 9, name, "start")
        )
    return "".join(parts)
