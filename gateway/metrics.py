"""Every Prometheus metric of the gateway: name, help, labels, buckets. Labels come only from
closed sets (tasks of the configuration, routes, reasons), never from what a client sent."""

from prometheus_client import Counter, Gauge, Histogram

_LATENCY = tuple(0.01 * 2**k for k in range(17))
_FIRST_TOKEN = tuple(0.02 * 2**k for k in range(13))
_OVERHEAD = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25)
_SHARE = tuple(round(0.05 * k, 2) for k in range(1, 21))

requests_total = Counter(
    "retort_requests_total",
    "Answered requests. task is '-' for traffic no task claims.",
    ["task", "route", "reason", "code", "stream"],
)
request_seconds = Histogram(
    "retort_request_duration_seconds",
    "From the request's arrival to the last byte of its answer.",
    ["task", "route"],
    buckets=_LATENCY,
)
first_token_seconds = Histogram(
    "retort_time_to_first_token_seconds",
    "From the request's arrival to the first content byte, streams only.",
    ["task", "route"],
    buckets=_FIRST_TOKEN,
)
overhead_seconds = Histogram(
    "retort_overhead_seconds",
    "Request duration minus the time spent waiting for student and teacher.",
    ["task"],
    buckets=_OVERHEAD,
)
decision_seconds = Histogram(
    "retort_decision_seconds",
    "Time the router took, before or after generation.",
    ["task", "stage"],
    buckets=(0.00005, 0.0001, 0.00025, *_OVERHEAD),
)
score = Histogram(
    "retort_score",
    "Trust in the student's answers, in [0, 1].",
    ["task"],
    buckets=_SHARE,
)
p_ood = Histogram(
    "retort_ood_p_value",
    "Conformal p-value of 'like the training traffic'; uniform when nothing is strange.",
    ["task"],
    buckets=(0.001, 0.005, 0.01, *_SHARE),
)
upstream_total = Counter(
    "retort_upstream_requests_total",
    "Calls to student and teacher. code is the HTTP status, or timeout, connect, cancelled.",
    ["upstream", "code"],
)
upstream_seconds = Histogram(
    "retort_upstream_duration_seconds",
    "Duration of calls to student and teacher.",
    ["upstream"],
    buckets=_LATENCY,
)
upstream_up = Gauge(
    "retort_upstream_up",
    "1 while calls to the upstream, or to any of several, are let through.",
    ["upstream"],
)
replica_up = Gauge(
    "retort_replica_up",
    "1 while calls to this one of several students or teachers are let through.",
    ["upstream", "replica"],
)
failovers_total = Counter(
    "retort_failovers_total",
    "Requests passed on to the next teacher or another replica of the student after a failure.",
    ["upstream"],
)
retries_total = Counter(
    "retort_retries_total", "Calls made again to the same upstream after a failure.", ["upstream"]
)
hedges_total = Counter(
    "retort_hedges_total",
    "Requests sent a second time because the first was slow. result: won | lost | failed.",
    ["upstream", "result"],
)
queued = Gauge("retort_queued_requests", "Requests waiting for a place upstream.", ["upstream"])
shed_total = Counter(
    "retort_shed_requests_total",
    "Requests refused with 429 because the line was full, or moved too slowly.",
    ["upstream", "why"],
)
tokens_total = Counter(
    "retort_tokens_total", "Tokens as the upstream counted them.", ["task", "route", "type"]
)
cost_usd_total = Counter(
    "retort_cost_usd_total", "Dollars spent, where prices are known.", ["task", "route"]
)
cost_avoided_usd_total = Counter(
    "retort_cost_avoided_usd_total",
    "What the teacher would have cost for what the student answered, minus the student's cost.",
    ["task"],
)
price_unknown_total = Counter(
    "retort_price_unknown_total",
    "Calls whose cost is unknown: no price for the model, or no token counts from it.",
    ["who"],
)
audits_total = Counter(
    "retort_audits_total",
    "Student answers checked by the teacher. result: agree | disagree | lost.",
    ["task", "result"],
)
audit_retries_total = Counter(
    "retort_audit_retries_total", "Audits that failed and are to be tried again.", ["task"]
)
audits_waiting = Gauge(
    "retort_audits_waiting", "Audits this gateway has promised and not made yet.", ["task"]
)
audit_rate = Gauge(
    "retort_audit_rate",
    "Probability with which the next request is audited if served; 0: budget spent or line full.",
    ["task"],
)
teacher_disagreement_reasks_total = Counter(
    "retort_teacher_disagreement_reasks_total",
    "Audits in which the teacher was asked a second time.",
    ["task"],
)
teacher_disagreement_loss_total = Counter(
    "retort_teacher_disagreement_loss_total",
    "Disagreement of the teacher's second answers with its first, each in [0, 1], added up.",
    ["task"],
)
audit_loss_total = Counter(
    "retort_audit_loss_total",
    "Disagreement found in audits, each in [0, 1], added up.",
    ["task"],
)
exchanges_total = Counter(
    "retort_exchanges_total",
    "Rows for the retraining queue. outcome: stored | duplicate | spooled | lost.",
    ["task", "outcome"],
)
stored_total = Counter(
    "retort_stored_completions_total",
    "Chat completions with store: true. outcome: stored | spooled | lost.",
    ["task", "outcome"],
)
feedback_total = Counter(
    "retort_feedback_total",
    "What clients said of answers. kind: up | down | score | correction.",
    ["task", "kind"],
)
exchange_write_seconds = Histogram(
    "retort_exchange_write_seconds",
    "How long an answer waited for its row to be durable.",
    buckets=(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0),
)
checks_failed_total = Counter(
    "retort_checks_failed_total",
    "Drafts that failed a check of their task, those of shadow mode included.",
    ["task", "check"],
)
redacted_total = Counter(
    "retort_redacted_total",
    "Values replaced by placeholders in rows of the queue before they were stored.",
    ["task", "data"],
)
early_cancels_total = Counter(
    "retort_early_cancels_total",
    "Drafts stopped while they were made, by the number of value tokens that showed it.",
    ["task", "k"],
)
wasted_tokens_total = Counter(
    "retort_wasted_student_tokens_total",
    "Tokens of drafts the client was not given. draft: stopped | whole.",
    ["task", "draft"],
)
embedder_failed_total = Counter(
    "retort_embedder_failed_total",
    "Prompts whose embedder failed or was late: the teacher answered.",
    ["task"],
)
cache_requests_total = Counter(
    "retort_cache_requests_total",
    "Requests of tasks with a response cache. result: hit | miss | bypass.",
    ["task", "result"],
)
cache_entries = Gauge("retort_cache_entries", "Answers in the response cache.", ["task"])
cache_bytes = Gauge("retort_cache_bytes", "Memory of the response cache.", ["task"])
queue_rows = Gauge("retort_queue_rows", "Rows of the retraining queue.", ["task", "state"])
queue_oldest_seconds = Gauge(
    "retort_queue_oldest_seconds", "Age of the oldest row no night has harvested yet.", ["task"]
)
spool_rows = Gauge("retort_spool_rows", "Rows on local disk waiting for the database.")
inflight = Gauge("retort_inflight_requests", "Requests being answered now.")
bundle_info = Gauge(
    "retort_bundle_info",
    "1 for the bundle that serves each task.",
    ["task", "bundle", "adapter"],
)
threshold = Gauge(
    "retort_threshold", "Score from which the student's answer is served; 1.01: never.", ["task"]
)
certified_coverage = Gauge(
    "retort_certified_coverage_ratio",
    "Share of the counted requests whose score reaches the certified threshold.",
    ["task"],
)
certified_disagreement = Gauge(
    "retort_certified_disagreement_ratio",
    "Upper confidence bound on the share of requests served in disagreement with the teacher.",
    ["task"],
)
served_disagreement = Gauge(
    "retort_served_disagreement_ratio",
    "Share of all requests that the student answered in disagreement since the certificate's start,"
    " by its audits. bound: estimate | low | high.",
    ["task", "bound"],
)
certificate_wealth = Gauge(
    "retort_certificate_wealth_ratio",
    "Log of the next laxer threshold's capital over that of the goal; 1: certified.",
    ["task"],
)
certificate_audits_needed = Gauge(
    "retort_certificate_audits_needed",
    "Losses still to be observed until the next laxer threshold is certified; infinite: never.",
    ["task"],
)
certificate_rows_total = Counter(
    "retort_certificate_rows_total",
    "Requests read by the certificate. result: counted | outside | unseen | late.",
    ["task", "result"],
)
alarm = Gauge("retort_alarm", "1 while an alarm keeps the task's student from answering.", ["task"])
canary_share = Gauge(
    "retort_canary_share_ratio",
    "Share of the task's traffic that its canary gets; 0: none.",
    ["task"],
)
canary_difference = Gauge(
    "retort_canary_difference_ratio",
    "By how much the canary was worse than the champion. race: trouble | fallback | loss.",
    ["task", "race"],
)
canary_ended_total = Counter(
    "retort_canary_ended_total",
    "Canaries this process has ended. outcome: promoted | rolled_back.",
    ["task", "outcome"],
)
incidents_total = Counter(
    "retort_incidents_total",
    "Incidents this process has found. kind: harm | shift | drift.",
    ["task", "kind"],
)
night_timestamp = Gauge(
    "retort_night_timestamp_seconds", "When the last night ended, by verdict.", ["task", "verdict"]
)
night_agreement = Gauge(
    "retort_night_agreement_ratio",
    "Agreement with the teacher on the frozen test split, last evaluation.",
    ["task", "who"],
)
limited_requests_total = Counter(
    "retort_limited_requests_total",
    "Requests refused, or kept from the teacher, by a limit of their key or a budget.",
    ["kind"],
)
budget_spent_usd = Gauge(
    "retort_budget_spent_usd",
    "Dollars taken of the task's teacher budget in this period, all gateways together.",
    ["task", "period"],
)
budget_remaining_usd = Gauge(
    "retort_budget_remaining_usd",
    "Dollars left of the task's teacher budget in this period.",
    ["task", "period"],
)
build_info = Gauge("retort_build_info", "1, with the version.", ["version"])

# shown as 0 before the first of them
for _result in ("won", "lost", "failed"):
    hedges_total.labels("teacher", _result)
for _why in ("full", "slow"):
    shed_total.labels("teacher", _why)
