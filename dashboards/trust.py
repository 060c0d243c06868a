"""Panels: who answers and why, and whether the task's promise is kept."""

from grafana import Panel, Query, Row
from queries import (
    AUDITED,
    CLAIMED,
    LOSS,
    REQUESTS,
    STUDENT_DAY,
    newest,
    of,
    share,
    total,
    wilson,
)


def routing() -> Row:
    claimed = total(REQUESTS, CLAIMED, by="task")
    seen = total("retort_ood_p_value_count", by="task")
    return Row(
        title="Who answers, and why",
        panels=[
            Panel(
                title="Coverage by task",
                description="Share of each task's requests that the student answers, beside what "
                "the certificate predicted on held-out traffic. Far under the prediction: the "
                "traffic has moved.",
                queries=[
                    Query(
                        expr=share(total(REQUESTS, 'route="student"', CLAIMED, by="task"), claimed),
                        legend="{{task}}",
                    ),
                    Query(
                        expr=newest("retort_certified_coverage_ratio", "task"),
                        legend="{{task}} certified",
                    ),
                ],
                unit="percentunit",
                maximum=1,
            ),
            Panel(
                title="Teacher share by task",
                description="Share of each task's requests that the teacher answered: what is "
                "left to save.",
                queries=[
                    Query(
                        expr=share(total(REQUESTS, 'route="teacher"', CLAIMED, by="task"), claimed),
                        legend="{{task}}",
                    )
                ],
                unit="percentunit",
                maximum=1,
            ),
            Panel(
                title="Fallbacks by reason",
                description="Share of all claimed requests that fell back to the teacher, by why.",
                queries=[
                    Query(
                        expr=total(REQUESTS, CLAIMED, 'route="teacher"', by="reason")
                        + f" / scalar({total(REQUESTS, CLAIMED)})",
                        legend="{{reason}}",
                    )
                ],
                unit="percentunit",
                maximum=1,
                stack=True,
            ),
            Panel(
                title="Scores",
                description="How far the student's answers were trusted, in [0, 1]. A shift "
                "without a promotion is drift.",
                queries=[
                    Query(
                        expr=total("retort_score_bucket", by="le", per="range"),
                        legend="{{le}}",
                        format="heatmap",
                    )
                ],
                unit="none",
                kind="heatmap",
                minimum=None,
            ),
            Panel(
                title="Strange requests",
                description="Share whose conformal p-value is under 1 % and under 5 %. Ordinary "
                "traffic shows about 1 % and 5 %; more is traffic unlike the training data.",
                queries=[
                    Query(
                        expr=share(
                            total("retort_ood_p_value_bucket", f'le="{level}"', by="task"), seen
                        ),
                        legend=f"{{{{task}}}} p < {level}",
                    )
                    for level in (0.01, 0.05)
                ],
                unit="percentunit",
            ),
            Panel(
                title="Threshold",
                description="Score from which the student's answer is served. 1.01: never, there "
                "is no certificate.",
                queries=[Query(expr=newest("retort_threshold", "task"), legend="{{task}}")],
                unit="none",
                decimals=3,
            ),
        ],
    )


def quality() -> Row:
    return Row(
        title="Is the promise kept?",
        panels=[
            Panel(
                title="Agreement in audits",
                description="How often the teacher agreed with answers the student had served, "
                "over the 24 hours before each point, with the 95 % Wilson interval. Audits are "
                "chosen by hash, whatever the answer was. "
                "Free text agrees in part.",
                queries=[
                    Query(expr=f"1 - {LOSS} / {AUDITED}", legend="{{task}}"),
                    Query(expr=f"1 - {wilson(LOSS, AUDITED, '-')}", legend="{{task}} at most"),
                    Query(expr=f"1 - {wilson(LOSS, AUDITED, '+')}", legend="{{task}} at least"),
                ],
                unit="percentunit",
                maximum=1,
                minimum=None,
            ),
            Panel(
                title="Served in disagreement",
                description="The contract's own figure: share of all requests of the task that the "
                "student answered otherwise than the teacher would have (last 24 hours, with the "
                "95 % interval), beside the bound that was certified. The lower bound above the "
                "certified line breaks the promise.",
                queries=[
                    Query(expr=f"({STUDENT_DAY}) * {LOSS} / {AUDITED}", legend="{{task}}"),
                    Query(
                        expr=f"({STUDENT_DAY}) * {wilson(LOSS, AUDITED, '-')}",
                        legend="{{task}} at least",
                    ),
                    Query(
                        expr=f"({STUDENT_DAY}) * {wilson(LOSS, AUDITED, '+')}",
                        legend="{{task}} at most",
                    ),
                    Query(
                        expr=newest("retort_certified_disagreement_ratio", "task"),
                        legend="{{task}} certified",
                    ),
                ],
                unit="percentunit",
            ),
            Panel(
                title="Audits",
                description="Audits per hour by result. `failed`: the teacher gave no answer, or "
                "the waiting line was full.",
                queries=[
                    Query(
                        expr=f"3600 * {total('retort_audits_total', by='result')}",
                        legend="{{result}}",
                    )
                ],
                unit="short",
                stack=True,
            ),
            Panel(
                title="Feedback",
                description="What clients said per hour, by kind. A correction stands in the "
                "teacher's place when the next student is trained.",
                queries=[
                    Query(
                        expr=f"3600 * {total('retort_feedback_total', by='kind')}",
                        legend="{{kind}}",
                    )
                ],
                unit="short",
                stack=True,
            ),
        ],
    )


def release() -> Row:
    def size(metric: str) -> str:
        return f"sum by (task) ({of(metric)})"

    return Row(
        title="Checks and cache (tasks that have them)",
        panels=[
            Panel(
                title="Drafts that failed a check",
                description="Per second, by the task's own checks (docs/checks.md). In serve mode "
                "each one went to the teacher instead.",
                queries=[
                    Query(
                        expr=total("retort_checks_failed_total", by="task, check"),
                        legend="{{task}}: {{check}}",
                    )
                ],
                unit="reqps",
                width=6,
                stack=True,
            ),
            Panel(
                title="Drafts stopped early",
                description="Streamed drafts whose first tokens said that they would not be "
                "served, by how many value tokens it took.",
                queries=[
                    Query(
                        expr=total("retort_early_cancels_total", by="k", per="range"),
                        legend="after {{k}}",
                    )
                ],
                unit="short",
            ),
            Panel(
                title="Student tokens for nobody",
                description="Tokens per second of drafts that were not served: stopped early, or "
                "made whole.",
                queries=[
                    Query(
                        expr=total("retort_wasted_student_tokens_total", by="draft"),
                        legend="{{draft}}",
                    )
                ],
                unit="short",
            ),
            Panel(
                title="Response cache",
                description="Requests of tasks with a cache (docs/cache.md). `bypass`: not "
                "deterministic, sampled, or declined by the client.",
                queries=[
                    Query(
                        expr=total("retort_cache_requests_total", by="result"),
                        legend="{{result}}",
                    )
                ],
                unit="reqps",
                width=6,
                stack=True,
            ),
            Panel(
                title="Size of the cache",
                description="Memory of the answers kept, all processes together.",
                queries=[Query(expr=size("retort_cache_bytes"), legend="{{task}}")],
                unit="bytes",
                width=6,
            ),
            Panel(
                title="Answers in the cache",
                description="How many answers are kept, all processes together.",
                queries=[Query(expr=size("retort_cache_entries"), legend="{{task}}")],
                unit="short",
                width=6,
            ),
        ],
    )
