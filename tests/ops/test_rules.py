"""Recording rules and alerts: valid, about metrics that exist, tested firing and not, each with
a runbook."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from ops.known_metrics import gateway_families, series
from ops.promql import grouped_labels, nodes, parse, selectors
from promql_parser import AggregateExpr

ROOT = Path(__file__).parents[2]
RULES = ROOT / "dashboards/rules.yaml"
TESTS = sorted((ROOT / "dashboards").glob("rules_*test.yaml"))
Rule = dict[str, Any]


def rules(kind: str) -> list[Rule]:
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return [rule for group in groups for rule in group["rules"] if kind in rule]


def recorded() -> dict[str, frozenset[str]]:
    """The recorded series with the labels that their name promises."""
    labels = {"job": {"job"}, "task": {"job", "task"}}
    return {
        rule["record"]: frozenset(labels[rule["record"].split(":")[0]]) for rule in rules("record")
    }


every = pytest.mark.parametrize(
    "rule", rules("record") + rules("alert"), ids=lambda rule: rule.get("record") or rule["alert"]
)
alert = pytest.mark.parametrize("rule", rules("alert"), ids=lambda rule: rule["alert"])


@every
def test_rule_asks_for_metrics_and_labels_that_exist(rule: Rule) -> None:
    tree = parse(rule["expr"])
    known = series() | recorded()
    bounds = {f"{family.name}_bucket": set(family.buckets) for family in gateway_families()}
    for name, matchers, _ in selectors(tree):
        assert name in known, f"no such metric: {name}"
        assert set(matchers) <= known[name]
        if "le" in matchers:
            assert matchers["le"] in bounds[name]
    for labels, names in grouped_labels(tree):
        assert all(labels <= known[name] for name in names)


@every
def test_rule_keeps_the_job_apart(rule: Rule) -> None:
    if "absent(" in rule["expr"]:
        return
    for node, _ in nodes(parse(rule["expr"])):
        if isinstance(node, AggregateExpr):
            assert "job" in node.modifier.labels, "two installations would be added up"


@alert
def test_alert_says_what_it_means_and_what_to_do(rule: Rule) -> None:
    assert rule["labels"]["severity"] in {"critical", "warning"}
    assert set(rule["annotations"]) == {"summary", "description", "runbook_url"}
    page, _, anchor = rule["annotations"]["runbook_url"].partition("#")
    headings = re.findall(r"(?m)^#+ (.+)$", (ROOT / page).read_text())
    assert anchor in {re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in headings}
    assert anchor == rule["alert"].lower()


@alert
def test_alert_is_tested_firing_and_not(rule: Rule) -> None:
    tests = [test for path in TESTS for test in yaml.safe_load(path.read_text())["tests"]]
    cases = [case for test in tests for case in test["alert_rule_test"]]
    mine = [bool(case["exp_alerts"]) for case in cases if case["alertname"] == rule["alert"]]
    assert set(mine) == {True, False}


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool (Debian: prometheus)")
@pytest.mark.parametrize(
    "command",
    [["check", "rules", str(RULES)], *(["test", "rules", str(path)] for path in TESTS)],
    ids=lambda command: " ".join([*command[:2], Path(command[2]).name]),
)
def test_promtool_agrees(command: list[str]) -> None:
    done = subprocess.run(["promtool", *command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
