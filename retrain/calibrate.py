"""The router of one student, and what it would do with the test rows: coverage and harm."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from threadpoolctl import threadpool_limits

from gateway.config import Task
from retrain.evaluate import Share, mean_share
from retrain.vectors import embedder_for
from router.decision import Answer, Decision, Reason, Route
from router.output import OutputSpec
from router.prefix import loss_of
from router.router import Judged, Labelled, Router, fit_router

#: What the gateway has where the student fails: nothing to serve.
FAILED = Answer(text="", finish_reason="error")


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """What a router would do with traffic like the test rows, which neither student nor router
    has seen. ``served``: share the student answers; ``harm``: mean loss of what it serves, over
    *all* requests, which is what the contract bounds; ``off_path``: share the OOD gate turns away
    (its p-value is under epsilon, whether certified or not); ``reasons``: rows by reason."""

    served: Share
    harm: Share
    off_path: Share
    reasons: Mapping[str, int]


def calibrate(
    task: Task,
    spec: OutputSpec,
    train: Sequence[Labelled],
    prompts: Sequence[str],
    answers: Sequence[Answer | None],
    teachers: Sequence[str],
    *,
    seed: int,
) -> Router:
    """Fit the router of a student from its training rows and its answers to calibration rows,
    which must be sampled traffic that it was not trained on."""
    with threadpool_limits(limits=1):  # its matrices are small; threads that spin cost ten times
        return fit_router(
            spec=spec,
            train=train,
            calibration=[
                Judged(prompt=prompt, student=answer or FAILED, teacher=teacher)
                for prompt, answer, teacher in zip(prompts, answers, teachers, strict=True)
            ],
            max_disagreement=task.contract.max_disagreement,
            confidence=task.contract.confidence,
            ood_epsilon=task.ood_epsilon,
            window=task.release.window,
            early_share=task.early_cancel_share if task.cancels_early else 0.0,
            seed=seed,
            embedder=embedder_for(task),
            cost_ratio=task.cost_ratio,
        )


def decide_each(
    router: Router, prompts: Sequence[str], answers: Sequence[Answer | None]
) -> list[Decision]:
    """The decision on every row, as the gateway would make it."""
    decisions = []
    for prompt, answer in zip(prompts, answers, strict=True):
        decision = router.before(prompt)
        if decision.route is Route.STUDENT:
            if answer is None:
                decision = Decision(
                    route=Route.TEACHER, reason=Reason.STUDENT_ERROR, p_ood=decision.p_ood
                )
            else:
                decision = router.after(prompt, answer, decision.p_ood)
        decisions.append(decision)
    return decisions


def predict(
    router: Router,
    decisions: Sequence[Decision],
    answers: Sequence[Answer | None],
    teachers: Sequence[str],
) -> Prediction:
    """Coverage, harm and off-path share with 95 % intervals."""
    served = [decision.route is Route.STUDENT for decision in decisions]
    harm = [
        loss_of(router.spec, answer, teacher, router.window) if flag and answer is not None else 0.0
        for flag, answer, teacher in zip(served, answers, teachers, strict=True)
    ]
    off_path = [
        decision.p_ood is not None and decision.p_ood <= router.ood_epsilon
        for decision in decisions
    ]
    return Prediction(
        served=mean_share([float(flag) for flag in served]),
        harm=mean_share(harm),
        off_path=mean_share([float(flag) for flag in off_path]),
        reasons=dict(Counter(decision.reason.value for decision in decisions).most_common()),
    )
