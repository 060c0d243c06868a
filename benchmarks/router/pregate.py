"""The pre-gate as a router of its own: who should answer, by the prompt alone.

    RETORT_DATA=<folder> python benchmarks/router/pregate.py [--quick]

RouteLLM's recorded outcomes (Mixtral-8x7B and GPT-4 on MMLU and GSM8K, contaminated rows dropped).
A seed draws the labelled rows, 1,500 of MMLU and 800 of GSM8K, and all others are the test; the
label is (strong right - weak right + 1) / 2, so that the estimate ranks prompts by what the strong
model gains. The estimator weighs its parts inside the labelled rows. Its settings and the features
of how a prompt is written were found while looking at these two public sets (other draws of them,
LOG.md), so on others expect somewhat less. Scored as RouteLLM does: thresholds at ten equal
bins of the test scores, accuracy over the share of strong calls by trapezoids, between the two
models' own accuracies.

Intervals: the mean over seeds, by bootstrap of the seeds. The published routers had other labels
(arena votes and 1,500 questions of MMLU's validation split; a judge's for GSM8K): context, not a
duel.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

if __name__ == "__main__":  # so that it runs alone
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.router.data import Data, find
from benchmarks.router.table import Line, percentiles, resamples
from benchmarks.router.vectors import Known, minilm
from router.difficulty import fit_difficulty
from router.embedder import Embedder, Space
from router.embedding import fit_embedding

Doubles = NDArray[np.float64]

BINS = 10
SEEDS = 10
SETS = {"routellm_mmlu": ("MMLU, 1,500 labels", 1500, 0.65)}
SETS["routellm_gsm8k"] = ("GSM8K, 800 labels", 800, 0.645)
#: RouteLLM's best published router on each.
PUBLISHED = {"routellm_mmlu": 0.603, "routellm_gsm8k": 0.622}
#: Of the estimate's five parts, those that are baselines.
PARTS = {"kNN-100": 0, "cluster prior": 1, "LR (place)": 2, "LR (n-grams)": 3}


def apgr(need: Doubles, weak: Doubles, strong: Doubles) -> float:
    """Average performance gap recovered by sending the neediest prompts to the strong model."""
    edges = np.unique(np.quantile(need, np.linspace(0.0, 1.0, BINS + 1)))[::-1]
    sent = [need >= edge for edge in edges]
    share = np.array([chosen.mean() for chosen in sent])
    right = np.array([np.where(chosen, strong, weak).mean() for chosen in sent])
    low, high = weak.mean(), strong.mean()
    width = float(share[-1] - share[0])
    if width == 0.0:  # all tied: sent or kept together
        return 0.5
    return float((np.trapezoid(right, share) - low * width) / ((high - low) * width))


def scores(
    texts: Sequence[str],
    gain: Doubles,
    domains: Sequence[str],
    embedder: Embedder | None,
    labelled: NDArray[np.int64],
    tested: NDArray[np.int64],
    seed: int,
) -> dict[str, Doubles]:
    """The test prompts' need for the strong model, by our estimate and by its parts."""
    seen = [texts[at] for at in labelled]
    space = Space(words=fit_embedding(seen, seed=seed), meaning=embedder)
    outcome = ((gain[labelled] + 1.0) / 2.0).tolist()
    fitted = fit_difficulty(space, seen, space.many(seen), outcome, seed=seed)
    assert fitted is not None
    found, parts = [], []
    for at in tested:
        point = space(texts[at])
        found.append(fitted(texts[at], point))
        parts.append(fitted.estimates(texts[at], point))
    each = np.stack(parts)
    mean = float(np.mean(outcome))
    sums: dict[str, float] = {}
    counts: dict[str, int] = {}
    for at, value in zip(labelled, outcome, strict=True):
        sums[domains[at]] = sums.get(domains[at], 0.0) + value
        counts[domains[at]] = counts.get(domains[at], 0) + 1
    task = [
        (sums.get(domains[at], 0.0) + 10 * mean) / (counts.get(domains[at], 0) + 10)
        for at in tested
    ]
    return {
        "shipped estimate": np.array(found),
        **{name: each[:, part] for name, part in PARTS.items()},
        "task mean": np.array(task),
        "prompt length": np.array([float(len(texts[at])) for at in tested]),
        "random": np.random.default_rng(seed).random(len(tested)),
    }


def measure(data: Data, quick: bool) -> list[Line]:
    lines: list[Line] = []
    for name, (what, count, bar) in SETS.items():
        rows = data.rows(name)
        if rows is None:
            continue
        rows = [row for row in rows if not row["contaminated"]]
        rows = rows[::6] if quick and len(rows) > 5000 else rows
        texts = [row["prompt"] for row in rows]
        domains = [row.get("domain", "") for row in rows]
        weak, strong = (
            np.array([float(row[key]) for row in rows]) for key in ("mixtral_ok", "gpt4_ok")
        )
        embedders: dict[str, Embedder | None] = {"static": None}
        vectors = None if quick else minilm(texts)
        if vectors is not None:
            embedders["minilm"] = Known(dict(zip(texts, vectors, strict=True)))
        results: dict[str, list[float]] = {}
        for seed in range(2 if quick else SEEDS):
            order = np.random.default_rng(seed).permutation(len(rows))
            labelled, tested = order[:count], order[count:]
            for embedder, asked in embedders.items():
                found = scores(texts, strong - weak, domains, asked, labelled, tested, seed)
                for who, need in found.items():
                    worth = apgr(need, weak[tested], strong[tested])
                    by = embedder if who in PARTS or who == "shipped estimate" else ""
                    results.setdefault(f"{who} ({by})" if by else who, []).append(worth)
        for who, worths in results.items():
            each = np.array(worths)
            low, high = percentiles(each[resamples(len(each), 2000, seed=1)].mean(axis=1).tolist())
            lines.append(
                Line(
                    section="pre-gate APGR",
                    what=what,
                    who=who,
                    value=float(each.mean()),
                    low=low,
                    high=high,
                    bar=bar if who.startswith("shipped") and not quick else None,
                )
            )
        lines.append(
            Line(
                section="pre-gate APGR",
                what=what,
                who="RouteLLM, published",
                value=PUBLISHED[name],
            )
        )
    return lines


if __name__ == "__main__":
    for line in measure(find(), "--quick" in sys.argv[1:]):
        span = "" if line.low is None else f" [{line.low:.3f}, {line.high:.3f}]"
        met = {None: "", True: "  met", False: f"  under the bar of {line.bar}"}[line.met]
        print(f"{line.what:22}{line.who:28}{line.value:.3f}{span}{met}")
