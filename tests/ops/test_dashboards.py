"""The committed dashboards: generated from the code beside them, valid, portable, about metrics
that exist. The rules that carry a name in quotes are those of grafana/dashboard-linter."""

import json
import re
import subprocess
import sys
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from ops.known_metrics import gateway_families, series
from ops.promql import function_over, grouped_labels, parse, selectors

from router.decision import Reason, Route

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "dashboards").glob("*.json"))
#: units of Grafana that the panels use
UNITS = {
    "none",
    "short",
    "percentunit",
    "currencyUSD",
    "s",
    "dtdurations",
    "reqps",
    "bytes",
    "wps",
    "bool_yes_no",
}
Json = dict[str, Any]


def load(path: Path) -> Json:
    board: Json = json.loads(path.read_text())
    return board


def panels(board: Json) -> list[Json]:
    return [panel for panel in board["panels"] if panel["type"] != "row"]


def targets() -> list[Any]:
    return [
        pytest.param(panel, target, id=f"{path.stem}: {panel['title']} {target['refId']}")
        for path in FILES
        for panel in panels(load(path))
        for target in panel["targets"]
    ]


board = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
target = pytest.mark.parametrize(("panel", "target"), targets())


def test_committed_files_are_what_the_generator_writes() -> None:
    command = [sys.executable, str(ROOT / "dashboards/generate.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_there_are_an_overview_and_a_student_dashboard() -> None:
    assert [path.stem for path in FILES] == ["overview", "student"]


@board
def test_imports_into_any_grafana(path: Path) -> None:
    made = load(path)
    assert made["id"] is None
    assert made["uid"] == f"retort-{path.stem}"
    assert 39 <= made["schemaVersion"] <= 41
    assert made["editable"] is False, "uneditable-dashboard"
    assert "__inputs" not in made and "__requires" not in made


@board
def test_datasource_is_a_variable_everywhere(path: Path) -> None:
    made = load(path)
    first = made["templating"]["list"][0]
    assert (first["name"], first["type"], first["query"]) == (
        "datasource",
        "datasource",
        "prometheus",
    ), "template-datasource-rule"
    found = re.findall(r'"uid": "([^"]*)"', path.read_text())
    assert set(found) == {"${datasource}", made["uid"]}, "panel-datasource-rule"
    for panel in panels(made):
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert all(target["datasource"] == panel["datasource"] for target in panel["targets"])


@board
def test_variables_select_several_and_start_at_all(path: Path) -> None:
    for variable in load(path)["templating"]["list"][1:]:
        assert variable["type"] == "query"
        assert variable["multi"] and variable["includeAll"], "template-job-rule"
        assert variable["allValue"] == ".+"
        assert variable["refresh"] == 2, "template-on-time-change-reload-rule"
        match = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"])
        assert match, "template-label-promql-rule"
        ((name, matchers, _),) = selectors(parse(match[1]))
        assert {match[2], *matchers} <= series()[name]


@board
def test_panels_are_titled_described_and_have_units(path: Path) -> None:
    titles = [panel["title"] for panel in panels(load(path))]
    assert len(set(titles)) == len(titles)
    for panel in panels(load(path)):
        assert panel["title"] and len(panel["description"]) > 6, "panel-title-description-rule"
        assert panel["description"].endswith(".")
        assert panel["fieldConfig"]["defaults"]["unit"] in UNITS, "panel-units-rule"
        assert panel["targets"], "panel-no-targets-rule"
        assert all(target["legendFormat"] for target in panel["targets"])


@board
def test_panels_do_not_overlap_and_fit_the_grid(path: Path) -> None:
    made = load(path)
    ids = [panel["id"] for panel in made["panels"]]
    assert len(set(ids)) == len(ids)
    places = [panel["gridPos"] for panel in made["panels"]]
    assert all(p["x"] >= 0 and p["x"] + p["w"] <= 24 for p in places)
    for a, b in combinations(places, 2):
        apart = (
            a["x"] + a["w"] <= b["x"]
            or b["x"] + b["w"] <= a["x"]
            or a["y"] + a["h"] <= b["y"]
            or b["y"] + b["h"] <= a["y"]
        )
        assert apart, (a, b)


@target
def test_expression_asks_for_metrics_and_labels_that_exist(panel: Json, target: Json) -> None:
    tree = parse(target["expr"])
    known = series()
    for name, matchers, _ in selectors(tree):
        assert name in known, f"no such metric: {name}"
        assert set(matchers) <= known[name], f"{name} has no label {set(matchers) - known[name]}"
    for labels, names in grouped_labels(tree):
        for name in names:
            assert labels <= known[name], f"{name} has no label {labels - known[name]}"


@target
def test_expression_is_portable_promql(panel: Json, target: Json) -> None:
    for name, matchers, path in selectors(parse(target["expr"])):
        assert {"job", "instance"} <= set(matchers), "target-job-rule, target-instance-rule"
        counts = name.endswith(("_total", "_bucket", "_count", "_sum"))
        if counts:
            assert function_over(path) in {"rate", "increase"}, "target-counter-agg-rule"
    without_strings = re.sub(r'"[^"]*"', '""', target["expr"])
    for function, window in re.findall(r"\b(\w+) ?\([^()]*\[([^]]+)\]\)", without_strings):
        if function in {"rate", "irate"}:
            assert window == "$__rate_interval", "target-rate-interval-rule"
        else:
            assert (function, window) in {
                ("increase", "$__rate_interval"),
                ("increase", "$__range"),
                ("increase", "1d"),
            }


@target
def test_legend_names_labels_that_the_result_has(panel: Json, target: Json) -> None:
    wanted = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
    groups = [labels for labels, _ in grouped_labels(parse(target["expr"]))]
    assert not wanted or any(wanted <= labels for labels in groups)


@target
def test_label_values_in_expressions_are_from_the_closed_sets(panel: Json, target: Json) -> None:
    closed = {
        "route": set(Route),
        "reason": set(Reason),
        "upstream": {"student", "teacher"},
        "outcome": {"stored", "duplicate", "spooled", "lost", "promoted", "rolled_back"},
        "result": {"agree", "disagree", "failed"},
    }
    bounds = {f"{family.name}_bucket": set(family.buckets) for family in gateway_families()}
    for name, matchers, _ in selectors(parse(target["expr"])):
        if not name.startswith("retort_"):
            continue
        for label, value in matchers.items():
            if label in closed:
                assert set(value.split("|")) <= closed[label], (label, value)
            if label == "le":
                assert value in bounds[name], f"{name} has no bucket {value}"


def test_every_metric_of_the_gateway_is_shown_somewhere() -> None:
    text = "".join(path.read_text() for path in FILES)
    missing = [family.name for family in gateway_families() if family.name not in text]
    assert not missing
