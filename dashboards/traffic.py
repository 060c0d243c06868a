"""Panels: how many requests, how fast, and what the calls to student and teacher do."""

from grafana import Panel, Query, Row
from queries import REQUESTS, of, quantile, share, total


def requests() -> Row:
    every = total(REQUESTS)
    return Row(
        title="Requests",
        panels=[
            Panel(
                title="Requests by route",
                description="Who answered. `student` is what Retort saves you.",
                queries=[Query(expr=total(REQUESTS, by="route"), legend="{{route}}")],
                unit="reqps",
                stack=True,
            ),
            Panel(
                title="Decisions by reason",
                description="Why each request took its route; the reasons are in docs/design.md.",
                queries=[
                    Query(expr=total(REQUESTS, by="route, reason"), legend="{{route}}: {{reason}}")
                ],
                unit="reqps",
                stack=True,
            ),
            Panel(
                title="Requests that failed",
                description="Share answered with an error. 4xx: the request or its key was wrong, "
                "the client left (499), or a provider's rate limit was passed on (429). 5xx: no "
                "model could answer.",
                queries=[
                    Query(
                        expr=share(total(REQUESTS, 'code=~"5.."'), every),
                        legend="5xx",
                    ),
                    Query(
                        expr=share(total(REQUESTS, 'code=~"4.."'), every),
                        legend="4xx",
                    ),
                ],
                unit="percentunit",
            ),
            Panel(
                title="Requests in flight",
                description="Being answered now, by gateway process.",
                queries=[
                    Query(
                        expr=f"sum by (instance) ({of('retort_inflight_requests', task=False)})",
                        legend="{{instance}}",
                    )
                ],
                unit="short",
            ),
            Panel(
                title="Requests by task",
                description="`-` is traffic that no task claims; it passes to the teacher.",
                queries=[Query(expr=total(REQUESTS, by="task"), legend="{{task}}")],
                unit="reqps",
                stack=True,
            ),
            Panel(
                title="Streams",
                description="Share of requests that asked for a stream.",
                queries=[
                    Query(
                        expr=share(
                            total(REQUESTS, 'stream="true"', by="route"),
                            total(REQUESTS, by="route"),
                        ),
                        legend="{{route}}",
                    )
                ],
                unit="percentunit",
                maximum=1,
            ),
        ],
    )


def latency() -> Row:
    def quantiles(metric: str, by: str, *qs: float) -> list[Query]:
        return [
            Query(
                expr=quantile(q, metric, by=by),
                legend=f"{{{{{by}}}}} p{q * 100:g}" if by else f"p{q * 100:g}",
            )
            for q in qs
        ]

    return Row(
        title="Latency",
        panels=[
            Panel(
                title="Duration by route",
                description="From the request's arrival to the last byte of its answer. The "
                "teacher's includes the student's try before an escalation.",
                queries=quantiles("retort_request_duration_seconds", "route", 0.5, 0.95, 0.99),
                unit="s",
            ),
            Panel(
                title="Time to first token by route",
                description="From the request's arrival to the first content byte; streams only.",
                queries=quantiles("retort_time_to_first_token_seconds", "route", 0.5, 0.95, 0.99),
                unit="s",
            ),
            Panel(
                title="The gateway's own time",
                description="Request duration minus the time spent waiting for student and "
                "teacher.",
                queries=quantiles("retort_overhead_seconds", "", 0.5, 0.95, 0.99),
                unit="s",
            ),
            Panel(
                title="The router's time by stage",
                description="Before generation: out-of-distribution gate. After: output check and "
                "score.",
                queries=quantiles("retort_decision_seconds", "stage", 0.5, 0.99),
                unit="s",
            ),
            Panel(
                title="Upstream latency",
                description="Duration of single calls to student and teacher, retries apart.",
                queries=[
                    Query(
                        expr=quantile(
                            q, "retort_upstream_duration_seconds", by="upstream", task=False
                        ),
                        legend=f"{{{{upstream}}}} p{q * 100:g}",
                    )
                    for q in (0.5, 0.95)
                ],
                unit="s",
            ),
            Panel(
                title="Wait for the row to be durable",
                description="How long an answer waited until its row for the retraining queue was "
                "safe on disk.",
                queries=[
                    Query(
                        expr=quantile(q, "retort_exchange_write_seconds", task=False),
                        legend=f"p{q * 100:g}",
                    )
                    for q in (0.5, 0.99)
                ],
                unit="s",
            ),
        ],
    )


def upstreams() -> Row:
    calls = "retort_upstream_requests_total"
    return Row(
        title="Student and teacher",
        panels=[
            Panel(
                title="Calls by outcome",
                description="Calls per second by HTTP status; `timeout` and `connect`: no answer; "
                "`cancelled`: the client left or the draft was given up.",
                queries=[
                    Query(
                        expr=total(calls, by="upstream, code", task=False),
                        legend="{{upstream}} {{code}}",
                    )
                ],
                unit="reqps",
            ),
            Panel(
                title="Calls that failed",
                description="Share of calls that gave no usable answer.",
                queries=[
                    Query(
                        expr=share(
                            total(calls, 'code!~"[24]..|cancelled"', by="upstream", task=False),
                            total(calls, by="upstream", task=False),
                        ),
                        legend="{{upstream}}",
                    )
                ],
                unit="percentunit",
                maximum=1,
            ),
            Panel(
                title="Breaker",
                description="1 while calls are let through, to any of several and to each; 0 while "
                "the breaker is open.",
                queries=[
                    Query(
                        expr=f"min by (upstream) ({of('retort_upstream_up', task=False)})",
                        legend="{{upstream}}",
                    ),
                    Query(
                        expr=f"min by (upstream, replica) ({of('retort_replica_up', task=False)})",
                        legend="{{upstream}} {{replica}}",
                    ),
                ],
                unit="bool_yes_no",
                maximum=1,
            ),
            Panel(
                title="Tried again",
                description="Retries at the same teacher, requests passed on to the next teacher "
                "or replica, and second attempts beside slow ones.",
                queries=[
                    Query(
                        expr=total("retort_retries_total", by="upstream", task=False),
                        legend="{{upstream}} retried",
                    ),
                    Query(
                        expr=total("retort_failovers_total", by="upstream", task=False),
                        legend="{{upstream}} passed on",
                    ),
                    Query(
                        expr=total("retort_hedges_total", by="result", task=False),
                        legend="second attempt {{result}}",
                    ),
                ],
                unit="reqps",
            ),
            Panel(
                title="Waiting for the teacher",
                description="Requests in the line in front of `teacher.max_concurrency`.",
                queries=[
                    Query(
                        expr=f"sum by (upstream) ({of('retort_queued_requests', task=False)})",
                        legend="{{upstream}}",
                    )
                ],
                unit="short",
            ),
            Panel(
                title="Refused for want of a place",
                description="429 with Retry-After: the line was `full`, or too `slow`.",
                queries=[
                    Query(
                        expr=total("retort_shed_requests_total", by="why", task=False),
                        legend="{{why}}",
                    )
                ],
                unit="reqps",
            ),
        ],
    )
