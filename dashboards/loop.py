"""Panels: what it costs, and whether queue, nights and bundles turn."""

from grafana import Panel, Query, Row
from queries import AVOIDED, CLAIMED, COST, REQUESTS, newest, of, total


def money() -> Row:
    spent, avoided = total(COST, CLAIMED), total(AVOIDED)
    return Row(
        title="Money",
        panels=[
            Panel(
                title="Spent per hour",
                description="Dollars per hour at the present rate, audits and unclaimed traffic "
                "included, where prices are known.",
                queries=[Query(expr=f"3600 * {total(COST, by='route')}", legend="{{route}}")],
                unit="currencyUSD",
                stack=True,
            ),
            Panel(
                title="Saved per hour",
                description="What the teacher would have cost for what the student answered, minus "
                "the student's cost.",
                queries=[Query(expr=f"3600 * {total(AVOIDED, by='task')}", legend="{{task}}")],
                unit="currencyUSD",
                stack=True,
            ),
            Panel(
                title="Saved share of the bill",
                description="Saved, of what the teacher alone would have cost for the tasks. "
                "Drafts that were thrown away and audits are charged against it.",
                queries=[
                    Query(expr=f"({avoided}) / ({spent} + {avoided})", legend="saved"),
                ],
                unit="percentunit",
                maximum=1,
            ),
            Panel(
                title="Cost per 1,000 requests",
                description="What a thousand claimed requests cost now, and what the teacher alone "
                "would have cost.",
                queries=[
                    Query(expr=f"1000 * {spent} / {total(REQUESTS, CLAIMED)}", legend="now"),
                    Query(
                        expr=f"1000 * ({spent} + {avoided}) / {total(REQUESTS, CLAIMED)}",
                        legend="teacher only",
                    ),
                ],
                unit="currencyUSD",
            ),
            Panel(
                title="Tokens",
                description="Tokens per second as the models counted them, audits included.",
                queries=[
                    Query(
                        expr=total("retort_tokens_total", by="route, type"),
                        legend="{{route}} {{type}}",
                    )
                ],
                unit="short",
                stack=True,
            ),
            Panel(
                title="Calls of unknown cost",
                description="Per second: the model has no price, or its answers no token counts. "
                "They are missing in every sum above.",
                queries=[
                    Query(
                        expr=total("retort_price_unknown_total", by="who", task=False),
                        legend="{{who}}",
                    )
                ],
                unit="reqps",
                stack=True,
            ),
        ],
    )


def nights() -> Row:
    return Row(
        title="Queue, nights, bundles",
        panels=[
            Panel(
                title="Queue by state",
                description="Rows of the retraining queue. `captured` waits for the night.",
                queries=[
                    Query(
                        expr=newest("retort_queue_rows", "task, state"),
                        legend="{{task}} {{state}}",
                    )
                ],
                unit="short",
            ),
            Panel(
                title="Oldest row not harvested",
                description="Falls to nearly nothing after every night. Over a day and a half: "
                "nights do not run or do not end.",
                queries=[
                    Query(expr=newest("retort_queue_oldest_seconds", "task"), legend="{{task}}")
                ],
                unit="s",
            ),
            Panel(
                title="Rows written",
                description="Rows per second for the retraining queue. `duplicate`: a client's "
                "retry; `spooled`: the database was away; `lost`: a fault. `redacted`: values in "
                "rows that became placeholders.",
                queries=[
                    Query(
                        expr=total("retort_exchanges_total", by="outcome"),
                        legend="{{outcome}}",
                    ),
                    Query(
                        expr=total("retort_stored_completions_total", by="outcome"),
                        legend="store: true {{outcome}}",
                    ),
                    Query(
                        expr=total("retort_redacted_total", by="data"),
                        legend="redacted {{data}}",
                    ),
                ],
                unit="wps",
            ),
            Panel(
                title="Rows in the spool",
                description="Rows on local disk that wait for the database, by gateway process.",
                queries=[
                    Query(
                        expr=f"sum by (instance) ({of('retort_spool_rows', task=False)})",
                        legend="{{instance}}",
                    )
                ],
                unit="short",
            ),
            Panel(
                title="Time since the last night",
                description="By verdict. `promote`, `hold`, `reject` and `not_enough_evidence` are "
                "nights that did their work; `failed` did not end.",
                queries=[
                    Query(
                        expr="time() - "
                        + newest("retort_night_timestamp_seconds", "task, verdict"),
                        legend="{{task}} {{verdict}}",
                    )
                ],
                unit="dtdurations",
            ),
            Panel(
                title="Agreement at the last evaluation",
                description="On the frozen test split: champion and challenger against "
                "the teacher.",
                queries=[
                    Query(
                        expr=newest("retort_night_agreement_ratio", "task, who"),
                        legend="{{task}} {{who}}",
                    )
                ],
                unit="percentunit",
                maximum=1,
                minimum=None,
            ),
            Panel(
                title="Bundles that serve",
                description="Two bundles for one task: the replicas disagree.",
                queries=[
                    Query(
                        expr=f"count by (task, bundle, adapter) ({of('retort_bundle_info')})",
                        instant=True,
                        format="table",
                    )
                ],
                unit="none",
                kind="table",
                width=16,
                minimum=None,
            ),
            Panel(
                title="Versions",
                description="Gateway processes by version.",
                queries=[
                    Query(
                        expr=f"count by (version) ({of('retort_build_info', task=False)})",
                        legend="{{version}}",
                        instant=True,
                    )
                ],
                unit="short",
                kind="stat",
            ),
        ],
    )
