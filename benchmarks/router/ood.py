"""How well the OOD gate tells strange prompts from ordinary ones, with its one configuration.

    RETORT_DATA=<folder> python benchmarks/router/ood.py [--quick]

Every set has training rows, a reference (held out, ordinary, at most 1,000), ordinary test rows
and strange ones; the gate sees no strange row. *near*: classes of the same data that were held
out; *far*: other data. AUROC, and FPR95: the share of strange prompts let through when 95 % of the
ordinary ones are. `said` is the share of ordinary test prompts with a p-value of at most 5 %,
which the gate promises to be at most 5 % on average over references.

Baselines on the same vectors: each view of the gate alone, maximum softmax, Mahalanobis and
relative Mahalanobis distance, and what was tried in the gate's place: a sum with Mahalanobis, and
weights learned on hidden kinds of prompts (pseudo-OOD).
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

if __name__ == "__main__":  # so that it runs alone
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.router.data import Data, find
from benchmarks.router.table import Line, percentiles
from benchmarks.router.vectors import Known, minilm
from router.confidence import auroc
from router.embedder import Embedder
from router.ood import VIEWS, Ood, fit_ood

Doubles = NDArray[np.float64]
Floats = NDArray[np.float32]
Places = NDArray[np.int64]

BAR_AUROC, BAR_FPR95, BAR_MEAN, BAR_LEAST = 98.0, 10.0, 92.0, 80.0
REFERENCE = 1000
PROMISE = 0.05
FILES = (
    "clinc150_full",
    "banking77",
    "snips_intent_slots_json",
    "routellm_mmlu",
    "routellm_gsm8k",
)
SEED = 0


@dataclass(frozen=True, kw_only=True)
class Pool:
    """A data set's texts, and of each its class, its coarser class, and its part."""

    texts: Sequence[str]
    labels: NDArray[np.str_]
    domains: NDArray[np.str_]
    splits: NDArray[np.str_]

    @classmethod
    def of(cls, rows: Sequence[dict[str, Any]]) -> "Pool":
        def column(*names: str) -> NDArray[np.str_]:
            return np.array([next((row[n] for n in names if n in row), "") for row in rows])

        return cls(
            texts=[row.get("text") or row["prompt"] for row in rows],
            labels=column("label", "intent", "domain"),
            domains=column("domain"),
            splits=column("split"),
        )


@dataclass(frozen=True, kw_only=True)
class Case:
    """``labels``: of the training rows; None where the task's answers have no classes."""

    name: str
    train: Sequence[str]
    labels: Sequence[str | None]
    reference: Sequence[str]
    ordinary: Sequence[str]
    strange: Sequence[str]


def pools_of(data: Data) -> dict[str, Pool]:
    return {name: Pool.of(rows) for name in FILES if (rows := data.rows(name)) is not None}


