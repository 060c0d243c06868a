"""The whole decision for one task: before the student is asked, and after it answered.

Why the certificate holds. It bounds the share of all requests that pass ``check`` and the
threshold and disagree with the teacher, *without* counting on the OOD gate. What is served is a
subset of that, so the promise holds whatever the gate does and whichever rows it was fitted on
(the calibration prompts are its reference). The price is small: on traffic like the calibration
the gate stops at most ``ood_epsilon``. The score must not have seen the rows it is certified on.
The default score sees none. A learned head is fitted on a fixed hash-chosen part of the rows and
certified on the others; then both scores are certified, with the allowed error split between the
two beforehand, so both certificates hold at once and the one that serves more may be picked.
"""

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from math import ceil, exp

import numpy as np
from numpy.typing import NDArray

from router.confidence import Confidence, default, learn_head, plain
from router.contest import Contest
from router.decision import Answer, Decision, Reason, Route
from router.difficulty import Difficulty, fit_difficulty
from router.embedder import Embedder
from router.ood import Floats, Ood, fit_ood
from router.options import places
from router.output import OutputSpec, bare, check, label_of, learn
from router.prefix import Prefix, cut, fit_prefix, loss_of
from router.report import Ranking, Report, rank
from router.signals import Signals, log_probability, signals
from router.threshold import (
    GRID,
    NEVER,
    REJECTED,
    Certificate,
    certify,
    evidence_expected,
    evidence_needed,
    interval,
    shares,
)

Doubles = NDArray[np.float64]

#: With fewer calibration rows all of them go into the certificate and no head is tried.
HEAD_ROWS = 600
#: Of this many rows by hash, the head gets the first bucket.
HEAD_BUCKETS = 3
#: The share of the allowed error that is set aside for the head's certificate.
HEAD_DELTA = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Labelled:
    """A prompt with the teacher's answer: what the student is trained on."""

    prompt: str
    answer: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """A held-out prompt that both answered: the student as it is served, and the teacher."""

    prompt: str
    student: Answer
    teacher: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Start:
    """What the certificate of live traffic is started on: the calibration rows that the offline one
    speaks of, in their order. ``scores``: REJECTED where the draft breaks the output rules.
    ``share``: the part of the allowed error left to this score, where another was tried on the
    same rows."""

    scores: Doubles = field(default_factory=lambda: np.zeros(0))
    losses: Doubles = field(default_factory=lambda: np.zeros(0))
    share: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Router:
    """A fitted router. ``threshold`` is NEVER where there is no certificate. Prompts are what the
    student is told to answer (the user's text, without system prompt), as in training. Where the
    task has an embedder, its ``vector`` of the prompt may be handed in; else it is asked here.

    ``window``: the score is that of a draft's first tokens, so many of them; None: of all of it.
    ``prefix``: the heads that stop a hopeless draft while it is made. ``difficulty``: the chance,
    by the prompt alone, that a draft will not be served; ``hopeless``: above this chance the
    student is not asked."""

    spec: OutputSpec
    ood: Ood
    ood_epsilon: float
    confidence: Confidence
    difficulty: Difficulty | None = None
    hopeless: float = 1.0
    threshold: float = NEVER
    certificate: Certificate | None = None
    report: Report = field(default_factory=Report)
    start: Start = field(default_factory=Start)
    window: int | None = None
    prefix: Prefix | None = None

    @property
    def serial(self) -> bool:
        """Whether ``before`` is cheap enough to be waited for before the student is asked."""
        return self.ood.space.serial

    def before(
        self, prompt: str, threshold: float | None = None, vector: Floats | None = None
    ) -> Decision:
        """Whether to ask the student at all: route STUDENT means "go on". ``p_ood`` is always
        set, also where the student is not certified (the queue and shadow mode want it).
        ``threshold``: the live one; None: the router's own. Raises NoEmbedder where the vector is
        needed and cannot be had."""
        at = self.ood.space(prompt, vector)
        p_ood = self.ood.place(self.ood.seen_from(at))
        if (self.threshold if threshold is None else threshold) >= NEVER:
            return Decision(route=Route.TEACHER, reason=Reason.NOT_CERTIFIED, p_ood=p_ood)
        if p_ood <= self.ood_epsilon:
            return Decision(route=Route.TEACHER, reason=Reason.OOD, p_ood=p_ood)
        if self.difficulty is not None and self.difficulty(prompt, at) > self.hopeless:
            return Decision(route=Route.TEACHER, reason=Reason.HARD, p_ood=p_ood)
        return Decision(route=Route.STUDENT, reason=Reason.TRUSTED, p_ood=p_ood)

    def after(
        self,
        prompt: str,
        answer: Answer,
        p_ood: float | None = None,
        threshold: float | None = None,
        vector: Floats | None = None,
    ) -> Decision:
        """Whether the student's draft may be served, as far as the window sees it. ``p_ood`` is
        passed through; ``threshold`` as in ``before``."""
        answer = cut(answer, self.window)
        score = self.score(prompt, answer, vector)
        if check(self.spec, answer) is not None:
            route, reason = Route.TEACHER, Reason.INVALID
        elif score < (self.threshold if threshold is None else threshold):
            route, reason = Route.TEACHER, Reason.UNSURE
        else:
            route, reason = Route.STUDENT, Reason.TRUSTED
        return Decision(route=route, reason=reason, score=score, p_ood=p_ood)

    def score(self, prompt: str, answer: Answer, vector: Floats | None = None) -> float:
        """The trust in a draft, in [0, 1]. Says nothing about the output rules."""
        spec, confidence = self.spec, self.confidence
        answer = cut(answer, self.window)
        if not confidence.learned:
            return exp(log_probability(spec.kind, answer, tuple(spec.fields)))
        signal = signals(
            spec.kind,
            answer,
            tuple(spec.fields),
            labels=spec.labels if confidence.reader is not None else (),
            lengths=confidence.lengths,
        )
        return confidence.score(signal, self.ood.views(prompt, vector))


