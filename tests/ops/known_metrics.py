"""Which series exist, with which labels: the gateway's, from its code, and vLLM's, from a list."""

from dataclasses import dataclass

from prometheus_client import Counter, Gauge, Histogram
from prometheus_client.metrics import MetricWrapperBase

from gateway import metrics

#: what Prometheus adds to every series it scrapes
SCRAPED = frozenset({"job", "instance"})

#: vLLM 0.32, vllm/v1/metrics/loggers.py: name, type, labels beside model_name and engine
VLLM = {
    "vllm:num_requests_running": ("gauge", ()),
    "vllm:num_requests_waiting": ("gauge", ()),
    "vllm:num_requests_waiting_by_reason": ("gauge", ("reason",)),
    "vllm:kv_cache_usage_perc": ("gauge", ()),
    "vllm:prefix_cache_queries": ("counter", ()),
    "vllm:prefix_cache_hits": ("counter", ()),
    "vllm:num_preemptions": ("counter", ()),
    "vllm:prompt_tokens": ("counter", ()),
    "vllm:generation_tokens": ("counter", ()),
    "vllm:request_success": ("counter", ("finished_reason",)),
    "vllm:admission_rejections": ("counter", ("reason",)),
    "vllm:time_to_first_token_seconds": ("histogram", ()),
    "vllm:inter_token_latency_seconds": ("histogram", ()),
    "vllm:e2e_request_latency_seconds": ("histogram", ()),
    "vllm:request_queue_time_seconds": ("histogram", ()),
    "vllm:request_prefill_time_seconds": ("histogram", ()),
    "vllm:request_decode_time_seconds": ("histogram", ()),
}
#: these have no label `engine`
FRONTEND = {"vllm:admission_rejections"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """A metric as the code declares it."""

    name: str
    kind: str
    help: str
    labels: tuple[str, ...]
    buckets: tuple[str, ...] = ()


def gateway_families() -> list[Family]:
    """Everything declared in gateway/metrics.py, in its order."""
    found = []
    for metric in vars(metrics).values():
        if isinstance(metric, MetricWrapperBase):
            (described,) = metric.describe()
            kind = {Counter: "counter", Gauge: "gauge", Histogram: "histogram"}[type(metric)]
            bounds = getattr(metric, "_upper_bounds", ())
            found.append(
                Family(
                    name=described.name + ("_total" if kind == "counter" else ""),
                    kind=kind,
                    help=described.documentation,
                    labels=tuple(metric._labelnames),
                    buckets=tuple("+Inf" if b == float("inf") else str(b) for b in bounds),
                )
            )
    return found


def series() -> dict[str, frozenset[str]]:
    """Every series name with its labels, those that Prometheus adds included."""
    known = {}
    for family in gateway_families():
        known |= _samples(family.name, family.kind, (*SCRAPED, *family.labels))
    for name, (kind, labels) in VLLM.items():
        common = ("model_name",) if name in FRONTEND else ("model_name", "engine")
        sample = f"{name}_total" if kind == "counter" else name
        known |= _samples(sample, kind, (*SCRAPED, *common, *labels))
    return known


def _samples(name: str, kind: str, labels: tuple[str, ...]) -> dict[str, frozenset[str]]:
    own = frozenset(labels)
    if kind == "histogram":
        return {f"{name}_bucket": own | {"le"}, f"{name}_count": own, f"{name}_sum": own}
    return {name: own}
