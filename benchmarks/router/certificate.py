"""Does the contract hold while one looks all the time, and what does it cost?

    RETORT_DATA=<folder> python benchmarks/router/certificate.py

Each data set is a pool of (score, loss) of a real student beside a real teacher. A stream draws
requests from it with replacement, so that its true R(t) is known exactly and requests are
independent, as the promise assumes: permuting the pool itself would make every method look better
towards the end of it, when the rest is all that can still go wrong.

*Ours* is the closed loop as it is served: it starts with the offline certificate of OFFLINE rows
(for "audits until near" with none: then everything goes to the teacher, and labels are free),
deploys the laxest certified threshold, audits RATE of what it serves, takes what it sends to the
teacher as free labels, and deploys again after every batch. A violation is ever *deploying* t with
R(t) > α. Baselines get the label of every request, and look again every LOOK of them: the laxest
threshold whose observed loss is under α, conformal risk control, Clopper–Pearson with fixed
sequence (its coverage at a mark is that of a single look there), and betting (WSR) on uniform
labels.

*Offline* is the certificate of a night, looked at once: ``fit_router`` as it is, with its learned
head, on 1,000 rows, against the plug-in threshold on the same.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

if __name__ == "__main__":  # so that it runs alone
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.router.data import Data, find
from benchmarks.router.table import Line, percentiles
from router.certificate import LIVE_GRID, SHARES, start, threshold, update_arrays
from router.decision import Answer, Token
from router.output import OutputSpec
from router.router import Judged, fit_router
from router.threshold import NEVER, certify, interval, upper_bound

Doubles = NDArray[np.float64]
Whole = NDArray[np.int64]

SECTION = "certificate"
ALPHAS = (0.01, 0.02, 0.03, 0.05, 0.10)
DELTA = 0.05
#: The part of δ for the offline Clopper–Pearson certificate; the rest is staked on live traffic.
OFFLINE_SHARE = 0.5
#: Calibration rows before the first request.
OFFLINE = 1000
#: Half a second a trial, so one promise must do.
OFFLINE_ALPHAS = (0.02,)
RATE = 0.05
LOOK = 100
#: Labels the baselines see, and the marks at which coverage is compared.
LABELS = 5000
MARKS = (1000, 5000)
#: Certified "to the oracle" means within this share of its coverage.
NEAR = 0.05
GRID = np.array(LIVE_GRID)
PAIRS = (("cosmosqa", "Qwen-14B"), ("hellaswag", "Qwen-7B"))
TEACHER = "Yi-34B"
LETTERS = "ABCDEF"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pool:
    """Requests with the score of the student's draft and its disagreement with the teacher."""

    name: str
    scores: Doubles
    losses: Doubles

    def risk(self, t: float) -> float:
        return float((self.losses * (self.scores >= t)).mean())

    def coverage(self, t: float) -> float:
        return float((self.scores >= t).mean())

    def oracle(self, alpha: float) -> float:
        """The coverage of the laxest threshold that keeps the contract, of all there could be."""
        order = np.argsort(-self.scores)
        scores, lost = self.scores[order], np.cumsum(self.losses[order]) / len(order)
        last = np.append(scores[1:] < scores[:-1], True)
        kept = np.flatnonzero(last & (lost <= alpha))
        return float(kept[-1] + 1) / len(order) if len(kept) else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How much is measured."""

    alphas: tuple[float, ...]
    streams: int
    requests: int
    long_streams: int
    long_requests: int
    near_streams: int
    near_requests: int
    offline_trials: int


FULL = Size(
    alphas=ALPHAS,
    streams=200,
    requests=10_000,
    long_streams=6,
    long_requests=300_000,
    near_streams=20,
    near_requests=60_000,
    offline_trials=60,
)
QUICK = Size(
    alphas=(0.05,),
    streams=20,
    requests=2_000,
    long_streams=1,
    long_requests=30_000,
    near_streams=3,
    near_requests=20_000,
    offline_trials=3,
)


def measure(data: Data, quick: bool) -> list[Line]:
    found = pools(data, quick)
    size = QUICK if quick else FULL
    lines, gaps, audits = [], _Table(), _Table()
    for alpha in size.alphas:
        broken = _Table()
        for pool in found:
            _baselines(pool, alpha, size, broken, gaps, audits)
            _ours(pool, alpha, size, broken, gaps, audits)
        lines += _violations(broken, alpha, size, len(found))
    return lines + _gaps(gaps) + _audits(audits) + _offline(data, size)


# The data sets


def pools(data: Data, quick: bool) -> list[Pool]:
    """What there is; synthetic students where there is nothing."""
    found = _language_models(data)
    if not quick:
        found += [*_banking(data), *_mmlu(data)]
    return found or [synthetic(0.1, 2.0), synthetic(0.2, 1.5), synthetic(0.05, 2.5)]


def synthetic(error: float, separation: float, n: int = 20_000, seed: int = 5) -> Pool:
    """A binormal student: scores are the true chance to be right."""
    rng = np.random.default_rng(seed)
    wrong = rng.random(n) < error
    z = rng.normal(np.where(wrong, 0.0, separation), 1.0)
    odds = np.log((1 - error) / error) + separation * z - separation**2 / 2
    return Pool(
        name=f"synthetic, {100 * error:.0f} % wrong",
        scores=1.0 / (1.0 + np.exp(-odds)),
        losses=wrong.astype(np.float64),
    )


def _language_models(data: Data) -> list[Pool]:
    """One token's option logits of two real models; the score is the largest probability."""
    arrays = data.arrays("llm_uq_bench_option_logits")
    found = []
    for task, student in PAIRS:
        if arrays is None:
            break
        own = np.asarray(arrays[f"{task}_10k|{student}"], np.float64)
        theirs = np.asarray(arrays[f"{task}_10k|{TEACHER}"], np.float64)
        chances = np.exp(own - own.max(axis=1, keepdims=True))
        chances /= chances.sum(axis=1, keepdims=True)
        found.append(
            Pool(
                name=f"{task} {student}",
                scores=chances.max(axis=1),
                losses=(own.argmax(axis=1) != theirs.argmax(axis=1)).astype(np.float64),
            )
        )
    return found