def fit_router(
    *,
    spec: OutputSpec,
    train: Sequence[Labelled],
    calibration: Sequence[Judged],
    max_disagreement: float,
    confidence: float,
    ood_epsilon: float,
    window: int | None = None,
    early_share: float = 0.0,
    seed: int = 17,
    embedder: Embedder | None = None,
    cost_ratio: float | None = None,
) -> Router:
    """The router of a student, from its training rows and from held-out traffic it answered.
    ``window``: its answers are released after so many tokens. ``early_share``: of the drafts it
    would serve, heads may stop this share; 0: there are none.

    ``calibration`` must be requests of the task as they come in, none of them trained on. Too few
    or too bad ones give a router without certificate, which sends everything to the teacher.
    ``embedder``: asked beside the task's own n-grams. ``cost_ratio``: what a draft costs, as a
    share of the teacher's answer; where it is known, the student is not asked for what it will
    hardly be served for: trying costs the ratio, and saves an answer as often as it succeeds.
    """
    spec = learn(spec, (row.answer for row in train))
    ood = fit_ood(
        [(row.prompt, label_of(spec, row.answer)) for row in train],
        [row.prompt for row in calibration],
        seed=seed,
        embedder=embedder,
    )
    score = default(spec.kind, [row.answer for row in train])
    router = Router(spec=spec, ood=ood, ood_epsilon=ood_epsilon, confidence=score, window=window)
    if not calibration:
        delta, _ = shares(1.0 - confidence)
        return replace(router, report=_report(router, _Rows(), max_disagreement, delta))
    rows = _Rows.of(router, calibration)
    delta, _ = shares(1.0 - confidence)
    chosen, certificate, certified, contest = _certify(router, rows, max_disagreement, delta, seed)
    share = 1.0
    if len(rows.prompts) >= HEAD_ROWS:
        share = HEAD_DELTA if chosen.learned else 1.0 - HEAD_DELTA
    start = Start(scores=certified.scores(chosen), losses=certified.losses, share=share)
    router = replace(router, confidence=chosen, start=start)
    if certificate is not None:
        router = replace(
            router,
            threshold=certificate.threshold,
            certificate=_with_gate(certificate, router, certified, delta),
        )
        if cost_ratio is not None:
            router = replace(
                router,
                difficulty=_difficulty(router, rows, seed),
                hopeless=1.0 - min(cost_ratio, 1.0),
            )
    if early_share > 0.0:
        scores = rows.scores(chosen)
        prefix = fit_prefix(
            spec.kind,
            [row.student for row in calibration],
            (scores >= _hopeful(scores, rows.losses, max_disagreement)).tolist(),
            fields=tuple(spec.fields),
            before=window,
            share=early_share,
            seed=seed,
        )
        router = replace(router, prefix=prefix)
    report = replace(_report(router, certified, max_disagreement, delta), contest=contest)
    return replace(router, report=report)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rows:
    """The calibration rows, as numbers."""

    prompts: Sequence[str] = ()
    signals: Sequence[Signals] = ()
    views: Sequence[Doubles] = ()
    wanted: NDArray[np.intp] = field(default_factory=lambda: np.zeros(0, dtype=np.intp))
    losses: Doubles = field(default_factory=lambda: np.zeros(0))
    valid: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, dtype=bool))
    passed: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, dtype=bool))

    @classmethod
    def of(cls, router: Router, calibration: Sequence[Judged]) -> "_Rows":
        spec, ood, window = router.spec, router.ood, router.window
        lengths = router.confidence.lengths
        fields = tuple(spec.fields)
        labels = spec.labels if spec.kind == "label" else ()
        known = places(labels)
        seen = [cut(row.student, window) for row in calibration]
        views = [ood.seen_from(at) for at in ood.space.many([row.prompt for row in calibration])]
        return cls(
            prompts=[row.prompt for row in calibration],
            signals=[
                signals(spec.kind, answer, fields, labels=labels, lengths=lengths)
                for answer in seen
            ],
            views=views,
            wanted=np.array([known.get(bare(row.teacher), len(labels)) for row in calibration]),
            losses=np.array(
                [loss_of(spec, row.student, row.teacher, window) for row in calibration]
            ),
            valid=np.array([check(spec, answer) is None for answer in seen]),
            passed=np.array([ood.place(view) > router.ood_epsilon for view in views]),
        )

    def only(self, mask: NDArray[np.bool_]) -> "_Rows":
        picked = np.flatnonzero(mask).tolist()
        return _Rows(
            prompts=[self.prompts[at] for at in picked],
            signals=[self.signals[at] for at in picked],
            views=[self.views[at] for at in picked],
            wanted=self.wanted[mask],
            losses=self.losses[mask],
            valid=self.valid[mask],
            passed=self.passed[mask],
        )

    def scores(self, confidence: Confidence) -> Doubles:
        """Invalid drafts are never served, so they score REJECTED."""
        raw = map(confidence.score, self.signals, self.views)
        return np.where(self.valid, np.fromiter(raw, np.float64, len(self.valid)), REJECTED)


