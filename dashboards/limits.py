"""Panels: what limits and budgets keep out, and what is left of the teacher's dollars."""

from grafana import Panel, Query, Row
from queries import newest, total


def limits() -> Row:
    return Row(
        title="Limits and budgets",
        panels=[
            Panel(
                title="Limited requests",
                description="Refused for too many requests or tokens per minute of their key, or "
                "kept from the teacher by a spent budget of the key or task.",
                queries=[
                    Query(
                        expr=total("retort_limited_requests_total", by="kind", task=False),
                        legend="{{kind}}",
                    )
                ],
                unit="reqps",
                stack=True,
            ),
            Panel(
                title="Teacher budget spent",
                description="Dollars taken of each task's budget in the present day and month of "
                "UTC.",
                queries=[
                    Query(
                        expr=newest("retort_budget_spent_usd", "task, period"),
                        legend="{{task}} {{period}}",
                    )
                ],
                unit="currencyUSD",
            ),
            Panel(
                title="Teacher budget left",
                description="At 0 the task's requests get no teacher before the period ends.",
                queries=[
                    Query(
                        expr=newest("retort_budget_remaining_usd", "task, period"),
                        legend="{{task}} {{period}}",
                    )
                ],
                unit="currencyUSD",
            ),
        ],
    )
