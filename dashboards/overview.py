"""The overview: is it up, is it fast, who answers and why, is the promise kept, what does it cost,
does the loop turn."""

import limits
import loop
import traffic
import trust
from grafana import Json, Panel, Query, Row, Variable, dashboard
from queries import (
    AUDITED,
    AVOIDED,
    CLAIMED,
    COST,
    LOSS,
    RANGE,
    REQUESTS,
    quantile,
    total,
    wilson,
)

GOOD, WARN, BAD = "green", "orange", "red"


def grown(metric: str, *matchers: str) -> str:
    """By how much the counter grew over the dashboard's time range; 0 where it has no series."""
    return f"({total(metric, *matchers, over=RANGE, per='range')} or vector(0))"


def summary() -> Row:
    claimed = grown(REQUESTS, CLAIMED)
    student = grown(REQUESTS, CLAIMED, 'route="student"')
    answered = grown(REQUESTS)
    failed = grown(REQUESTS, 'code=~"5.."')

    def stat(title: str, description: str, expr: str, unit: str, **more: object) -> Panel:
        return Panel(
            title=title,
            description=description,
            queries=[Query(expr=expr, instant=True)],
            unit=unit,
            kind="stat",
            width=3,
            height=4,
            **more,  # type: ignore[arg-type]
        )

    return Row(
        title="At a glance (over the chosen time range)",
        panels=[
            stat("Requests", "Answered requests per second, now.", total(REQUESTS), "reqps"),
            stat(
                "Succeeded",
                "Share of requests not answered with a 5xx, whoever's fault it was.",
                f"1 - {failed} / {answered}",
                "percentunit",
                decimals=2,
                maximum=1,
                steps=((None, BAD), (0.99, WARN), (0.999, GOOD)),
            ),
            stat(
                "Coverage",
                "Share of the tasks' requests that the student answered. The rest went to the "
                "teacher and into the queue.",
                f"{student} / {claimed}",
                "percentunit",
                decimals=1,
                maximum=1,
            ),
            stat(
                "Agreement, at least",
                "Lower 95 % bound of how often the student's answers agree with the teacher's, "
                "from the audits of the last 24 hours; the lowest of the chosen tasks.",
                f"1 - max({wilson(LOSS, AUDITED, '+')})",
                "percentunit",
                decimals=1,
                maximum=1,
                steps=((None, BAD), (0.85, WARN), (0.95, GOOD)),
            ),
            stat("Spent", "Dollars paid to teacher and student.", grown(COST), "currencyUSD"),
            stat(
                "Saved",
                "What the teacher would have cost for what the student answered, minus the "
                "student's cost.",
                grown(AVOIDED),
                "currencyUSD",
            ),
            stat(
                "Latency p95",
                "95 % of requests were answered in full within this time.",
                quantile(0.95, "retort_request_duration_seconds", over=RANGE),
                "s",
            ),
            stat(
                "Rows lost",
                "Rows for the retraining queue that neither the database nor the spool took. "
                "Anything but 0 is a fault.",
                grown("retort_exchanges_total", 'outcome="lost"'),
                "short",
                decimals=0,
                steps=((None, GOOD), (1, BAD)),
            ),
        ],
    )


def overview() -> Json:
    return dashboard(
        uid="retort-overview",
        title="Retort / Overview",
        description="Requests, latency, routing, quality, money, queue and nights of the gateway.",
        variables=[
            Variable(name="job", label="Job", query="label_values(retort_build_info, job)"),
            Variable(
                name="instance",
                label="Instance",
                query='label_values(retort_build_info{job=~"$job"}, instance)',
            ),
            Variable(
                name="task",
                label="Task",
                query='label_values(retort_requests_total{job=~"$job"}, task)',
            ),
        ],
        rows=[
            summary(),
            traffic.requests(),
            traffic.latency(),
            trust.routing(),
            trust.quality(),
            trust.certificate(),
            trust.release(),
            loop.money(),
            limits.limits(),
            traffic.upstreams(),
            loop.nights(),
        ],
    )