def _certify(
    router: Router, rows: _Rows, alpha: float, delta: float, seed: int
) -> tuple[Confidence, Certificate | None, _Rows, Contest]:
    """The score to use, its certificate, the rows that certificate speaks of, and how the heads
    that were tried did."""
    binary = router.spec.binary
    base = router.confidence
    if len(rows.prompts) < HEAD_ROWS:
        ours = certify(rows.scores(base), rows.losses, alpha, delta, binary=binary)
        return base, ours, rows, Contest()
    # Split the error before looking, or choosing between the certificates would void them.
    ours = certify(rows.scores(base), rows.losses, alpha, delta * (1 - HEAD_DELTA), binary=binary)
    taught = np.array([_bucket(prompt) == 0 for prompt in rows.prompts])
    seen = rows.only(taught & rows.valid)  # what breaks the rules is never scored
    head, contest = learn_head(
        base,
        list(zip(seen.signals, seen.views, strict=True)),
        seen.losses.tolist(),
        seed=seed,
        wanted=seen.wanted.tolist() if router.spec.kind == "label" else (),
    )
    if head is None:
        return base, ours, rows, contest
    unseen = rows.only(~taught)
    theirs = certify(unseen.scores(head), unseen.losses, alpha, delta * HEAD_DELTA, binary=binary)
    if theirs is None or (ours is not None and theirs.coverage <= ours.coverage):
        return base, ours, rows, contest
    return head, theirs, unseen, contest


