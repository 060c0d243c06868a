"""PromQL in the form all panels share: filtered by the dashboard's variables, zero where nothing
has happened yet, NaN (an empty spot) only where there was no traffic to speak of."""

RATE = "$__rate_interval"
RANGE = "$__range"
PLACE = ('job=~"$job"', 'instance=~"$instance"')
TASK = 'task=~"$task"'

REQUESTS = "retort_requests_total"
COST = "retort_cost_usd_total"
AVOIDED = "retort_cost_avoided_usd_total"

#: traffic that some task claims
CLAIMED = 'task!="-"'

#: What vLLM calls vllm:x arrives as vllm_x where Prometheus is of version 2: the Python client then
#: replaces the colon (prometheus/client_python#1177). Version 3 stores it as it is.
VLLM = "vllm:"


def of(metric: str, *matchers: str, task: bool = True) -> str:
    """The metric's series of the chosen jobs, instances and (where it has the label) tasks."""
    chosen = (*PLACE, *((TASK,) if task else ()), *matchers)
    if metric.startswith(VLLM):
        name = f'__name__=~"vllm[:_]{metric.removeprefix(VLLM)}"'
        return f"{{{', '.join((name, *chosen))}}}"
    return f"{metric}{{{', '.join(chosen)}}}"


def total(
    metric: str, *matchers: str, by: str = "", over: str = RATE, task: bool = True, per: str = ""
) -> str:
    """How fast a counter grows per second or, with ``per="range"``, by how much it grew."""
    function = "increase" if per == "range" else "rate"
    head = f"sum by ({by})" if by else "sum"
    return f"{head} ({function}({of(metric, *matchers, task=task)}[{over}]))"


def share(part: str, whole: str) -> str:
    """part / whole, and 0 where the part has no series yet."""
    return f"({part} or 0 * {whole}) / {whole}"


def quantile(
    q: float, metric: str, *matchers: str, by: str = "", task: bool = True, over: str = RATE
) -> str:
    grouped = total(
        f"{metric}_bucket",
        *matchers,
        by=f"le, {by}" if by else "le",
        task=task,
        over=over,
        per="" if over == RATE else "range",
    )
    return f"histogram_quantile({q}, {grouped})"


def newest(metric: str, by: str, task: bool = True) -> str:
    """A gauge that every replica reads from the same database: they agree, or lag by seconds."""
    return f"max by ({by}) ({of(metric, task=task)})"


def wilson(part: str, whole: str, sign: str) -> str:
    """A bound (``+`` upper, ``-`` lower) of the 95 % Wilson interval for part / whole.

    Wilson, "Probable inference…", JASA 22 (1927); holds for any mean of values in [0, 1], only
    wider than needed where they are not just 0 and 1.
    """
    p = f"({part}) / ({whole})"
    spread = f"sqrt({p} * (1 - {p}) / ({whole}) + 0.9604 / ({whole}) ^ 2)"
    return f"({p} + 1.9208 / ({whole}) {sign} 1.96 * {spread}) / (1 + 3.8416 / ({whole}))"


#: audits are few: a day of them makes an interval worth looking at
DAY = "1d"
AUDITED = total("retort_audits_total", 'result=~"agree|disagree"', by="task", over=DAY, per="range")
LOSS = total("retort_audit_loss_total", by="task", over=DAY, per="range")
#: the teacher against itself
_AGAIN = "retort_teacher_disagreement"
REASKED = total(f"{_AGAIN}_reasks_total", by="task", over=DAY, per="range")
NOISE = total(f"{_AGAIN}_loss_total", by="task", over=DAY, per="range")
STUDENT_DAY = share(
    total(REQUESTS, 'route="student"', CLAIMED, by="task", over=DAY, per="range"),
    total(REQUESTS, CLAIMED, by="task", over=DAY, per="range"),
)