def _banking(data: Data) -> list[Pool]:
    """GPT-4's recorded answers; the student is a regression fitted on half of them."""
    rows = data.rows("banking77_ocats_gpt4_teacher")
    if rows is None:
        return []
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    order = np.random.default_rng(0).permutation(len(rows))
    texts = [rows[at]["text"] for at in order]
    answers = np.array([rows[at]["gpt4"] for at in order])
    half = len(rows) // 2
    vectors = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True).fit(texts[:half])
    student = LogisticRegression(C=30, max_iter=300)
    student.fit(vectors.transform(texts[:half]), answers[:half])
    chances = student.predict_proba(vectors.transform(texts[half:]))
    wrong = student.classes_[chances.argmax(axis=1)] != answers[half:]
    return [
        Pool(
            name="banking77 GPT-4",
            scores=chances.max(axis=1),
            losses=wrong.astype(np.float64),
        )
    ]


def _mmlu(data: Data) -> list[Pool]:
    """Before generation: the score is how often the weak model did in that subject's first rows."""
    rows = data.rows("routellm_mmlu")
    if rows is None:
        return []
    rows = [row for row in rows if not row["contaminated"]]
    order = np.random.default_rng(0).permutation(len(rows))
    known, rest = order[:1500].tolist(), order[1500:].tolist()
    lost = np.array([row["gpt4_ok"] and not row["mixtral_ok"] for row in rows], np.float64)
    mean, weight = float(lost[known].mean()), 10.0
    prior: dict[str, float] = {}
    for domain in {row["domain"] for row in rows}:
        mine = [at for at in known if rows[at]["domain"] == domain]
        prior[domain] = float((lost[mine].sum() + weight * mean) / (len(mine) + weight))
    scores = np.array([1.0 - prior[rows[at]["domain"]] for at in rest])
    return [Pool(name="mmlu Mixtral", scores=scores, losses=lost[rest])]


# What is deployed


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    requests: int
    audits: int
    threshold: float


