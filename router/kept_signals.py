"""The signals of a draft as a few numbers that are kept beside it: cheap, and no text.

A score answers for one way of looking at a draft. With these numbers another way can be tried on
traffic that is past (`retort replay --signal`).
"""

from collections.abc import Mapping
from math import exp

from router.decision import Answer
from router.output import OutputSpec
from router.signals import signals

#: by name, what is kept of `router.signals.Signals`
KEPT = ("seq", "mean", "min", "first", "margin", "field_min", "values")
#: significant digits
DIGITS = 7


def kept_signals(spec: OutputSpec, answer: Answer) -> dict[str, float] | None:
    """None for a draft that came without log-probabilities."""
    if not answer.tokens:
        return None
    found = signals(spec.kind, answer, tuple(spec.fields))
    return {name: float(f"{getattr(found, name):.{DIGITS}g}") for name in KEPT}


def as_score(name: str, kept: Mapping[str, float] | None) -> float:
    """A kept signal as trust in [0, 1], in its own order; NaN where it was not kept. The
    log-probabilities become probabilities, a margin of m nats the odds e^m."""
    value = None if kept is None else kept.get(name)
    if not isinstance(value, int | float):
        return float("nan")
    if name == "first":
        return float(value)
    if name == "margin":
        return 1.0 / (1.0 + exp(-max(-700.0, value)))
    return exp(min(0.0, value))