def cases(pools: dict[str, Pool], quick: bool) -> list[Case]:
    """The sets that can be built from the files there are."""
    rng = np.random.default_rng(SEED)
    found: list[Case] = []

    def some(places: Places, most: int) -> Places:
        return rng.permutation(places)[:most]

    def add(name: str, pool: Pool, parts: Sequence[Places], strange: Sequence[str], **use: Any):
        """``parts``: train, reference, ordinary."""
        labels = use.get("labels", pool.labels)
        texts = [[pool.texts[at] for at in part] for part in parts]
        found.append(
            Case(
                name=name,
                train=texts[0],
                labels=[None if labels is None else str(labels[at]) for at in parts[0]],
                reference=texts[1],
                ordinary=texts[2],
                strange=strange,
            )
        )

    def of(pool: Pool, places: Places, most: int) -> list[str]:
        return [pool.texts[at] for at in some(places, most)]

    def held_out(name: str, pool: Pool, column: Any, known: int, sizes: tuple[int, int, int]):
        """Near: some classes are hidden from training, reference and ordinary rows."""
        kinds = rng.permutation(np.unique(column))
        seen = np.isin(column, kinds[:known])
        order = rng.permutation(np.flatnonzero(seen))
        train, reference, ordinary = sizes
        ends = np.cumsum([train, reference, ordinary])
        parts = [order[: ends[0]], order[ends[0] : ends[1]], order[ends[1] : ends[2]]]
        add(name, pool, parts, of(pool, np.flatnonzero(~seen), 1500))

    clinc, bank = pools.get("clinc150_full"), pools.get("banking77")
    snips, mmlu = pools.get("snips_intent_slots_json"), pools.get("routellm_mmlu")
    oos: list[str] = []
    if clinc is not None:
        inside = clinc.labels != "oos"
        oos = of(clinc, np.flatnonzero(~inside & (clinc.splits == "test")), 1000)
        train = np.flatnonzero(inside & (clinc.splits == "train"))
        train = some(train, 3000) if quick else train
        parts = [
            train,
            some(np.flatnonzero(inside & (clinc.splits == "val")), REFERENCE),
            np.flatnonzero(inside & (clinc.splits == "test")),
        ]
        add("CLINC150", clinc, parts, oos)
        if not quick:
            coarse = [some(train, 10_000), *parts[1:]]
            add("CLINC150, 10 domains as labels", clinc, coarse, oos, labels=clinc.domains)
            add("CLINC150, no labels", clinc, coarse, oos, labels=None)
        kept = Pool(
            texts=[clinc.texts[at] for at in np.flatnonzero(inside)],
            labels=clinc.labels[inside],
            domains=clinc.domains[inside],
            splits=clinc.splits[inside],
        )
        if not quick:
            held_out("CLINC150, 3 domains out", kept, kept.domains, 7, (9000, 700, 3000))
        held_out("CLINC150 small, 130 intents out", kept, kept.labels, 20, (450, 200, 600))
    if bank is not None:
        held_out("BANKING77, 27 intents out", bank, bank.labels, 50, (5900, 700, 1900))
        held_out("BANKING77 small, 57 intents out", bank, bank.labels, 20, (450, 200, 600))
        few = set(rng.permutation(np.unique(bank.labels))[:30].tolist())
        lopsided = np.array(["yes" if hash_of(label) else "no" for label in bank.labels.tolist()])
        order = rng.permutation(np.flatnonzero(np.isin(bank.labels, list(few))))
        add(
            "BANKING77 as yes/no, 47 intents out",
            bank,
            [order[:1500], order[1500:1800], order[1800:2800]],
            of(bank, np.flatnonzero(~np.isin(bank.labels, list(few))), 1000),
            labels=lopsided,
        )
        if oos and not quick:
            order = rng.permutation(len(bank.texts))
            parts = [order[:9000], order[9000:10000], order[10000:]]
            add("BANKING77, CLINC out-of-scope", bank, parts, oos)
            other = ~np.isin(clinc.domains, ["banking", "credit_cards", "oos"])
            strange = of(clinc, np.flatnonzero(other), 1500)
            add("BANKING77, CLINC other domains", bank, parts, strange)
    if snips is not None:
        held_out("SNIPS, 2 of 7 intents out", snips, snips.labels, 5, (5000, 500, 1000))
        if oos:
            order = rng.permutation(len(snips.texts))
            parts = [order[:5000], order[5000:5500], order[5500:7000]]
            add("SNIPS, CLINC out-of-scope", snips, parts, oos)
    if mmlu is not None and not quick:
        held_out("MMLU, 17 subjects out", mmlu, mmlu.labels, 40, (5000, 500, 1500))
        gsm = pools.get("routellm_gsm8k")
        if gsm is not None:
            maths = ["elementary_mathematics", "high_school_mathematics"]
            order = rng.permutation(len(gsm.texts))
            parts = [order[:600], order[600:800], order[800:]]
            strange = of(mmlu, np.flatnonzero(np.isin(mmlu.labels, maths)), 1500)
            add("GSM8K (no labels), MMLU maths", gsm, parts, strange, labels=None)
    return found


def hash_of(label: str) -> bool:
    """True for about a fifth of the labels."""
    return sum(label.encode()) % 5 == 0


def fpr95(ordinary: Doubles, strange: Doubles) -> float:
    return 100.0 * float((strange <= np.quantile(ordinary, 0.95)).mean())


def area(ordinary: Doubles, strange: Doubles) -> float:
    truth = np.arange(len(ordinary) + len(strange)) >= len(ordinary)
    return 100.0 * auroc(np.concatenate([ordinary, strange]), truth)


def detectors(gate: Ood, train: Floats, labels: Sequence[str | None]) -> Callable[..., Any]:
    """Strangeness of points by what is not in the gate."""
    names = np.array([label or "" for label in labels])[: len(train)]
    _, kinds = np.unique(names, return_inverse=True)
    centres = np.stack([train[kinds == kind].mean(axis=0) for kind in range(kinds.max() + 1)])
    rest, whole = train - centres[kinds], train - train.mean(axis=0)

    def whitener(residuals: Floats) -> Doubles:
        """What makes their covariance round: Mahalanobis distance is distance after it."""
        cov = residuals.T @ residuals / len(residuals)
        size = len(cov)
        shrink = min(1.0, max(0.02, 0.5 * size / len(residuals)))
        flat = np.eye(size) * np.trace(cov) / size
        values, axes = np.linalg.eigh((1 - shrink) * cov + shrink * flat)
        return np.asarray(axes / np.sqrt(values), np.float64)

    inner, outer = whitener(rest), whitener(whole)
    targets = centres @ inner

    def all_of(points: Floats) -> dict[str, Doubles]:
        at = points @ inner
        every = (at**2).sum(axis=1)[:, None] - 2 * at @ targets.T + (targets**2).sum(axis=1)
        near = every.min(axis=1)
        common = (((points - train.mean(axis=0)) @ outer) ** 2).sum(axis=1)
        return {"Mahalanobis": near, "relative Mahalanobis": near - common}

    return all_of


