"""Whether the challenger replaces the champion: pure numbers in, a verdict with reasons out.

A night that promotes on a better-looking average promotes something truly worse about every third
time. Here every comparison is an exact paired test on the same held-out requests, and because the
champion is challenged night after night, its k-th challenge is tested at 6·alpha/(pi·k)²: over a
champion's whole reign, all nights together, it loses to a student that is not better with
probability at most alpha.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from retrain.paired import Paired, compare, rows_to_show_not_worse, sign_test

Kind = Literal["promote", "hold", "reject", "not_enough_evidence"]

#: Held-out rows without which not even a first student is judged.
MIN_ROWS = 30
#: A label has collapsed if it lost this much agreement, and chance is no explanation.
COLLAPSE = 0.2
#: Level of the hard blocks, shared by the labels. Blocking by mistake costs one night, no more.
BLOCK_LEVEL = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """One student on the common test rows, in their order.

    ``losses``: disagreement with the teacher. ``valid``: the draft obeys the output rules.
    ``served``: with its router the student would answer, on those test rows only that are traffic
    as it is (the same ones for both contenders). ``harm_at_least``: lower confidence bound of the
    share of all requests that it would answer in disagreement.
    """

    losses: Sequence[float]
    valid: Sequence[bool]
    served: Sequence[bool]
    certified: bool
    harm_at_least: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What becomes of the challenger, and why, in sentences with numbers. ``rows_needed``: further
    test rows that would settle it if things go on as they are; None: unknown or none would."""

    kind: Kind
    reasons: tuple[str, ...]
    challenge: int = 0
    level: float = 0.0
    quality: Paired | None = None
    coverage: Paired | None = None
    coverage_champion: float | None = None
    coverage_challenger: float = 0.0
    rows_needed: int | None = None
    blocks: tuple[str, ...] = field(default=())


def spent(alpha: float, challenge: int) -> float:
    """The level of a champion's k-th challenge (k from 1). All of them add up to alpha."""
    if challenge < 1:
        raise ValueError(f"challenges are counted from 1, not {challenge}")
    return 6.0 * alpha / (math.pi * challenge) ** 2


def decide_first(
    challenger: Contender, *, probe_error: str | None, min_rows: int = MIN_ROWS
) -> Verdict:
    """A task's first student has nothing to beat: it is promoted when it runs and was measured.
    Without a certificate its router sends everything to the teacher, so nothing can get worse."""
    n = len(challenger.losses)
    coverage = _share(challenger.served)
    if probe_error is not None:
        return Verdict(kind="reject", reasons=(probe_error,), blocks=(probe_error,))
    agreement = 1.0 - _mean(challenger.losses)
    if n < min_rows:
        return Verdict(
            kind="not_enough_evidence",
            reasons=(f"{n} test rows; a first student is judged on {min_rows} or more",),
            coverage_challenger=coverage,
            rows_needed=min_rows - n,
        )
    quality = f"the first student agrees with the teacher on {agreement:.1%} of {n} test rows"
    if challenger.certified:
        served = f"its certificate lets it answer {coverage:.1%} of the traffic"
    else:
        served = (
            "no threshold keeps the contract yet, so its router sends everything to the teacher"
        )
    return Verdict(kind="promote", reasons=(quality, served), coverage_challenger=coverage)