def closed_loop(
    pool: Pool,
    alpha: float,
    rng: np.random.Generator,
    *,
    requests: int,
    batch: int,
    offline: int = OFFLINE,
) -> Iterator[Step]:
    """What is deployed before each batch, from the first on."""
    drawn = rng.integers(0, len(pool.scores), offline)
    spared = DELTA * OFFLINE_SHARE if offline else 0.0
    wealth = start(GRID, alpha, DELTA - spared, least_propensity=RATE)
    deployed = NEVER
    if offline:
        scores, losses = pool.scores[drawn], pool.losses[drawn]
        found = certify(scores, losses, alpha, spared, binary=True)
        deployed = NEVER if found is None else found.threshold
        wealth = update_arrays(
            wealth, scores=scores, propensities=np.ones(offline), losses=losses, least=1.0
        )
    done = 0
    while True:
        deployed = min(deployed, threshold(wealth))
        yield Step(requests=done, audits=wealth.audits, threshold=deployed)
        if done >= requests:
            return
        drawn = rng.integers(0, len(pool.scores), batch)
        served = pool.scores[drawn] >= deployed
        seen = ~served | (rng.random(batch) < RATE)
        wealth = update_arrays(
            wealth,
            scores=pool.scores[drawn],
            propensities=np.where(served, RATE, 1.0),
            losses=np.where(seen, pool.losses[drawn], np.nan),
            least=1.0 if deployed == NEVER else RATE,
        )
        done += batch


def errors_allowed(alpha: float) -> dict[str, Whole]:
    """For each baseline, how many errors among the first n labels let a threshold pass, at each
    look; -1: not even none. All of them are rules of that kind."""
    looks = np.arange(LOOK, LABELS + 1, LOOK)
    bets = SHARES / (1.0 - alpha)
    win, lose = np.log1p(bets * alpha), np.log1p(bets * (alpha - 1.0))
    exact, wealthy = [], []
    for n in looks.tolist():
        k = int(alpha * n)
        while k >= 0 and upper_bound(k, n, DELTA) > alpha:
            k -= 1
        exact.append(k)
        k = int(alpha * n)
        while k >= 0 and np.exp((n - k) * win + k * lose).mean() < 1.0 / DELTA:
            k -= 1
        wealthy.append(k)
    return {
        "empirical threshold": np.floor(alpha * looks + 1e-9).astype(np.int64),
        "conformal risk control": np.floor(alpha * (looks + 1) - 1 + 1e-9).astype(np.int64),
        "Clopper–Pearson re-peeked": np.array(exact),
        "plain WSR": np.array(wealthy),
    }


# The measurements


class _Table(dict[str, list[Any]]):
    """Numbers of each method, one list for each."""

    def add(self, who: str, value: Any) -> None:
        self.setdefault(who, []).append(value)


