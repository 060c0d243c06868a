"""How well the OOD gate tells strange prompts from ordinary ones, beside the usual detectors.

    RETORT_DATA=<folder> python benchmarks/router_ood.py [--full]

Reads clinc150_full.jsonl.gz and banking77.jsonl.gz from RETORT_DATA. Small: 15 intents × 30 rows
train, 200 rows calibrate (a demo-sized task); ``near`` are the other intents of the same data set,
``far`` CLINC's real out-of-scope queries. ``coarse`` gives the same rows two lopsided classes (20
and 80 %), as a yes/no field would. --full: CLINC150 as published (15,000 train, 1,000 of the
validation rows as reference).

AUROC and FPR95 as usual; ``ε=.01``/``ε=.05``: the share of strange prompts turned away at that
promise on ordinary traffic, and in brackets the share of ordinary ones that really was.
"""

import argparse
import gzip
import json
import os
import sys
import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from router.confidence import auroc
from router.ood import VIEWS, Ood, fit_ood

Doubles = NDArray[np.float64]
Rows = list[tuple[str, str]]
SEEDS = 4


def read(folder: Path, name: str) -> list[dict[str, str]]:
    path = folder / f"{name}.jsonl.gz"
    if not path.is_file():
        sys.exit(f"skipped: {path} is missing (set RETORT_DATA to the folder with the data sets)")
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def small(data: dict[str, Rows], name: str, seed: int) -> tuple[Rows, list[str], dict[str, Rows]]:
    """Training rows, calibration prompts, and the test rows by kind."""
    rng = np.random.default_rng(seed)
    rows = data[name]
    labels = sorted({label for _, label in rows})
    known = {labels[at] for at in rng.permutation(len(labels))[:15]}
    train: Rows = []
    rest: Rows = []
    seen: dict[str, int] = defaultdict(int)
    for at in rng.permutation(len(rows)):
        text, label = rows[at]
        if label in known:
            seen[label] += 1
            (train if seen[label] <= 30 else rest).append((text, label))
    near = [row for row in rows if row[1] not in known]
    near = [near[at] for at in rng.permutation(len(near))[:1000]]
    tests = {"ordinary": rest[200:1000], "near": near, "far": data["strange"]}
    return train, [text for text, _ in rest[:200]], tests


def detectors(gate: Ood, prompts: list[str]) -> dict[str, Doubles]:
    """Strangeness by each detector alone, and by the shipped gate."""
    bare = replace(gate, uses=VIEWS, reference=np.zeros((0, 0)))
    views = np.stack([bare.views(prompt) for prompt in prompts])
    vectors = gate.embedding.many(prompts)
    logits = vectors @ gate.weights + gate.biases
    logits -= logits.max(axis=1, keepdims=True)
    found = {
        "max softmax": -1.0 / np.exp(logits).sum(axis=1),
        "energy": views[:, 0],
        "centroid": views[:, 1],
        "kNN-10": views[:, 2],
    }
    return {**found, "shipped gate": -np.array([gate.p_value(prompt) for prompt in prompts])}


def numbers(reference: Doubles, ordinary: Doubles, strange: Doubles) -> list[float]:
    both = np.concatenate([ordinary, strange])
    truth = np.arange(len(both)) >= len(ordinary)
    out = [auroc(both, truth), float((strange <= np.quantile(ordinary, 0.95)).mean())]
    for epsilon in (0.01, 0.05):
        for rows in (strange, ordinary):
            above = len(reference) - np.searchsorted(np.sort(reference), rows, side="left")
            out.append(float(((1 + above) / (len(reference) + 1) <= epsilon).mean()))
    return out


def measure(train: Rows, held_out: list[str], tests: dict[str, Rows]) -> dict[str, list[float]]:
    gate = fit_ood(train, held_out, seed=17)
    scored = {kind: detectors(gate, [t for t, _ in rows]) for kind, rows in tests.items()}
    reference = detectors(gate, held_out)
    # The gate's own p-values already compare with the reference: take them as they are.
    reference["shipped gate"] = -(1 + np.arange(len(held_out))) / (len(held_out) + 1)
    return {
        f"{kind}|{name}": numbers(reference[name], scored["ordinary"][name], rows[name])
        for kind, rows in scored.items()
        if kind != "ordinary"
        for name in rows
    }


def show(title: str, results: list[dict[str, list[float]]]) -> None:
    print(f"\n{title}\n{'':22}AUROC  FPR95   ε=.01 (ordinary)   ε=.05 (ordinary)")
    for key in results[0]:
        kind, name = key.split("|")
        a, f, s1, o1, s5, o5 = 100 * np.mean([result[key] for result in results], axis=0)
        print(f"{kind:6}{name:14}{a:7.1f}{f:7.1f}{s1:8.1f} ({o1:.1f}){s5:14.1f} ({o5:.1f})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true", help="also CLINC150 as published (minutes)")
    full = parser.parse_args().full
    folder = Path(os.environ.get("RETORT_DATA", "../shared/data"))
    clinc, bank = read(folder, "clinc150_full"), read(folder, "banking77")
    data = {
        "clinc": [(r["text"], r["label"]) for r in clinc if r["label"] != "oos"],
        "banking": [(r["text"], r["label"]) for r in bank],
        "strange": [(r["text"], "oos") for r in clinc if r["label"] == "oos"],
    }
    for name in ("clinc", "banking"):
        tasks = [small(data, name, seed) for seed in range(SEEDS)]
        show(f"{name}, 15 intents × 30 rows", [measure(*task) for task in tasks])
        coarse = []
        for train, held_out, tests in tasks:
            few = set(sorted({label for _, label in train})[::5])
            coarse.append(
                measure([(text, str(label in few)) for text, label in train], held_out, tests)
            )
        show(f"{name}, the same with two coarse classes", coarse)
    if full:
        split = {
            part: [(r["text"], r["label"]) for r in clinc if r["split"] == part]
            for part in ("train", "val", "test")
        }
        ins = {part: [row for row in rows if row[1] != "oos"] for part, rows in split.items()}
        tests = {
            "ordinary": ins["test"],
            "far": [row for row in split["test"] if row[1] == "oos"],
        }
        began = time.perf_counter()
        result = measure(ins["train"], [text for text, _ in ins["val"][:1000]], tests)
        show(f"CLINC150, full ({time.perf_counter() - began:.0f} s)", [result])


if __name__ == "__main__":
    main()
