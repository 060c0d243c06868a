"""Numbers read off the tokens of a draft: how sure the student was of the parts that matter.

Of a JSON answer only the values count: braces, keys and quotes are near-certain whatever the
student knows, and averaging over them drowns what it does not. A value ends with the character
after it (the closing quote, the comma of a number), because "this is all" is part of the answer:
``card`` and ``card_lost`` differ in nothing else. ``router/values.py`` finds the values.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from router.checks import refuses
from router.decision import Answer, Token
from router.options import option_logs, places
from router.output import Kind, bare
from router.values import Span, tokens_of, value_spans, value_tokens

__all__ = [
    *("EXTRAS", "FEATURES", "NOTHING", "QUANTILES", "Signals", "extras", "features"),
    *("log_probability", "signals", "size", "value_spans", "value_tokens"),
]

Doubles = NDArray[np.float64]

#: Log-probabilities below this (servers send -inf and -9999) all mean "never".
FLOOR = -50.0
#: The score of an answer that came without tokens: exp of this is 0.
UNKNOWN = -1000.0
#: Probabilities are kept this far from 0 and 1 where their logarithms are taken.
EDGE = 1e-9
#: Which quantiles of the value tokens' log-probabilities are kept (Gupta et al., 2024).
QUANTILES = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)
#: Tokens in a window of the group confidence (DeepConf: Fu et al., 2025).
WINDOW = 32
#: Values that say "there is none", as ``bare`` leaves them.
ABSENT = frozenset({"", "null", "none", "nil", "n/a", "na", "unknown", "unspecified", "not given"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Signals:
    """All finite; of the log-probabilities (natural, at most 0) and what follows from them, higher
    is surer.

    seq: the sum over the value tokens, i.e. the log-probability of the answer. mean: seq per
    value token. min: the least sure value token. field_min: the least sure field's sum (seq where
    there are no fields). first: 1 minus the normalised entropy over the alternatives of the first
    value token. margin: the smallest lead, in nats, of a value token over its runner-up.
    quantiles: of the value tokens' log-probabilities, at QUANTILES. group: the smallest mean, over
    WINDOW value tokens in a row, of minus the mean log-probability of the alternatives.

    options: for a label, the log-probability that the first token begins each label, then that it
    begins none; said: which label the answer is (-1: none). Empty where labels were not asked for.

    cut: the draft ended because it was too long. abstains: the share of the answer (of its values,
    for json) that refuses or says "none". length: how many standard deviations the draft is longer
    than the training answers. That a draft breaks the output rules is no signal: it is not served.
    """

    values: int
    seq: float
    mean: float
    min: float
    field_min: float
    first: float
    margin: float
    fields: tuple[tuple[str, float], ...] = ()
    quantiles: tuple[float, ...] = (FLOOR,) * len(QUANTILES)
    group: float = 0.0
    options: tuple[float, ...] = ()
    said: int = -1
    cut: bool = False
    abstains: float = 0.0
    length: float = 0.0


NOTHING = Signals(
    values=0, seq=UNKNOWN, mean=FLOOR, min=FLOOR, field_min=UNKNOWN, first=0.0, margin=0.0
)
#: What ``features`` returns, in its order. All rise with the student's certainty.
FEATURES = (
    *("seq", "seq_right", "mean", "min", "min_right", "field_min", "first", "margin"),
    *("q10", "q25", "q50", "q75", "group"),
)
#: What ``extras`` returns, in its order: the answer's form, which may mean either.
EXTRAS = ("values", "length", "abstains", "abstains_seq")


def signals(
    kind: Kind,
    answer: Answer,
    fields: Sequence[str] = (),
    *,
    labels: tuple[str, ...] = (),
    lengths: tuple[float, float] | None = None,
) -> Signals:
    """The signals of one draft. ``fields``: the json fields that matter; none given: all.
    ``labels``: those to read ``options`` of. ``lengths``: mean and standard deviation of
    ``size`` over the training answers; without it length is 0."""
    spans = value_spans(answer.text, fields) if kind == "json" else []
    cut, said = answer.finish_reason == "length", places(labels).get(bare(answer.text), -1)
    # one of the task's own labels is an answer, whatever it is called
    abstains = 0.0 if said >= 0 else _abstains(answer.text, spans, kind)
    length = (size(answer.text) - lengths[0]) / lengths[1] if lengths else 0.0
    if not answer.tokens:
        return replace(NOTHING, cut=cut, abstains=abstains, length=length)
    groups = tokens_of(answer, spans) if spans else {}
    chosen = list(chain.from_iterable(groups.values())) or list(answer.tokens)
    logs, tops = _arrays(chosen)
    listed = logs.tolist()
    total = sum(listed)
    n, sums, at = len(listed), [], 0
    for name, group in groups.items():
        sums.append((name, sum(listed[at : at + len(group)])))
        at += len(group)
    options = option_logs(chosen, labels) if labels else ()
    return Signals(
        values=n,
        seq=total,
        mean=total / n,
        min=min(listed),
        field_min=min((value for _, value in sums), default=total),
        first=_certainty(tops[0]),
        margin=float((logs - np.where(logs >= tops[:, 0], tops[:, 1], tops[:, 0])).min()),
        fields=tuple(sums),
        quantiles=_quantiles(sorted(listed)),
        group=_group(tops),
        options=options,
        said=said,
        cut=cut,
        abstains=abstains,
        length=length,
    )


def log_probability(kind: Kind, answer: Answer, fields: Sequence[str] = ()) -> float:
    """``seq`` (for text: ``mean``) of ``signals`` alone, which is all that the default score
    reads."""
    if not answer.tokens:
        return FLOOR if kind == "text" else UNKNOWN
    groups = value_tokens(answer, fields) if kind == "json" else {}
    chosen = list(chain.from_iterable(groups.values())) or answer.tokens
    logs = [token.logprob for token in chosen]
    total = sum(logs)
    if not (total == total and min(logs) >= FLOOR and max(logs) <= 0.0):
        total = sum(map(_log, logs))
    return total / len(chosen) if kind == "text" else total


def size(text: str) -> float:
    """The length of an answer on the scale on which lengths are compared."""
    return math.log1p(len(text.strip()))


def features(signal: Signals) -> Doubles:
    """The inputs of a head that rise with certainty: log(−log p) and −log(1−p) of the
    probabilities, clipped. Raw log-probabilities pile up at 0 and cost a linear head much of its
    power (Zellinger, 2024)."""
    seq, least = _clipped(signal.seq), _clipped(signal.min)
    return np.array(
        [
            _loglog(seq),
            -math.log1p(-seq),
            _loglog(_clipped(signal.mean)),
            _loglog(least),
            -math.log1p(-least),
            _loglog(_clipped(signal.field_min)),
            signal.first,
            signal.margin,
            *(_loglog(_clipped(value)) for value in signal.quantiles[1:5]),
            signal.group,
        ]
    )


def extras(signal: Signals) -> Doubles:
    """The inputs of a head about the answer's form. The last one lets the log-probability of an
    abstention count differently: it is a weaker sign there than for a value."""
    return np.array(
        [
            math.log1p(signal.values),
            min(abs(signal.length), 10.0),
            signal.abstains,
            signal.abstains * _loglog(_clipped(signal.seq)),
        ]
    )


def _arrays(tokens: Sequence[Token]) -> tuple[Doubles, Doubles]:
    """The log-probabilities, (n,), and those of the alternatives, (n, k >= 2), within [FLOOR, 0];
    not a number counts as never. Built once: everything else is arithmetic on them."""
    logs = np.array([token.logprob for token in tokens], np.float64)
    logs = np.minimum(np.fmax(logs, FLOOR), 0.0)
    tops = [token.top for token in tokens]
    widths = set(map(len, tops))
    if len(widths) == 1 and min(widths) >= 2:
        table = np.array(tops, np.float64)
    else:  # a server left some out: the chosen token against all others, and never for the rest
        table = np.full((len(tops), max(2, *widths)), FLOOR)
        table[:, 0] = logs
        table[:, 1] = np.log(np.maximum(-np.expm1(logs), EDGE))
        for row, top in zip(table, tops, strict=True):
            if len(top) >= 2:
                row[: len(top)] = top
    return logs, np.minimum(np.fmax(table, FLOOR), 0.0)


def _certainty(logs: Doubles) -> float:
    """1 − H/log(K+1) over the K returned alternatives and one bucket for all others."""
    shares = np.exp(logs)
    total = float(shares.sum())
    rest = max(0.0, 1.0 - total)
    surprise = -float(shares @ logs) - (rest * math.log(rest) if rest else 0.0)
    entropy = surprise / (total + rest) + math.log(total + rest)
    return min(1.0, max(0.0, 1.0 - entropy / math.log(len(logs) + 1)))


def _quantiles(logs: list[float]) -> tuple[float, ...]:
    last, out = len(logs) - 1, []
    for share in QUANTILES:
        below = int(share * last)
        low, high = logs[below], logs[min(below + 1, last)]
        out.append(low + (share * last - below) * (high - low))
    return tuple(out)


def _group(tops: Doubles) -> float:
    each = tops.sum(axis=1) / -tops.shape[1]
    if len(each) <= WINDOW:
        return float(each.sum()) / len(each)
    sums = np.concatenate([[0.0], np.cumsum(each)])
    return float((sums[WINDOW:] - sums[:-WINDOW]).min()) / WINDOW


def _abstains(text: str, spans: Sequence[Span], kind: Kind) -> float:
    if kind == "json":
        empty = sum([bare(text[start:end]) in ABSENT for _, start, end in spans])
        return empty / len(spans) if spans else 0.0
    return float(bare(text) in ABSENT or refuses(text))


def _log(logprob: float) -> float:
    """``logprob`` within [FLOOR, 0]; not a number counts as never."""
    return min(0.0, max(FLOOR, logprob)) if logprob == logprob else FLOOR


def _clipped(log: float) -> float:
    return min(1.0 - EDGE, max(EDGE, math.exp(log)))


def _loglog(p: float) -> float:
    return -math.log(-math.log(p))