def measured(case: Case, embedder: Embedder | None) -> dict[str, tuple[float, float, float]]:
    """AUROC, FPR95 and the share said to be strange of the ordinary, by the gate and baselines."""
    rows = list(zip(case.train, case.labels, strict=True))
    gate = fit_ood(rows, case.reference, seed=17, embedder=embedder)
    points = {
        "reference": gate.space.many(case.reference),
        "ordinary": gate.space.many(case.ordinary),
        "strange": gate.space.many(case.strange),
    }
    views = {kind: np.stack([gate.seen_from(at) for at in some]) for kind, some in points.items()}
    place = {
        kind: np.array([gate.place(view) for view in views[kind]])
        for kind in ("ordinary", "strange")
    }
    # p-values tie at their least: the sums they are the places of rank further
    spread = np.maximum(views["reference"].std(axis=0), 1e-12)
    sums = {kind: (some / spread).sum(axis=1) for kind, some in views.items()}
    said = float((place["ordinary"] <= PROMISE).mean())
    out = {"shipped gate": (*both(sums), said)}
    for at, view in enumerate(gate.uses):
        out[f"{view} alone"] = (*both({k: some[:, at] for k, some in views.items()}), np.nan)
    if set(VIEWS) == set(gate.uses):
        softmax = {kind: 1.0 - np.exp(-some[:, 1]) for kind, some in views.items()}
        out["maximum softmax"] = (*both(softmax), np.nan)
    step = max(1, len(case.train) // 5000)
    others = detectors(gate, gate.space.many(case.train[::step]), case.labels[::step])
    each = {kind: others(some) for kind, some in points.items()}
    for name in each["ordinary"]:
        out[name] = (*both({kind: found[name] for kind, found in each.items()}), np.nan)
    far = {kind: np.sqrt(np.maximum(found["Mahalanobis"], 0.0)) for kind, found in each.items()}
    unit = max(float(far["reference"].std()), 1e-12)
    out["gate + Mahalanobis"] = (*both({k: sums[k] + far[k] / unit for k in sums}), np.nan)
    return out


def both(scores: dict[str, Doubles]) -> tuple[float, float]:
    return area(scores["ordinary"], scores["strange"]), fpr95(scores["ordinary"], scores["strange"])


def measure(data: Data, quick: bool) -> list[Line]:
    lines: list[Line] = []
    pools = pools_of(data)
    built = cases(pools, quick)
    embedders: dict[str, Embedder | None] = {"static": None}
    if not quick and built:
        known: dict[str, Floats] = {}
        for pool in pools.values():
            vectors = minilm(pool.texts)
            if vectors is not None:
                known.update(zip(pool.texts, vectors, strict=True))
        if known:
            embedders["minilm"] = Known(known)
    for by, embedder in embedders.items():
        found = {}
        for case in built:
            print(f"OOD: {case.name} ({by})", file=sys.stderr, flush=True)
            found[case.name] = measured(case, embedder)
        lines += lines_of(found, by, barred=not quick)
    return lines


def lines_of(
    found: dict[str, dict[str, tuple[float, float, float]]], by: str, *, barred: bool
) -> list[Line]:
    def line(what: str, who: str, value: float, **more: Any) -> Line:
        return Line(section="OOD", what=what, who=f"{who} ({by})", value=value, **more)

    lines = []
    for name, results in found.items():
        for who, (auc, fpr, said) in results.items():
            ours = who == "shipped gate" and name == "CLINC150" and barred
            lines.append(line(f"{name}: AUROC", who, auc, bar=BAR_AUROC if ours else None))
            bar = BAR_FPR95 if ours else None
            lines.append(line(f"{name}: FPR95", who, fpr, bar=bar, at_most=True))
            if who == "shipped gate":
                what = f"{name}: ordinary p <= {PROMISE:.0%}"
                lines.append(line(what, who, 100.0 * said, unit="%"))
    for who in {who: None for results in found.values() for who in results}:
        areas = [results[who][0] for results in found.values() if who in results]
        ours = who == "shipped gate" and barred
        rng = np.random.default_rng(1)
        drawn = [float(rng.choice(areas, len(areas)).mean()) for _ in range(2000)]
        low, high = percentiles(drawn)
        bar = BAR_MEAN if ours else None
        what = f"all {len(areas)} sets: AUROC"
        lines.append(line(f"mean, {what}", who, float(np.mean(areas)), low=low, high=high, bar=bar))
        lines.append(line(f"least, {what}", who, min(areas), bar=BAR_LEAST if ours else None))
    return lines


if __name__ == "__main__":
    for line in measure(find(), "--quick" in sys.argv[1:]):
        span = "" if line.low is None else f" [{line.low:.1f}, {line.high:.1f}]"
        met = {None: "", True: "  met", False: f"  not the bar of {line.bar}"}[line.met]
        print(f"{line.what:52}{line.who:32}{line.value:6.1f}{span}{met}")
