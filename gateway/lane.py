"""One task at run time: its contract, the bundle that is live, its metrics."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

from prometheus_client import Counter, Histogram

from gateway import metrics
from gateway.audits.sampling import Sampling
from gateway.cache import Cache
from gateway.certificates.standing import UNKNOWN, Standing, show
from gateway.checks import Checks
from gateway.config import Config, Output, Task
from gateway.money.prices import PriceBook
from gateway.money.pricing import TeacherEstimate
from gateway.prompt import prompt_hash
from gateway.storage.bundles import BundleFiles
from gateway.vectors import Floats, make_vectors
from router.confidence import Confidence
from router.decision import Answer, Decision
from router.embedder import STATIC, Embedder, Outside
from router.ood import Ood
from router.output import OutputSpec
from router.prefix import Prefix
from router.router import Start
from router.sampler import coin
from router.threshold import NEVER, Certificate

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
    @property
    def window(self) -> int | None: ...
    @property
    def prefix(self) -> Prefix | None: ...
    @property
    def confidence(self) -> Confidence: ...
    @property
    def ood(self) -> Ood: ...
    @property
    def start(self) -> Start: ...
    def before(
        self, prompt: str, threshold: float | None = None, vector: Floats | None = None
    ) -> Decision: ...
    def after(
        self,
        prompt: str,
        answer: Answer,
        p_ood: float | None = None,
        threshold: float | None = None,
        vector: Floats | None = None,
    ) -> Decision: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Live:
    """The bundle that answers now, and the score from which it may. Replaced as a whole, never
    changed."""

    bundle: BundleFiles
    router: Judge
    standing: Standing = UNKNOWN

    @property
    def threshold(self) -> float:
        return self.standing.threshold


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """The canary: a bundle that answers this share of the conversations beside the champion."""

    id: str
    live: Live
    share: float

    def takes(self, group: str) -> bool:
        """Always the same for one conversation, and whoever is in stays in as the share grows."""
        return coin(group, self.id) < self.share


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
        self.canary: Trial | None = None
        #: why this gateway sends the canary nothing, though one runs
        self.canary_problem: str | None = None
        self.max_model_len: int | None = None
        self.estimate = TeacherEstimate()
        self.metrics = LaneMetrics(task.name)
        self.checks = Checks(task.checks)
        self.vectors = make_vectors(task.embedder)
        self.cache = Cache(task.name, task.cache) if task.cache.enabled else None
        self.sampling = Sampling(task.audit)
        #: drift asks for more audits; at least 1
        self.audit_factor = 1.0

    @property
    def embedder(self) -> Embedder:
        """Whose vectors the task's router must have been fitted on."""
        return Outside(name=STATIC) if self.vectors is None else self.vectors.embedder

    def propensity(self, live: Live | None = None) -> float:
        """With which probability the next request of ``live`` (default: the champion) is sampled,
        before its draft is known. Where the teacher answers everything, the rows are traffic as it
        is, all of them."""
        live = live or self.live
        if self.task.mode != "serve" or live is None or live.threshold >= NEVER:
            return 1.0
        rate = self.sampling.rate(self.audit_factor)
        if rate and self.canary is not None and live.bundle.id == self.canary.live.bundle.id:
            # its first requests, whatever the champion has behind it
            return max(rate, self.sampling.plan.first_rate)
        return rate

    def of_bundle(self, bundle: str | None) -> Live | None:
        """The champion or the canary, if it is this bundle."""
        for live in (self.live, None if self.canary is None else self.canary.live):
            if live is not None and live.bundle.id == bundle:
                return live
        return None

    def take(self, bundle: str, standing: Standing) -> bool:
        """What the certificate of that bundle says now, from here on. False where the bundle is not
        live any more, or something newer is known already."""
        live = self.of_bundle(bundle)
        if live is None or live.standing.version >= standing.version:
            return False
        new = replace(live, standing=standing)
        if self.canary is not None and live is self.canary.live:
            self.canary = replace(self.canary, live=new)
            return True
        self.live = new
        show(self.task.name, live.router.certificate, standing)
        return True


def output_spec(output: Output) -> OutputSpec:
    return OutputSpec(
        kind=output.kind,
        labels=tuple(output.labels),
        fields={name: tuple(values) for name, values in output.fields.items()},
        max_tokens=output.max_tokens,
        loss=output.loss,
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
        self.audit_retries = metrics.audit_retries_total.labels(task)
        self.audits_waiting = metrics.audits_waiting.labels(task)
        self.audit_rate = metrics.audit_rate.labels(task)
        self.teacher_reasks = metrics.teacher_disagreement_reasks_total.labels(task)
        self.teacher_loss = metrics.teacher_disagreement_loss_total.labels(task)
        self.exchanges = counters(metrics.exchanges_total)
        self.embedder_failed = metrics.embedder_failed_total.labels(task)
        self.checks_failed = counters(metrics.checks_failed_total)
        self.redacted = counters(metrics.redacted_total)
        self.early_cancels = counters(metrics.early_cancels_total)
        self.wasted = counters(metrics.wasted_tokens_total)
        self.cache = counters(metrics.cache_requests_total)
        # shown as 0 before the first
        for outcome in ("promoted", "rolled_back"):
            metrics.canary_ended_total.labels(task, outcome)
        for kind in ("harm", "shift", "drift"):
            metrics.incidents_total.labels(task, kind)
