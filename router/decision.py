"""The vocabulary every part of Retort shares: route, reason, decision, and a student's answer."""

from dataclasses import dataclass, field
from enum import StrEnum


class Route(StrEnum):
    """Who answers."""

    STUDENT = "student"
    TEACHER = "teacher"


class Reason(StrEnum):
    """Why a request took its route. A closed set: it labels metrics, rows and response headers."""

    #: student: every gate passed
    TRUSTED = "trusted"
    #: student or teacher: the caller asked for it and may
    FORCED = "forced"
    #: student: the gates said no, but no teacher answered and the task's policy serves the draft
    DEGRADED = "degraded"
    #: teacher: no task claims the request
    UNCLAIMED = "unclaimed"
    #: teacher: the task only collects
    COLLECT = "collect"
    #: teacher: the student decides beside it but does not answer
    SHADOW = "shadow"
    #: teacher: no student has been promoted yet
    NO_BUNDLE = "no_bundle"
    #: teacher: the bundle has no certificate for any threshold
    NOT_CERTIFIED = "not_certified"
    #: teacher: the audits of the bundle raised an alarm, and its evidence counts no longer
    ALARM = "alarm"
    #: teacher, before generation: unlike the student's training traffic
    OOD = "ood"
    #: teacher, before generation: the student's draft would almost surely not be served
    HARD = "hard"
    #: teacher, before generation: of a shape the student cannot serve (tools, images, n > 1)
    UNSUPPORTED = "unsupported"
    #: teacher, during generation: the draft's first tokens say that it will not be served
    UNSURE_EARLY = "unsure_early"
    #: teacher, after generation: the student's confidence is under the threshold
    UNSURE = "unsure"
    #: teacher, after generation: the draft breaks the task's output rules
    INVALID = "invalid"
    #: teacher, after generation: the draft fails a check of the task (docs/checks.md)
    UNSAFE = "unsafe"
    #: student or teacher: the stored answer of an identical request (docs/cache.md)
    CACHED = "cached"
    #: teacher: the student is down, slow, overloaded or answered nonsense
    STUDENT_ERROR = "student_error"


#: Reasons decided before the student is asked; a fallback with one of them is *routed*.
ROUTED = frozenset(
    {
        Reason.UNCLAIMED,
        Reason.FORCED,
        Reason.COLLECT,
        Reason.SHADOW,
        Reason.NO_BUNDLE,
        Reason.NOT_CERTIFIED,
        Reason.ALARM,
        Reason.OOD,
        Reason.HARD,
        Reason.UNSUPPORTED,
    }
)
#: Reasons decided after the student was asked; a fallback with one of them is *escalated*.
ESCALATED = frozenset(
    {
        Reason.UNSURE_EARLY,
        Reason.UNSURE,
        Reason.INVALID,
        Reason.UNSAFE,
        Reason.STUDENT_ERROR,
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """A route with its reason and the numbers behind it.

    ``score`` is the trust in the student's answer, in [0, 1], higher is better; ``p_ood`` the
    conformal p-value of "this request is like the training traffic", in (0, 1], low is strange.
    Either is None where it was not computed.
    """

    route: Route
    reason: Reason
    score: float | None = None
    p_ood: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """One generated token: its text, natural-log probability, and the top-k alternatives' ones
    (descending, the chosen token's included where the server returned it). ``names``: the texts of
    the same alternatives, or nothing where they are unknown; tokens are compared without them."""

    text: str
    logprob: float
    top: tuple[float, ...] = ()
    names: tuple[str, ...] = field(default=(), compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the student generated for one request."""

    text: str
    tokens: tuple[Token, ...] = ()
    finish_reason: str = "stop"
