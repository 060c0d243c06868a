"""Are a few foreign requests among many noticed?

    RETORT_DATA=<folder> python benchmarks/router/drift.py

Windows of WINDOW requests, a share of them out of scope. On CLINC150 the gate is ``fit_ood`` as it
is, with either embedder, fitted on the training split as published; its reference are the
validation prompts, and windows are drawn from the test prompts, so that "1 % false alarms" includes
everything that is not quite exchangeable there. Beside it, students of
a known gate: binormal strangeness, where power depends on the gate's AUROC and on nothing else;
fresh reference prompts each time, so that their false alarms are those of the test itself.
Baselines: only one mark, and Kolmogorov–Smirnov on the same p-values.
"""

import sys
from collections.abc import Callable
from math import sqrt
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

if __name__ == "__main__":  # so that it runs alone
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.router.data import Data, find
from benchmarks.router.table import Line
from benchmarks.router.vectors import Known, minilm
from router.drift import LEVEL, WINDOW, ks_test, tail_test
from router.embedder import Embedder
from router.ood import fit_ood
from router.threshold import interval

Doubles = NDArray[np.float64]
#: p-values of a window, and how many reference prompts they are ranks among.
Window = Callable[[np.random.Generator, float], tuple[Doubles, int]]

SECTION = "drift"
SHARES = (0.0, 0.02, 0.05, 0.10)
#: The gates of the curve, by the AUROC of their strangeness.
AUROCS = (0.90, 0.95, 0.97, 0.98, 0.99)
REFERENCE = 2000


def measure(data: Data, quick: bool) -> list[Line]:
    times = 60 if quick else 500
    lines = []
    for auroc in (0.98,) if quick else AUROCS:
        lines += _power(_binormal(auroc), f"a gate of AUROC {100 * auroc:.0f}", times, ())
    rows = None if quick else data.rows("clinc150_full")
    if rows is not None:
        train, reference, known, foreign = _clinc(rows)
        texts = [*(prompt for prompt, _ in train), *reference, *known, *foreign]
        embedders: dict[str, Embedder | None] = {"static": None}
        if (vectors := minilm(texts)) is not None:
            embedders["MiniLM"] = Known(dict(zip(texts, vectors, strict=True)))
        for name, embedder in embedders.items():
            gate = fit_ood(train, reference, seed=1, embedder=embedder)
            inside = np.array([gate.p_value(prompt) for prompt in known])
            outside = np.array([gate.p_value(prompt) for prompt in foreign])
            drawn = _drawn(inside, outside, len(reference))
            lines += _power(drawn, f"CLINC150, {name}", times, (0.0, 0.05))
    return lines


def _drawn(inside: Doubles, outside: Doubles, reference: int) -> Window:
    def window(rng: np.random.Generator, share: float) -> tuple[Doubles, int]:
        strange = rng.binomial(WINDOW, share)
        picked = [rng.choice(inside, WINDOW - strange), rng.choice(outside, strange)]
        return np.concatenate(picked), reference

    return window


def _power(window: Window, where: str, times: int, barred: tuple[float, ...]) -> list[Line]:
    lines = []
    for share in SHARES:
        fired = {"tail": 0, "tail, one mark": 0, "KS": 0}
        for at in range(times):
            p, reference = window(np.random.default_rng([11, at]), share)
            fired["tail"] += tail_test(p, reference).fires
            fired["tail, one mark"] += tail_test(p, reference, (0.05,)).fires
            fired["KS"] += ks_test(np.arange(1, reference + 2) / (reference + 1), p).fires
        for who, hits in fired.items():
            low, high = interval(hits, times, 0.05)
            bar = None
            if who == "tail" and share in barred:
                bar = 100 * LEVEL if share == 0.0 else 95.0
            lines.append(
                Line(
                    section=SECTION,
                    what=f"{where}: {100 * share:.0f} % foreign in {WINDOW}",
                    who=who,
                    value=100.0 * hits / times,
                    low=100.0 * low,
                    high=100.0 * high,
                    bar=bar,
                    at_most=share == 0.0,
                    unit="% of windows",
                )
            )
    return lines


def _binormal(auroc: float) -> Window:
    from scipy.stats import norm

    apart = sqrt(2.0) * float(norm.ppf(auroc))

    def window(rng: np.random.Generator, share: float) -> tuple[Doubles, int]:
        reference = np.sort(rng.normal(size=REFERENCE))
        foreign = rng.random(WINDOW) < share
        strange = rng.normal(np.where(foreign, apart, 0.0), 1.0)
        above = REFERENCE - np.searchsorted(reference, strange)
        return np.asarray((1.0 + above) / (REFERENCE + 1.0), np.float64), REFERENCE

    return window


def _clinc(
    rows: list[dict[str, str]],
) -> tuple[list[tuple[str, str | None]], list[str], list[str], list[str]]:
    """Training rows, reference prompts, prompts in scope, prompts out of it."""
    train: list[tuple[str, str | None]] = []
    texts: dict[tuple[str, bool], list[str]] = {}
    for row in rows:
        foreign = row["label"] == "oos"
        if row["split"] == "train" and not foreign:
            train.append((row["text"], row["label"]))
        else:
            texts.setdefault((row["split"], foreign), []).append(row["text"])
    return train, texts["val", False], texts["test", False], texts["test", True]


def main() -> None:
    for line in measure(find(), quick="--quick" in sys.argv):
        bounds = f" [{line.low:.1f}, {line.high:.1f}]"
        bar = "" if line.bar is None else f"  bar {line.bar:g}: {'met' if line.met else 'MISSED'}"
        print(f"{line.what:46} {line.who:16} {line.value:6.1f}{bounds} {line.unit}{bar}")


if __name__ == "__main__":
    main()