def decide(
    champion: Contender,
    challenger: Contender,
    *,
    challenge: int,
    alpha: float,
    margin: float,
    max_disagreement: float,
    probe_error: str | None = None,
    labels: Sequence[str | None] = (),
    tainted: bool = False,
) -> Verdict:
    """The verdict of a champion's ``challenge``-th challenge (from 1).

    ``labels``: the teacher's class of each test row, for the per-label block. Promoted is a
    challenger that agrees significantly more and does not serve significantly less, or that is
    shown not worse by ``margin`` and serves significantly more. A champion that demonstrably
    breaks the contract counts as serving nothing. A ``tainted`` champion was made with rows that
    were erased since: whoever is not worse, and does not serve less, takes its place.
    """
    level = spent(alpha, challenge)
    quality = compare(champion.losses, challenger.losses, level=level)
    broken = champion.harm_at_least > max_disagreement
    served = [False] * len(champion.served) if broken else list(champion.served)
    coverage = compare(_not(served), _not(challenger.served), level=level)
    blocks = _blocks(champion, challenger, margin, probe_error, labels)
    numbers = _Numbers(quality, coverage, level, challenge, margin)

    def verdict(kind: Kind, *reasons: str, rows_needed: int | None = None) -> Verdict:
        return Verdict(
            kind=kind,
            reasons=reasons,
            challenge=challenge,
            level=level,
            quality=quality,
            coverage=coverage,
            coverage_champion=_share(served),
            coverage_challenger=_share(challenger.served),
            rows_needed=rows_needed,
            blocks=blocks,
        )

    if blocks:
        return verdict("reject", *blocks)
    if quality.n == 0:
        return verdict("not_enough_evidence", "there are no test rows")
    if quality.p_worse <= level:
        return verdict("reject", numbers.agreement("significantly less", quality.p_worse))
    better = quality.p_better <= level
    not_worse = better or quality.worse_by_at_most <= margin
    serves_less = coverage.p_worse <= level
    serves_more = coverage.p_better <= level
    notes = [numbers.agreement("significantly more", quality.p_better)] if better else []
    if not better:
        notes.append(numbers.agreement("neither more nor less, provably,", quality.p_better))
    if not_worse and not better:
        notes.append(numbers.not_worse())
    notes.append(numbers.coverage_sentence(_share(served), _share(challenger.served)))
    if broken:
        notes.append(
            f"the champion breaks the contract: at least {champion.harm_at_least:.1%} of the "
            f"requests are served in disagreement, {max_disagreement:.1%} are allowed"
        )
    if not_worse and serves_more:
        return verdict("promote", *notes)
    if better and not serves_less:
        return verdict("promote", *notes)
    if tainted and not_worse and not serves_less:
        return verdict("promote", *notes, "the champion was made with rows erased since")
    if better:
        return verdict("hold", *notes, "it agrees more but its certificate lets it answer less")
    if not_worse:
        return verdict("hold", *notes, "as good as the champion, and nothing is gained")
    needed = rows_to_show_not_worse(quality, margin)
    if needed is None:
        notes.append("at this rate no number of test rows would show it not worse")
    else:
        notes.append(
            f"about {needed - quality.n} more test rows would settle it if it goes on like this"
        )
    return verdict(
        "not_enough_evidence", *notes, rows_needed=None if needed is None else needed - quality.n
    )


@dataclass(frozen=True, slots=True)
class _Numbers:
    """The comparisons as sentences."""

    quality: Paired
    coverage: Paired
    level: float
    challenge: int
    margin: float

    def agreement(self, what: str, p: float) -> str:
        q = self.quality
        return (
            f"the challenger agrees with the teacher {what} than the champion: {q.wins} rows won, "
            f"{q.losses} lost of {q.n}, {-100 * q.difference:+.1f} points "
            f"(p = {p:.2g}, challenge {self.challenge} is tested at {self.level:.2g})"
        )

    def not_worse(self) -> str:
        return (
            f"it is worse by at most {100 * self.quality.worse_by_at_most:.1f} points, "
            f"within the margin of {100 * self.margin:.1f}"
        )

    def coverage_sentence(self, old: float, new: float) -> str:
        c = self.coverage
        if c.p_better <= self.level:
            what = f"significantly more (p = {c.p_better:.2g})"
        elif c.p_worse <= self.level:
            what = f"significantly less (p = {c.p_worse:.2g})"
        else:
            what = "not provably more or less"
        return (
            f"within the contract it answers {new:.1%} of {c.n} requests against {old:.1%}: {what}"
        )


def _blocks(
    champion: Contender,
    challenger: Contender,
    margin: float,
    probe_error: str | None,
    labels: Sequence[str | None],
) -> tuple[str, ...]:
    """What no average outweighs."""
    blocks = [probe_error] if probe_error is not None else []
    blocks += _invalid(champion, challenger, margin)
    blocks += _collapsed(champion, challenger, labels)
    return tuple(blocks)


def _invalid(champion: Contender, challenger: Contender, margin: float) -> list[str]:
    old, new = _share(champion.valid), _share(challenger.valid)
    p = compare(_not(champion.valid), _not(challenger.valid), level=BLOCK_LEVEL).p_worse
    if old - new <= margin or p > BLOCK_LEVEL:
        return []
    return [
        f"{new:.1%} of its drafts obey the output rules, {old:.1%} of the champion's: "
        f"more than {margin:.1%} less (p = {p:.2g})"
    ]


def _collapsed(
    champion: Contender, challenger: Contender, labels: Sequence[str | None]
) -> list[str]:
    rows: dict[str, list[int]] = {}
    for at, label in enumerate(labels):
        if label is not None:
            rows.setdefault(label, []).append(at)
    found = []
    for label, places in sorted(rows.items()):
        old = [champion.losses[at] for at in places]
        new = [challenger.losses[at] for at in places]
        wins = sum(n < o for o, n in zip(old, new, strict=True))
        losses = sum(n > o for o, n in zip(old, new, strict=True))
        if _mean(new) - _mean(old) >= COLLAPSE and (
            sign_test(losses, wins) <= BLOCK_LEVEL / len(rows)
        ):
            found.append(
                f"agreement on {label!r} collapsed from {1 - _mean(old):.0%} to "
                f"{1 - _mean(new):.0%} ({losses} rows lost, {wins} won of {len(places)})"
            )
    return found


def _not(flags: Sequence[bool]) -> list[float]:
    return [float(not flag) for flag in flags]


def _share(flags: Sequence[bool]) -> float:
    return sum(flags) / len(flags) if flags else 0.0


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
