"""One task at run time: its contract, the bundle that is live, its metrics."""

from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from typing import Protocol, TypeVar

from prometheus_client import Counter, Histogram

from gateway import metrics
from gateway.cache import Cache
from gateway.checks import Checks
from gateway.config import Config, Output, Task
from gateway.money.prices import PriceBook
from gateway.money.pricing import TeacherEstimate
from gateway.prompt import prompt_hash
from gateway.storage.bundles import BundleFiles
from gateway.vectors import Floats, make_vectors
from router.decision import Answer, Decision
from router.embedder import STATIC, Embedder, Outside
from router.output import OutputSpec
from router.threshold import Certificate

K = TypeVar("K")
V = TypeVar("V")


class Judge(Protocol):
    """What the gateway needs of a router."""

    @property
    def certificate(self) -> Certificate | None: ...
    @property
    def threshold(self) -> float: ...
    @property
    def spec(self) -> OutputSpec: ...
    def before(self, prompt: str, vector: Floats | None = None) -> Decision: ...
    def after(
        self,
        prompt: str,
        answer: Answer,
        p_ood: float | None = None,
        vector: Floats | None = None,
    ) -> Decision: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Live:
    """The bundle that answers now. Replaced as a whole, never changed."""

    bundle: BundleFiles
    router: Judge


class Lane:
    """``live`` is None while no student may answer, and ``problem`` then says why, if it is not
    simply that none was promoted; else it says which replicas do not answer. ``max_model_len``:
    tokens that a prompt and its draft may have together, where the student server says so."""

    def __init__(self, task: Task, prices: PriceBook | None = None) -> None:
        self.task = task
        self.prices = prices or PriceBook(Config())
        self.prompt_hash = prompt_hash(task.prompt)
        self.spec = output_spec(task.output)
        self.live: Live | None = None
        self.problem: str | None = None
        self.max_model_len: int | None = None
        self.estimate = TeacherEstimate()
        self.metrics = LaneMetrics(task.name)
        self.checks = Checks(task.checks)
        self.vectors = make_vectors(task.embedder)
        self.cache = Cache(task.name, task.cache) if task.cache.enabled else None

    @property
    def embedder(self) -> Embedder:
        """Whose vectors the task's router must have been fitted on."""
        return Outside(name=STATIC) if self.vectors is None else self.vectors.embedder

    def propensity(self) -> float:
        """With which probability a request is sampled. Where the teacher answers everything, the
        rows are traffic as it is, all of them."""
        live = self.live
        if self.task.mode != "serve" or live is None or live.router.certificate is None:
            return 1.0
        return self.task.audit_rate


def sampled(request_id: str, propensity: float) -> bool:
    """A coin with this probability, thrown by the request's id and nothing else."""
    coin = int.from_bytes(sha256(request_id.encode()).digest()[:8], "big") / 2**64
    return coin < propensity


def output_spec(output: Output) -> OutputSpec:
    return OutputSpec(
        kind=output.kind,
        labels=tuple(output.labels),
        fields={name: tuple(values) for name, values in output.fields.items()},
        max_tokens=output.max_tokens,
    )


class Children(dict[K, V]):
    """Metric children by their labels, looked up once: `labels()` costs more than `inc()`."""

    def __init__(self, make: Callable[[K], V]) -> None:
        super().__init__()
        self._make = make

    def __missing__(self, key: K) -> V:
        made = self[key] = self._make(key)
        return made


class LaneMetrics:
    """The metric children of one task. The keys are label values, the task's left out."""

    def __init__(self, task: str) -> None:
        def counters(counter: Counter) -> Children[tuple[str, ...], Counter]:
            return Children(lambda labels: counter.labels(task, *labels))

        def histograms(histogram: Histogram) -> Children[tuple[str, ...], Histogram]:
            return Children(lambda labels: histogram.labels(task, *labels))

        self.requests = counters(metrics.requests_total)
        self.seconds = histograms(metrics.request_seconds)
        self.first_token = histograms(metrics.first_token_seconds)
        self.overhead = metrics.overhead_seconds.labels(task)
        self.before = metrics.decision_seconds.labels(task, "before")
        self.after = metrics.decision_seconds.labels(task, "after")
        self.score = metrics.score.labels(task)
        self.p_ood = metrics.p_ood.labels(task)
        self.tokens = counters(metrics.tokens_total)
        self.cost = counters(metrics.cost_usd_total)
        self.unknown = Children[str, Counter](metrics.price_unknown_total.labels)
        self.avoided = metrics.cost_avoided_usd_total.labels(task)
        self.audits = counters(metrics.audits_total)
        self.audit_loss = metrics.audit_loss_total.labels(task)
        self.exchanges = counters(metrics.exchanges_total)
        self.embedder_failed = metrics.embedder_failed_total.labels(task)
        self.checks_failed = counters(metrics.checks_failed_total)
        self.cache = counters(metrics.cache_requests_total)
