"""What a calibration found, in numbers a person can judge: quality, coverage, and what trivial
routers would have done on the same rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from router.contest import PLAIN, Contest
from router.ranking import apgr, auroc

__all__ = ["Contest", "Ranking", "Report", "apgr", "rank", "score_in_words"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranking:
    """How well a score orders drafts. ``auroc``: right over wrong ones. ``apgr``: the average
    share of the disagreement that sending the lowest-scored share to the teacher removes, over
    all shares (0.5 is random)."""

    auroc: float
    apgr: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """``n``: calibration rows (those a learned head did not see); ``agreement``: 1 minus the mean
    loss of all drafts; ``invalid`` and ``turned_away``: shares stopped by the output rules and by
    the OOD gate; ``learned``: whether the score is a fitted head; ``contest``: which score ranked
    best, and by how much, on the rows kept for heads (a head that won and is not used certified
    less coverage); ``rankings``: of ``score`` and of the baselines; ``evidence_needed``: further
    requests a certificate needs at the least, if its surest drafts make no further error (0 with
    no certificate: the rows suffice, the student does not); ``evidence_expected``: if they err on
    as observed (None: then never); ``ood_rows_needed``: further calibration rows before the OOD
    gate can turn anything away."""

    n: int = 0
    agreement: float = 0.0
    invalid: float = 0.0
    turned_away: float = 0.0
    learned: bool = False
    contest: Contest = field(default_factory=Contest)
    rankings: Mapping[str, Ranking] = field(default_factory=dict)
    evidence_needed: int = 0
    evidence_expected: int | None = None
    ood_rows_needed: int = 0


def rank(scores: Sequence[float], losses: Sequence[float]) -> Ranking:
    """The two numbers of one score (higher is surer) against the losses."""
    s, x = np.asarray(scores, np.float64), np.asarray(losses, np.float64)
    return Ranking(auroc=auroc(s, x <= 0.5), apgr=apgr(s, x))


def score_in_words(report: Report) -> str:
    """Which score is in use, and what the ones that were tried gained over the plain one."""
    contest = report.contest
    if not contest.leads:
        return "Score: the answer's own probability. No head was tried: there are too few rows."
    gains = " and ".join(
        f"{name} {lead.auroc:+.3f} AUROC [{lead.auroc_low:+.3f}, {lead.auroc_high:+.3f}], "
        f"{lead.apgr:+.3f} APGR [{lead.apgr_low:+.3f}, {lead.apgr_high:+.3f}]"
        for name, lead in contest.leads.items()
    )
    tried = f"Over it, on {contest.rows} drafts they did not see: {gains}."
    if report.learned:
        used = "a head that learned from drafts, in place of the answer's own probability"
        return f"Score: {used} (won: {contest.won}). {tried}"
    why = "" if contest.won == PLAIN else f" ({contest.won} won, and certified less coverage)"
    return f"Score: the answer's own probability{why}. {tried}"
