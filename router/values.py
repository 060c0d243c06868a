"""Which tokens of a JSON answer are its values, by the place of each token in the text."""

import re
from collections.abc import Sequence

from router.decision import Answer, Token

#: How far a token's text is searched for where the tokens do not add up to the text.
REACH = 16

Span = tuple[str, int, int]

PIECE = re.compile(
    r'(?P<string>"(?:[^"\\]|\\.)*(?P<close>"?))|(?P<number>-?[0-9][0-9.eE+-]*)'
    r"|(?P<word>true|false|null)|(?P<mark>[{}\[\]:,])",
    re.DOTALL,
)


def value_tokens(answer: Answer, fields: Sequence[str] = ()) -> dict[str, list[Token]]:
    """The tokens that touch the values of a JSON text, by top-level key; ``fields``: of these keys
    only. Empty where it has no values or its tokens cannot be laid on it."""
    return tokens_of(answer, value_spans(answer.text, fields))


def tokens_of(answer: Answer, spans: Sequence[Span]) -> dict[str, list[Token]]:
    """The tokens that touch the spans (in the order of the text), by their keys."""
    places = _places(answer) if spans else None
    if places is None:
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


def value_spans(text: str, fields: Sequence[str] = ()) -> list[Span]:
    """(top-level key, start, end) of every leaf value of a JSON text, broken ones included;
    ``fields``: under these keys only."""
    spans: list[Span] = []
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
    return [span for span in spans if span[0] in fields] if fields else spans


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
