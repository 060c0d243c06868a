"""Every query of the dashboards and every recording rule returns data from a real Prometheus that
scrapes a real gateway under traffic."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ops.busy_gateway import busy_gateway
from ops.prometheus_server import Prometheus, program
from ops.promql import VARIABLES, expand
from ops.vllm_exporter import vllm_exporter

ROOT = Path(__file__).parents[2]
DASHBOARDS = ROOT / "dashboards"
RULES = DASHBOARDS / "rules.yaml"
#: what Grafana would fill in for a scrape every second
LIVE = VARIABLES | {"$__rate_interval": "8s", "$__range": "1m"}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        program() is None,
        reason="needs Prometheus: apt-get install prometheus, or RETORT_PROMETHEUS=/path/to/it",
    ),
    pytest.mark.xdist_group("prometheus"),
    pytest.mark.timeout(300),
]


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """It has seen some seconds of traffic, and sees more while the tests ask."""
    folder = tmp_path_factory.mktemp("prometheus")
    with (
        busy_gateway(folder) as gateway,
        vllm_exporter(negotiates=True) as vllm,
        vllm_exporter(negotiates=False) as other,
    ):
        targets = {"retort": [gateway], "student": [vllm], "student-elsewhere": [other]}
        with Prometheus(folder / "prometheus", targets=targets, rules=RULES) as server:
            server.wait_for('retort_audits_total{result="disagree"} > 1')
            server.wait_for('retort_requests_total{reason="trusted", stream="true"} > 5')
            server.wait_for("retort_upstream_requests_total{code='500'} > 0")
            server.wait_for('retort_requests_total{reason="unsafe"} > 1')
            server.wait_for("retort_redacted_total > 0")
            server.wait_for("retort_teacher_disagreement_reasks_total > 0")
            server.wait_for('retort_certificate_rows_total{result="counted"} > 100', 60)
            server.wait_for("count_over_time(retort_build_info[1m]) > 10", 60)
            yield server


def queries() -> list[Any]:
    return [
        pytest.param(target["expr"], id=f"{path.stem}: {panel['title']} {target['refId']}")
        for path in sorted(DASHBOARDS.glob("*.json"))
        for panel in json.loads(path.read_text())["panels"]
        for target in panel.get("targets", [])
    ]


def recorded() -> list[str]:
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return [rule["record"] for group in groups for rule in group["rules"] if "record" in rule]


@pytest.mark.parametrize("expr", queries())
def test_query_returns_data(prometheus: Prometheus, expr: str) -> None:
    assert prometheus.query(expand(expr, LIVE)), expand(expr, LIVE)


@pytest.mark.parametrize("name", recorded())
def test_recording_rule_records(prometheus: Prometheus, name: str) -> None:
    assert prometheus.query(name)


def test_rules_evaluate_without_errors_and_healthy_traffic_fires_nothing(
    prometheus: Prometheus,
) -> None:
    assert prometheus.rule_errors() == []
    assert prometheus.firing() == set()


def test_student_panels_see_vllm_under_either_spelling(prometheus: Prometheus) -> None:
    queries = json.loads((DASHBOARDS / "student.json").read_text())["panels"][1]["targets"]
    for job in ("student", "student-elsewhere"):
        chosen = LIVE | {"$job": job}
        assert all(prometheus.query(expand(query["expr"], chosen)) for query in queries)


def test_the_dashboards_variables_find_their_values(prometheus: Prometheus) -> None:
    assert prometheus.query('count(retort_build_info{job=~".+"})') == [1.0]
    assert prometheus.query('count(count by (task) (retort_requests_total{task="triage"}))') == [
        1.0
    ]


def test_figures_add_up(prometheus: Prometheus) -> None:
    (together,) = prometheus.query("sum(retort_requests_total)")
    parts = prometheus.query("sum by (route) (retort_requests_total)")
    assert len(parts) == 2 and sum(parts) == together
    (coverage,) = prometheus.query(
        'sum(retort_requests_total{route="student"}) / sum(retort_requests_total{task="triage"})'
    )
    assert 0.3 < coverage < 0.95
    (infinite,) = prometheus.query('sum(retort_score_bucket{le="+Inf"})')
    (count,) = prometheus.query("sum(retort_score_count)")
    assert infinite == count
