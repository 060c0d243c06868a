"""What the fallbacks are about, by what they cost: where the next student would save most.

Prompts are embedded as the OOD gate embeds them and grouped by k-means. Words are those that are
far more common in a group than elsewhere. Saving is an upper bound: the teacher's dollars of the
group, less what the student would have taken for the same requests.
"""

import argparse
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

import numpy as np
from numpy.typing import NDArray
from sqlmodel import col, select

from gateway.storage.store import Store
from gateway.storage.tables import Exchange, Request, State, utcnow
from router.decision import ESCALATED, Reason, Route
from router.embedding import fit_embedding

#: Reasons for which a better student would have been asked, or would have been served.
LEARNABLE = frozenset({*ESCALATED, Reason.OOD, Reason.HARD, Reason.NOT_CERTIFIED}) - {
    Reason.STUDENT_ERROR
}
#: The newest rows looked at; a group should have at least so many.
MOST_ROWS, GROUP_ROWS = 20_000, 20
MOST_GROUPS = 20
WORD = re.compile(r"[^\W\d_]{3,}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fallback:
    """``teacher_usd`` None: the price is not known. ``student_usd``: what its draft cost."""

    prompt: str
    reason: str
    teacher_usd: float | None
    student_usd: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """``usd`` and ``saving_usd`` are of the period looked at, and None where no price is known."""

    rows: int
    share: float
    usd: float | None
    saving_usd: float | None
    reasons: dict[str, float]
    words: tuple[str, ...]
    example: str


def fallbacks(store: Store, task: str, days: float) -> list[Fallback]:
    """Of the last days, with their costs from the ledger."""
    since = utcnow() - timedelta(days=days)
    statement = (
        select(Exchange.prompt, Exchange.reason, Request.teacher_usd, Request.student_usd)
        .join(Request, col(Request.id) == col(Exchange.id), isouter=True)
        .where(
            Exchange.task == task,
            Exchange.route == Route.TEACHER,
            Exchange.state != State.ERASED,
            col(Exchange.reason).in_(sorted(LEARNABLE)),
            Exchange.at >= since,
        )
        .order_by(col(Exchange.at).desc())
        .limit(MOST_ROWS)
    )
    with store.session() as session:
        return [
            Fallback(prompt=prompt, reason=reason, teacher_usd=theirs, student_usd=ours)
            for prompt, reason, theirs, ours in session.exec(statement)
        ]


def clusters(
    rows: Sequence[Fallback], *, groups: int | None = None, seed: int = 17
) -> list[Cluster]:
    """The dearest first; where no price is known, the largest."""
    if not rows:
        return []
    places = _places([row.prompt for row in rows], groups, seed)
    everywhere = Counter(word for row in rows for word in _words(row.prompt))
    found = [
        _cluster([rows[at] for at in np.flatnonzero(places == k).tolist()], len(rows), everywhere)
        for k in range(int(places.max()) + 1)
        if (places == k).any()
    ]
    return sorted(found, key=lambda c: (c.usd or 0.0, c.rows), reverse=True)


def _places(prompts: Sequence[str], groups: int | None, seed: int) -> NDArray[np.int64]:
    from sklearn.cluster import KMeans

    wanted = groups or min(MOST_GROUPS, len(prompts) // GROUP_ROWS)
    vectors = fit_embedding(prompts, seed=seed).many(prompts)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors = vectors / np.maximum(lengths, 1e-9)
    wanted = min(wanted, len(np.unique(vectors, axis=0)))
    if wanted < 2:
        return np.zeros(len(prompts), np.int64)
    places = KMeans(wanted, n_init=2, random_state=seed).fit_predict(vectors)
    return np.asarray(places, np.int64)


def _cluster(rows: Sequence[Fallback], total: int, everywhere: Counter[str]) -> Cluster:
    priced = [row for row in rows if row.teacher_usd is not None]
    usd = sum(row.teacher_usd or 0.0 for row in priced) if priced else None
    ours = [row.student_usd for row in rows if row.student_usd]
    student_usd = float(np.mean(ours)) * len(priced) if ours else 0.0
    here = Counter(word for row in rows for word in _words(row.prompt))
    # how much the word says that a row is of this group, over all the rows that hold it
    base = len(rows) / total
    lead = {word: n * math.log(n / (everywhere[word] * base)) for word, n in here.items()}
    words = tuple(sorted(lead, key=lambda word: (-lead[word], word))[:5])
    reasons = Counter(row.reason for row in rows)
    example = max(rows, key=lambda row: (len(_words(row.prompt) & set(words)), -len(row.prompt)))
    return Cluster(
        rows=len(rows),
        share=len(rows) / total,
        usd=usd,
        saving_usd=None if usd is None else max(0.0, usd - student_usd),
        reasons={reason: n / len(rows) for reason, n in reasons.most_common()},
        words=words,
        example=" ".join(example.prompt.split())[:200],
    )


def _words(prompt: str) -> set[str]:
    return set(WORD.findall(prompt[:4000].casefold()))


def show(args: argparse.Namespace) -> int:
    """`retort queue clusters`."""
    import json
    from dataclasses import asdict

    from gateway.config import load

    config = load(args.config)
    task = config.task(args.task)
    with Store.open(config.database_url, config.state / "spool", config.store.commit_ms) as store:
        rows = fallbacks(store, task.name, args.days)
    found = clusters(rows, groups=args.groups)
    if args.json:
        print(json.dumps([asdict(cluster) for cluster in found], ensure_ascii=False, indent=1))
        return 0
    if not found:
        print(f"no fallbacks of {task.name} in the last {args.days:g} days")
        return 0
    print("  share    rows    spent $  saves at most $/month  reasons and words")
    for one in found:
        usd = "unknown" if one.usd is None else f"{one.usd:.2f}"
        month = None if one.saving_usd is None else one.saving_usd * 30 / args.days
        saving = "unknown" if month is None else f"{month:.2f}"
        reasons = " ".join(f"{reason} {share:.0%}" for reason, share in one.reasons.items())
        print(
            f"{one.share:7.1%} {one.rows:7,} {usd:>10} {saving:>22}  {reasons}:"
            f" {' '.join(one.words)}\n{'':52}{one.example:.90}"
        )
    return 0
