"""Numbers read off the tokens of a draft: how sure the student was of the parts that matter.

Of a JSON answer only the values count: braces, keys and quotes are near-certain whatever the
student knows, and averaging over them drowns what it does not. A value ends with the character
after it (the closing quote, the comma of a number), because "this is all" is part of the answer:
``card`` and ``card_lost`` differ in nothing else.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from router.decision import Answer, Token
from router.output import Kind

#: Log-probabilities below this (servers send -inf and -9999) all mean "never".
FLOOR = -50.0
#: The score of an answer that came without tokens: exp of this is 0.
UNKNOWN = -1000.0
#: Probabilities are kept this far from 0 and 1 where their logarithms are taken.
EDGE = 1e-9
#: How far a token's text is searched for where the tokens do not add up to the text.
REACH = 16

PIECE = re.compile(
    r'(?P<string>"(?:[^"\\]|\\.)*(?P<close>"?))|(?P<number>-?[0-9][0-9.eE+-]*)'
    r"|(?P<word>true|false|null)|(?P<mark>[{}\[\]:,])",
    re.DOTALL,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Signals:
    """All finite, and higher is surer. Log-probabilities are natural logarithms, at most 0.

    seq: the sum over the value tokens, i.e. the log-probability of the answer. mean: seq per
    value token. min: the least sure value token. field_min: the least sure field's sum (seq where
    there are no fields). first: 1 minus the normalised entropy over the alternatives of the first
    value token. margin: the smallest lead, in nats, of a value token over its runner-up.
    """

    values: int
    seq: float
    mean: float
    min: float
    field_min: float
    first: float
    margin: float
    fields: tuple[tuple[str, float], ...] = ()


NOTHING = Signals(
    values=0, seq=UNKNOWN, mean=FLOOR, min=FLOOR, field_min=UNKNOWN, first=0.0, margin=0.0
)
#: What ``features`` returns, in its order.
FEATURES = ("seq", "seq_right", "mean", "min", "min_right", "field_min", "first", "margin")


def signals(kind: Kind, answer: Answer, fields: Sequence[str] = ()) -> Signals:
    """The signals of one draft. ``fields``: the json fields that matter; none given: all."""
    if not answer.tokens:
        return NOTHING
    groups = value_tokens(answer, fields) if kind == "json" else {}
    chosen = [token for group in groups.values() for token in group] or list(answer.tokens)
    logs = [_log(token.logprob) for token in chosen]
    sums = tuple((name, sum(_log(t.logprob) for t in group)) for name, group in groups.items())
    total = sum(logs)
    return Signals(
        values=len(logs),
        seq=total,
        mean=total / len(logs),
        min=min(logs),
        field_min=min((value for _, value in sums), default=total),
        first=_certainty(chosen[0]),
        margin=min(map(_margin, chosen)),
        fields=sums,
    )


def features(signal: Signals) -> NDArray[np.float64]:
    """The inputs of a linear head: log(−log p) and −log(1−p) of the probabilities, clipped. Raw
    log-probabilities pile up at 0 and cost such a head much of its power (Zellinger, 2024)."""
    seq, least = _clipped(signal.seq), _clipped(signal.min)
    return np.array(
        [
            -math.log(-math.log(seq)),
            -math.log1p(-seq),
            -math.log(-math.log(_clipped(signal.mean))),
            -math.log(-math.log(least)),
            -math.log1p(-least),
            -math.log(-math.log(_clipped(signal.field_min))),
            signal.first,
            signal.margin,
        ]
    )


def value_tokens(answer: Answer, fields: Sequence[str] = ()) -> dict[str, list[Token]]:
    """The tokens that touch the values of a JSON text, by top-level key. Empty where it has no
    values or its tokens cannot be laid on it."""
    spans = value_spans(answer.text)
    if fields:
        spans = [span for span in spans if span[0] in fields]
    places = _places(answer)
    if not spans or places is None:
        return {}
    groups: dict[str, list[Token]] = {}
    token = 0
    for name, start, end in spans:
        while token < len(places) and places[token][1] <= start:
            token += 1
        for at in range(token, len(places)):
            if places[at][0] >= end:
                break
            groups.setdefault(name, []).append(answer.tokens[at])
    return groups


def value_spans(text: str) -> list[tuple[str, int, int]]:
    """(top-level key, start, end) of every leaf value of a JSON text, broken ones included."""
    spans: list[tuple[str, int, int]] = []
    depth, key, expect_key = 0, "", False
    stack: list[bool] = []  # whether each open bracket is an object
    for piece in PIECE.finditer(text):
        mark = piece["mark"]
        if mark is not None:
            if mark in "{[":
                stack.append(mark == "{")
                depth += 1
                expect_key = mark == "{"
            elif mark in "}]":
                depth -= 1
                if stack:
                    stack.pop()
                expect_key = False
            elif mark == ",":
                expect_key = bool(stack) and stack[-1]
            else:
                expect_key = False
        elif piece["string"] is not None:
            inner = (piece.start() + 1, piece.end() - len(piece["close"]))
            if expect_key and stack and stack[-1]:
                if depth == 1:
                    key = text[slice(*inner)]
            else:
                spans.append((key, inner[0], inner[1] + 1))
        elif stack:
            spans.append((key, piece.start(), piece.end() + (piece["number"] is not None)))
    return spans


def _places(answer: Answer) -> list[tuple[int, int]] | None:
    """Where each token stands in the text. Tokens need not add up to it exactly: a server strips
    blanks, hides an end mark, or prints half of a character as U+FFFD. None where too few fit."""
    places: list[tuple[int, int]] = []
    at, found = 0, 0
    text = answer.text
    for token in answer.tokens:
        piece = token.text
        start = at if text.startswith(piece, at) else text.find(piece, at, at + REACH + len(piece))
        if piece and start >= 0:
            at = start + len(piece)
            places.append((start, at))
            found += len(piece)
        else:  # a part of what stands here
            places.append((at, at + 1 if at < len(text) else at))
    return places if found * 2 >= len(text) else None


def _log(logprob: float) -> float:
    """``logprob`` within [FLOOR, 0]; not a number counts as never."""
    return min(0.0, max(FLOOR, logprob)) if logprob == logprob else FLOOR


def _clipped(log: float) -> float:
    return min(1.0 - EDGE, max(EDGE, math.exp(log)))


def _certainty(token: Token) -> float:
    """1 − H/log(K+1) over the K returned alternatives and one bucket for all others."""
    logs = [_log(value) for value in token.top] or [_log(token.logprob)]
    shares = [math.exp(value) for value in logs]
    total = sum(shares)
    rest = max(0.0, 1.0 - total)
    entropy = -sum(p / (total + rest) * math.log(p / (total + rest)) for p in (*shares, rest) if p)
    return min(1.0, max(0.0, 1.0 - entropy / math.log(len(shares) + 1)))


def _margin(token: Token) -> float:
    """The lead over the runner-up; without alternatives, over all others together. Negative where
    the chosen token was not the likeliest."""
    chosen = _log(token.logprob)
    if len(token.top) >= 2:
        logs = [_log(value) for value in token.top]
        return chosen - (logs[1] if chosen >= logs[0] else logs[0])
    return max(FLOOR, chosen - math.log(max(EDGE, -math.expm1(chosen))))