def _baselines(
    pool: Pool, alpha: float, size: Size, broken: _Table, gaps: _Table, audits: _Table
) -> None:
    risks = np.array([pool.risk(t) for t in GRID])
    covers = np.array([pool.coverage(t) for t in GRID])
    oracle, allowed = pool.oracle(alpha), errors_allowed(alpha)
    first = np.searchsorted(-GRID, -pool.scores)
    passed: dict[str, list[Whole]] = {who: [] for who in allowed}
    for stream in range(size.streams):
        drawn = np.random.default_rng([17, stream]).integers(0, len(first), LABELS)
        wrong = np.flatnonzero(pool.losses[drawn] > 0)
        errors = np.zeros((LABELS // LOOK, len(GRID) + 1), np.int64)
        np.add.at(errors, (wrong // LOOK, first[drawn[wrong]]), 1)
        errors = np.cumsum(np.cumsum(errors, axis=0), axis=1)[:, : len(GRID)]
        for who, most in allowed.items():
            passed[who].append((errors <= most[:, None]).sum(axis=1))
    for who, rows in passed.items():
        points = np.stack(rows)
        if who == "plain WSR":  # what was certified once stays so
            points = np.maximum.accumulate(points, axis=1)
        laxest = points.max(axis=1)
        broken.add(who, (laxest > 0) & (risks[np.maximum(laxest, 1) - 1] > alpha))
        share = np.where(points > 0, covers[np.maximum(points, 1) - 1], 0.0)
        if who in ("plain WSR", "Clopper–Pearson re-peeked"):
            for mark in MARKS:
                gaps.add(f"{who}|{mark}", oracle - float(share[:, mark // LOOK - 1].mean()))
        if who == "plain WSR":
            near = share >= oracle - NEAR
            when = np.where(near.any(axis=1), (near.argmax(axis=1) + 1) * LOOK, np.inf)
            audits.add("plain WSR", float(np.median(when)))


def _ours(
    pool: Pool, alpha: float, size: Size, broken: _Table, gaps: _Table, audits: _Table
) -> None:
    laxest = []
    for stream in range(size.streams):
        rng = np.random.default_rng([18, stream])
        steps = list(closed_loop(pool, alpha, rng, requests=size.requests, batch=250))
        laxest.append(steps[-1].threshold)
    broken.add("ours", np.array([pool.risk(t) > alpha for t in laxest]))
    oracle = pool.oracle(alpha)
    for stream in range(size.long_streams):
        rng = np.random.default_rng([19, stream])
        marks = list(MARKS)
        step = None
        for step in closed_loop(
            pool, alpha, rng, requests=size.long_requests, batch=1000 if size is FULL else 500
        ):
            while marks and step.audits >= marks[0]:
                gaps.add(f"ours|{marks.pop(0)}", oracle - pool.coverage(step.threshold))
            if not marks:
                break
    spent = []
    for stream in range(size.near_streams):
        rng = np.random.default_rng([20, stream])
        spent.append(np.inf)
        for step in closed_loop(
            pool, alpha, rng, requests=size.near_requests, batch=250, offline=0
        ):
            if pool.coverage(step.threshold) >= oracle - NEAR:
                spent[-1] = float(step.audits)
                break
    audits.add("ours", float(np.median(spent)))


def _violations(broken: _Table, alpha: float, size: Size, sets: int) -> list[Line]:
    lines = []
    for who, cells in broken.items():
        counts = [int(cell.sum()) for cell in cells]
        worst = max(counts)
        low, high = interval(worst, size.streams, 0.05)
        lines.append(
            Line(
                section=SECTION,
                what=f"ever violated, α = {100 * alpha:.0f} %, worst of {sets} sets",
                who=who,
                value=100.0 * worst / size.streams,
                low=100.0 * low,
                high=100.0 * high,
                bar=100.0 * DELTA if who == "ours" else None,
                at_most=True,
                unit="% of streams",
            )
        )
    return lines


def _gaps(gaps: _Table) -> list[Line]:
    lines = []
    for name, values in gaps.items():
        who, mark = name.split("|")
        sample = np.asarray(values)
        draws = np.random.default_rng(1).choice(sample, (1000, len(sample))).mean(axis=1)
        low, high = percentiles(list(draws))
        lines.append(
            Line(
                section=SECTION,
                what=f"coverage under the oracle's at {mark} audits",
                who=who,
                value=100.0 * float(sample.mean()),
                low=100.0 * low,
                high=100.0 * high,
                bar={"1000": 5.0, "5000": 2.0}[mark] if who == "ours" else None,
                at_most=True,
                unit="points",
            )
        )
    return sorted(lines, key=lambda line: line.what)


def _audits(audits: _Table) -> list[Line]:
    """Where the baseline was never that near within its labels, it counts as if at the last; where
    we were not, the cell is left out and counted."""
    ours, theirs = np.array(audits["ours"]), np.array(audits["plain WSR"])
    reached = np.isfinite(ours)
    lines: list[tuple[str, str, float, float | None, str]] = [
        ("ours", "cells never that near", 100.0 * float(1 - reached.mean()), None, "%")
    ]
    if reached.any():
        ours, theirs = ours[reached], np.minimum(theirs[reached], LABELS)
        lines += [
            ("plain WSR", "audits until near", float(theirs.mean()), None, "mean of medians"),
            ("ours", "audits until near", float(ours.mean()), None, "mean of medians"),
            ("ours", "audits until near, ratio", float((ours / theirs).mean()), 0.6, "× WSR"),
        ]
    return [
        Line(
            section=SECTION,
            what=f"{what} (within {100 * NEAR:.0f} points of the oracle)",
            who=who,
            value=value,
            bar=bar,
            at_most=True,
            unit=unit,
        )
        for who, what, value, bar, unit in lines
    ]


def _offline(data: Data, size: Size) -> list[Line]:
    arrays = data.arrays("llm_uq_bench_option_logits")
    if arrays is None:
        return []
    lines = []
    for task, student in PAIRS:
        own, theirs = (
            np.asarray(arrays[f"{task}_10k|{model}"], np.float64) for model in (student, TEACHER)
        )
        rows = _judged(own, theirs)
        for alpha in OFFLINE_ALPHAS:
            lines += _offline_of(f"{task} {student}", rows, alpha, size.offline_trials)
    return lines


def _judged(own: Doubles, theirs: Doubles) -> list[Judged]:
    logs = own - own.max(axis=1, keepdims=True)
    logs -= np.log(np.exp(logs).sum(axis=1, keepdims=True))
    rows = []
    for at, row in enumerate(logs):
        top = tuple(sorted(row.tolist(), reverse=True))
        letter = LETTERS[int(row.argmax())]
        token = Token(text=letter, logprob=top[0], top=top)
        answer = Answer(text=letter, tokens=(token,))
        teacher = LETTERS[int(theirs[at].argmax())]
        rows.append(Judged(prompt=f"question {at}", student=answer, teacher=teacher))
    return rows


def _offline_of(name: str, rows: list[Judged], alpha: float, trials: int) -> list[Line]:
    """A thousand rows calibrate, three thousand others show: noise breaks a few by itself."""
    wrong = np.array([row.student.text != row.teacher for row in rows])
    plain = np.array([np.exp(row.student.tokens[0].logprob) for row in rows])
    spec = OutputSpec(kind="label", labels=tuple(LETTERS))
    seen = _Table()
    for trial in range(trials):
        order = np.random.default_rng([21, trial]).permutation(len(rows))
        used, rest = order[:OFFLINE], order[OFFLINE : 4 * OFFLINE]
        router = fit_router(
            spec=spec,
            train=[],
            calibration=[rows[at] for at in used.tolist()],
            max_disagreement=alpha,
            confidence=1.0 - DELTA,
            ood_epsilon=0.01,
        )
        scores = plain[rest]
        if router.confidence.learned:
            picked = [rows[at] for at in rest.tolist()]
            scores = np.array([router.score(row.prompt, row.student) for row in picked])
        lax = min(t for t in GRID if (wrong[used] & (plain[used] >= t)).mean() <= alpha)
        for who, served in (
            ("fit_router", scores >= router.threshold),
            ("plug-in threshold", plain[rest] >= lax),
        ):
            seen.add(who, (float((served & wrong[rest]).mean()) > alpha, float(served.mean())))
    lines = []
    for who, cells in seen.items():
        broken = sum(cell[0] for cell in cells)
        low, high = interval(broken, trials, 0.05)
        shares = np.array([cell[1] for cell in cells])
        for what, value, bounds, unit in (
            ("violated", 100.0 * broken / trials, (100.0 * low, 100.0 * high), "% of trials"),
            ("coverage", 100.0 * float(shares.mean()), (None, None), "%"),
        ):
            lines.append(
                Line(
                    section=SECTION,
                    what=f"offline, {name}, α = {100 * alpha:.0f} %: {what}",
                    who=who,
                    value=value,
                    low=bounds[0],
                    high=bounds[1],
                    unit=unit,
                )
            )
    return lines


def main() -> None:
    for line in measure(find(), quick="--quick" in sys.argv):
        bounds = "" if line.low is None else f" [{line.low:.1f}, {line.high:.1f}]"
        bar = "" if line.bar is None else f"  bar {line.bar:g}: {'met' if line.met else 'MISSED'}"
        print(f"{line.what:58} {line.who:28} {line.value:9.2f}{bounds} {line.unit}{bar}")


if __name__ == "__main__":
    main()
