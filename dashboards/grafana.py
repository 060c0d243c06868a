"""Grafana's classic dashboard JSON, as far as Retort needs it: panels, rows, variables, layout.

A panel says what it shows; where it stands and which number it has follows from its place in the
list, so no two overlap and no id is used twice.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

Json = dict[str, Any]

SCHEMA_VERSION = 39
WIDTH = 24
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """One PromQL expression; ``legend`` may name labels as ``{{label}}``."""

    expr: str
    legend: str = ""
    #: one value for now instead of a line over the dashboard's time range
    instant: bool = False
    format: Literal["time_series", "table", "heatmap"] = "time_series"


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """``unit`` is one of Grafana's unit ids. ``steps`` are (value, colour): the colour holds from
    the value up; the first value is None."""

    title: str
    description: str
    queries: Sequence[Query]
    unit: str
    kind: Literal["timeseries", "stat", "heatmap", "table"] = "timeseries"
    width: int = 8
    height: int = 8
    stack: bool = False
    decimals: int | None = None
    minimum: float | None = 0
    maximum: float | None = None
    steps: Sequence[tuple[float | None, str]] = ((None, "blue"),)
    #: table columns to hide
    hide: Sequence[str] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    title: str
    panels: Sequence[Panel]


@dataclass(frozen=True, slots=True, kw_only=True)
class Variable:
    """A label's values, as a multi-select that starts at all of them."""

    name: str
    label: str
    query: str


def dashboard(
    *, uid: str, title: str, description: str, variables: Sequence[Variable], rows: Sequence[Row]
) -> Json:
    """The whole dashboard. It has no id (Grafana gives one) and a uid that never changes."""
    panels: list[Json] = []
    top = 0
    for row in rows:
        panels.append(_row(row, len(panels) + 1, top))
        top += 1
        left, height = 0, 0
        for panel in row.panels:
            if left + panel.width > WIDTH:
                top, left, height = top + height, 0, 0
            panels.append(_panel(panel, len(panels) + 1, left, top))
            left, height = left + panel.width, max(height, panel.height)
        top += height
    return {
        "id": None,
        "uid": uid,
        "title": title,
        "description": description,
        "tags": ["retort"],
        "schemaVersion": SCHEMA_VERSION,
        "version": 1,
        "editable": False,
        "fiscalYearStartMonth": 0,
        "graphTooltip": 1,
        "liveNow": False,
        "refresh": "30s",
        "style": "dark",
        "time": {"from": "now-6h", "to": "now"},
        "timepicker": {},
        "timezone": "browser",
        "weekStart": "",
        "annotations": {"list": []},
        "links": [
            {
                "asDropdown": False,
                "icon": "external link",
                "includeVars": False,
                "keepTime": True,
                "tags": ["retort"],
                "targetBlank": False,
                "title": "Retort",
                "tooltip": "",
                "type": "dashboards",
                "url": "",
            }
        ],
        "templating": {"list": [_datasource(), *(_variable(v) for v in variables)]},
        "panels": panels,
    }


def _datasource() -> Json:
    return {
        "name": "datasource",
        "label": "Data source",
        "type": "datasource",
        "query": "prometheus",
        "current": {},
        "hide": 0,
        "includeAll": False,
        "multi": False,
        "options": [],
        "refresh": 1,
        "regex": "",
        "skipUrlSync": False,
    }


def _variable(variable: Variable) -> Json:
    return {
        "name": variable.name,
        "label": variable.label,
        "type": "query",
        "datasource": DATASOURCE,
        "definition": variable.query,
        "query": variable.query,
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
        "hide": 0,
        "includeAll": True,
        "allValue": ".+",
        "multi": True,
        "options": [],
        "refresh": 2,
        "regex": "",
        "skipUrlSync": False,
        "sort": 1,
    }


def _row(row: Row, number: int, top: int) -> Json:
    return {
        "id": number,
        "type": "row",
        "title": row.title,
        "collapsed": False,
        "gridPos": {"x": 0, "y": top, "w": WIDTH, "h": 1},
        "panels": [],
    }


def _panel(panel: Panel, number: int, left: int, top: int) -> Json:
    made: Json = {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": DATASOURCE,
        "gridPos": {"x": left, "y": top, "w": panel.width, "h": panel.height},
        "fieldConfig": {"defaults": _defaults(panel), "overrides": []},
        "options": _options(panel),
        "targets": [_target(query, index) for index, query in enumerate(panel.queries)],
    }
    if panel.kind == "table":
        hidden = dict.fromkeys(("Time", "Value", "__name__", *panel.hide), True)
        made["transformations"] = [{"id": "organize", "options": {"excludeByName": hidden}}]
    return made


def _target(query: Query, index: int) -> Json:
    return {
        "refId": chr(ord("A") + index),
        "datasource": DATASOURCE,
        "editorMode": "code",
        "expr": query.expr,
        "format": query.format,
        "instant": query.instant,
        "range": not query.instant,
        "legendFormat": query.legend or "__auto",
    }


def _defaults(panel: Panel) -> Json:
    colour = {"mode": "palette-classic" if panel.kind == "timeseries" else "thresholds"}
    steps = [{"value": value, "color": name} for value, name in panel.steps]
    defaults: Json = {
        "unit": panel.unit,
        "color": colour,
        "mappings": [],
        "thresholds": {"mode": "absolute", "steps": steps},
    }
    for key, value in (
        ("min", panel.minimum),
        ("max", panel.maximum),
        ("decimals", panel.decimals),
    ):
        if value is not None:
            defaults[key] = value
    if panel.kind == "timeseries":
        defaults["custom"] = {
            "drawStyle": "line",
            "fillOpacity": 30 if panel.stack else 8,
            "lineWidth": 1,
            "showPoints": "never",
            "spanNulls": False,
            "stacking": {"group": "A", "mode": "normal" if panel.stack else "none"},
            "thresholdsStyle": {"mode": "off"},
        }
    return defaults


def _options(panel: Panel) -> Json:
    if panel.kind == "timeseries":
        return {
            "legend": {
                "calcs": ["lastNotNull"],
                "displayMode": "table",
                "placement": "bottom",
                "showLegend": True,
            },
            "tooltip": {"mode": "multi", "sort": "desc"},
        }
    if panel.kind == "stat":
        return {
            "colorMode": "value",
            "graphMode": "none",
            "justifyMode": "auto",
            "orientation": "auto",
            "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
            "textMode": "auto",
        }
    if panel.kind == "heatmap":
        return {
            "calculate": False,
            "cellGap": 1,
            "color": {"mode": "scheme", "scheme": "Blues", "steps": 32},
            "legend": {"show": True},
            "tooltip": {"mode": "single", "show": True},
            "yAxis": {"axisPlacement": "left", "unit": panel.unit},
        }
    return {"cellHeight": "sm", "showHeader": True}
