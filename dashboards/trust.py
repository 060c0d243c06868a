"""Panels: who answers and why, and whether the task's promise is kept."""

from grafana import Panel, Query, Row
from queries import (
    AUDITED,
    CLAIMED,
    LOSS,
    NOISE,
    REASKED,
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
                "traffic shows about 1 % and 5 %; more is traffic unlike the training data. `no "
                "vector`: the embedder failed or was late, and the teacher answered.",
                queries=[
                    Query(
                        expr=share(
                            total("retort_ood_p_value_bucket", f'le="{level}"', by="task"), seen
                        ),
                        legend=f"{{{{task}}}} p < {level}",
                    )
                    for level in (0.01, 0.05)
                ]
                + [
                    Query(
                        expr=share(total("retort_embedder_failed_total", by="task"), seen),
                        legend="{{task}} no vector",
                    )
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
                description="Audits per hour by result. `lost`: no teacher will ever say; the "
                "certificate counts it as a disagreement.",
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
                title="Audits promised",
                description="Audits waiting to be made, over all gateways, and attempts per hour "
                "that failed and are to be repeated: many of either, and the teacher is down, or "
                "the tasks' `audit.concurrency` is too small.",
                queries=[
                    Query(
                        expr=f"sum by (task) ({of('retort_audits_waiting')})",
                        legend="{{task}} waiting",
                    ),
                    Query(
                        expr=f"3600 * {total('retort_audit_retries_total', by='task')}",
                        legend="{{task}} failed attempts per hour",
                    ),
                ],
                unit="short",
            ),
            Panel(
                title="Audit rate",
                description="Probability with which a request is audited if it is served. 0: the "
                "budget is spent or the line is full.",
                queries=[
                    Query(
                        expr=f"max by (task) ({of('retort_audit_rate')})",
                        legend="{{task}}",
                    )
                ],
                unit="percentunit",
                maximum=1,
            ),
            Panel(
                title="The teacher's own noise",
                description="How often the teacher, asked a second time, disagreed with itself "
                "(last 24 hours). No student can agree with it more.",
                queries=[Query(expr=share(NOISE, REASKED), legend="{{task}}")],
                unit="percentunit",
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


def certificate() -> Row:
    return Row(
        title="What live traffic has certified",
        panels=[
            Panel(
                title="Alarm",
                description="An alarm of the audits keeps the student from answering until it is "
                "certified anew (docs/certificate.md).",
                queries=[Query(expr=newest("retort_alarm", "task"), legend="{{task}}")],
                unit="bool_yes_no",
                width=6,
            ),
            Panel(
                title="Disagreement since the certificate's start",
                description="Share of requests that the student answered in disagreement, by its "
                "audits, with the 95 % interval, beside the bound that is certified.",
                queries=[
                    Query(
                        expr=newest("retort_served_disagreement_ratio", "task, bound"),
                        legend="{{task}} {{bound}}",
                    ),
                    Query(
                        expr=newest("retort_certified_disagreement_ratio", "task"),
                        legend="{{task}} certified",
                    ),
                ],
                unit="percentunit",
                width=6,
            ),
            Panel(
                title="Next threshold",
                description="How near the next laxer threshold is to its certificate: it has it "
                "at 100 %.",
                queries=[
                    Query(expr=newest("retort_certificate_wealth_ratio", "task"), legend="{{task}}")
                ],
                unit="percentunit",
                width=6,
                minimum=None,
            ),
            Panel(
                title="Audits until then",
                description="Losses still to be observed until the next threshold is certified, "
                "if everything goes on as it does; a million: never.",
                queries=[
                    Query(
                        expr="clamp_max("
                        + newest("retort_certificate_audits_needed", "task")
                        + ", 1e6)",
                        legend="{{task}}",
                    )
                ],
                unit="short",
                width=6,
            ),
            Panel(
                title="Requests read by the certificate",
                description="Per second. `outside`: no part of what it speaks of; `unseen`: no "
                "draft was made; `late`: written too late to be counted.",
                queries=[
                    Query(
                        expr=total("retort_certificate_rows_total", by="result"),
                        legend="{{result}}",
                    )
                ],
                unit="reqps",
                stack=True,
            ),
            Panel(
                title="Incidents",
                description="Alarms and drifts, per hour (docs/certificate.md).",
                queries=[
                    Query(
                        expr=f"3600 * {total('retort_incidents_total', by='task, kind')}",
                        legend="{{task}}: {{kind}}",
                    )
                ],
                unit="short",
                stack=True,
            ),
        ],
    )


def canary() -> Row:
    return Row(
        title="Canaries (a new bundle on a share of the traffic)",
        panels=[
            Panel(
                title="Canary's share",
                description="Share of the task's conversations that a new bundle answers beside "
                "the champion (docs/canary.md); 0: no canary runs.",
                queries=[
                    Query(expr=newest("retort_canary_share_ratio", "task"), legend="{{task}}")
                ],
                unit="percentunit",
                maximum=1,
            ),
            Panel(
                title="Canary against the champion",
                description="By how much the canary was worse, on average: in trouble (no answer, "
                "or a draft of no use), in fallbacks, in disagreement with the teacher. Under "
                "0: better. None where nothing was compared yet.",
                queries=[
                    Query(
                        expr=newest("retort_canary_difference_ratio", "task, race"),
                        legend="{{task}} {{race}}",
                    )
                ],
                unit="percentunit",
                minimum=None,
            ),
            Panel(
                title="Canaries ended",
                description="How they went, over the chosen time.",
                queries=[
                    Query(
                        expr=total("retort_canary_ended_total", by="task, outcome", per="range"),
                        legend="{{task}}: {{outcome}}",
                    )
                ],
                unit="short",
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
