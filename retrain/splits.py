"""Which side of the split a row is on, for ever, and proof that the sides do not leak.

The side is a salted hash of the group key, so it needs no memory: a conversation that comes again
in a year falls where it fell today, and no night re-shuffles yesterday's test into today's
training. Near-identical prompts of different groups (a typo, another greeting) are left out of
training: the held-out rows stay the fixed sample of the traffic that the contract is about.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Literal

from retrain.errors import LeakageError

Split = Literal["train", "calibration", "test"]
SPLITS: tuple[Split, ...] = ("train", "calibration", "test")

#: Never changes: every certificate relies on no row ever changing sides.
SALT = b"retort split 1:"
#: Of 100 groups, these many are trained on, and these many calibrate; the others test.
TRAIN, CALIBRATION = 60, 20
#: Two prompts at least this alike (Jaccard index of their five-letter pieces) are near-duplicates.
ALIKE = 0.9
PIECE = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompted:
    """A row as the guard sees it. ``prompt``: all that was said before the answer."""

    id: str
    group_key: str
    prompt: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Leak:
    """A training row and a held-out row that are nearly the same, and how alike (Jaccard)."""

    train: Prompted
    held_out: Prompted
    alike: float


def split_of(group_key: str) -> Split:
    """The side of a group: train 60 %, calibration 20 %, test 20 %."""
    digest = hashlib.sha256(SALT + group_key.encode()).digest()
    place = int.from_bytes(digest[:8], "big") % 100
    if place < TRAIN:
        return "train"
    return "calibration" if place < TRAIN + CALIBRATION else "test"


def guard(rows: Sequence[Prompted], *, max_share: float) -> list[Leak]:
    """The duplicates and near-duplicates across training and held-out rows, one per training row:
    what is to be left out of training.

    Raises LeakageError with a pair where that is more than ``max_share`` of the training rows:
    then the group key does not fit this traffic, and what is left would be a biased rest.
    """
    train = [row for row in rows if split_of(row.group_key) == "train"]
    held_out = [row for row in rows if split_of(row.group_key) != "train"]
    leaks = list(near_duplicates(train, held_out))
    if leaks and len(leaks) > max_share * len(train):
        worst = max(leaks, key=lambda leak: leak.alike)
        raise LeakageError(
            f"{len(leaks)} of {len(train)} training rows are near-duplicates of held-out ones, over"
            f" the limit of {max_share:.0%}; for example {worst.train.id}"
            f" ({_short(worst.train.prompt)!r}) and {worst.held_out.id}"
            f" ({_short(worst.held_out.prompt)!r}). Where prompts share a template, cut the"
            " changing part out of it with the task's prompt.user_regex"
        )
    return leaks


def near_duplicates(
    train: Sequence[Prompted], held_out: Sequence[Prompted], alike: float = ALIKE
) -> Iterator[Leak]:
    """The first near-duplicate among ``held_out`` of each row of ``train`` that has one.

    Exact, without comparing all pairs: sets with a Jaccard index of at least ``alike`` share one
    of their rarest pieces (Bayardo, Ma, Srikant 2007: prefix filtering), and are nearly as large.
    """
    train_sets = [_pieces(row.prompt) for row in train]
    held_out_sets = [_pieces(row.prompt) for row in held_out]
    count: dict[int, int] = defaultdict(int)
    for pieces in (*train_sets, *held_out_sets):
        for piece in pieces:
            count[piece] += 1
    index: dict[int, list[int]] = defaultdict(list)
    for at, pieces in enumerate(held_out_sets):
        for piece in _rarest(pieces, count, alike):
            index[piece].append(at)
    for row, pieces in zip(train, train_sets, strict=True):
        candidates = {at for piece in _rarest(pieces, count, alike) for at in index.get(piece, ())}
        for at in sorted(candidates):
            other = held_out_sets[at]
            if min(len(pieces), len(other)) < alike * max(len(pieces), len(other)):
                continue
            index_of_both = len(pieces & other) / len(pieces | other)
            if index_of_both >= alike:
                yield Leak(train=row, held_out=held_out[at], alike=index_of_both)
                break


def _rarest(pieces: frozenset[int], count: Mapping[int, int], alike: float) -> list[int]:
    keep = len(pieces) - ceil(alike * len(pieces)) + 1
    return sorted(pieces, key=lambda piece: (count[piece], piece))[:keep]


def _pieces(prompt: str) -> frozenset[int]:
    """All runs of five characters, digits alike, as numbers. Not Python's hash(): that changes
    from process to process, and with it which pieces tie."""
    text = " ".join("".join("0" if c.isdigit() else c for c in prompt.casefold()).split())
    runs = {text[at : at + PIECE] for at in range(max(1, len(text) - PIECE + 1))}
    return frozenset(int.from_bytes(run.encode(), "big") for run in runs)


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:59] + "…"