def _hopeful(scores: Doubles, losses: Doubles, alpha: float) -> float:
    """The laxest threshold whose *observed* loss keeps the contract. It promises nothing, but no
    certificate of the same score will ever go much beyond it: what scores less is not going to be
    served, however much evidence comes in. So what is stopped early does not depend on the
    threshold of the day, which a certificate could not bear."""
    kept = [t for t in GRID if float((losses * (scores >= t)).mean()) <= alpha]
    return min(kept, default=NEVER)


def _bucket(prompt: str) -> int:
    return zlib.crc32(b"head:" + prompt.encode("utf-8", "surrogatepass")) % HEAD_BUCKETS


def _difficulty(router: Router, rows: _Rows, seed: int) -> Difficulty | None:
    """From what the router would do with the drafts of the calibration rows."""
    space = router.ood.space
    served = rows.scores(router.confidence) >= router.threshold
    deferred = np.where(served, 0.0, 1.0).tolist()
    points = space.many(rows.prompts)
    return fit_difficulty(space, rows.prompts, points, deferred, seed=seed)


def _with_gate(certificate: Certificate, router: Router, rows: _Rows, delta: float) -> Certificate:
    """The certificate with the coverage that is left behind the OOD gate."""
    served = (rows.scores(router.confidence) >= certificate.threshold) & rows.passed
    low, high = interval(int(served.sum()), len(served), delta)
    return replace(
        certificate,
        confidence=1.0 - delta,
        coverage=float(served.mean()),
        coverage_low=low,
        coverage_high=high,
    )


def _report(router: Router, rows: _Rows, alpha: float, delta: float) -> Report:
    n = len(rows.prompts)
    ood_rows = max(0, ceil(1.0 / router.ood_epsilon) - 1 - n) if router.ood_epsilon > 0 else 0
    if n == 0:
        needed = evidence_needed(0, 0.0, alpha, delta) if alpha > 0 else 0
        return Report(evidence_needed=needed, ood_rows_needed=ood_rows)
    scores = rows.scores(router.confidence)
    sure = scores >= max(scores.max(), 0.0)
    errors = float(rows.losses[sure].sum())
    lacking = router.certificate is None and alpha > 0
    return Report(
        n=n,
        agreement=1.0 - float(rows.losses.mean()),
        invalid=1.0 - float(rows.valid.mean()),
        turned_away=1.0 - float(rows.passed.mean()),
        learned=router.confidence.learned,
        rankings=_rankings(router, rows, scores),
        evidence_needed=evidence_needed(n, errors, alpha, delta) if lacking else 0,
        evidence_expected=evidence_expected(n, errors, alpha, delta) if lacking else 0,
        ood_rows_needed=ood_rows,
    )


def _rankings(router: Router, rows: _Rows, scores: Doubles) -> dict[str, Ranking]:
    """The score in use and what it must beat: each ranks the same drafts."""
    kind, losses = router.spec.kind, rows.losses.tolist()
    baselines: dict[str, Callable[[int], float]] = {
        "answer probability": lambda at: plain(kind, rows.signals[at]),
        "mean log-probability": lambda at: rows.signals[at].mean,
        "least sure token": lambda at: rows.signals[at].min,
        "least sure field": lambda at: rows.signals[at].field_min,
        "first token": lambda at: rows.signals[at].first,
        "like the training prompts": lambda at: -float(rows.views[at][-1:].sum()),
        "prompt length": lambda at: -float(len(rows.prompts[at])),
    }
    n = range(len(losses))
    found = {name: rank([of(at) for at in n], losses) for name, of in baselines.items()}
    return {"score": rank(scores.tolist(), losses), **found, "random": Ranking(auroc=0.5, apgr=0.5)}
