"""The pictures of the router's benchmark, as PNG.

    python benchmarks/router/plots.py --into docs/images [--quick] [--only deferral wealth]

Each is a function that draws into given axes; one that fails costs only its own picture. Real
data where RETORT_DATA has it (CosmosQA: Qwen-14B for Yi-34B; CLINC150; BANKING77 with GPT-4),
made-up data elsewhere, and the title says which. Needs matplotlib.
"""

import argparse
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

if __name__ == "__main__":  # so that it runs alone
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.router import baselines as base
from benchmarks.router.data import Data, find
from benchmarks.router.table import resamples
from router.ood import fit_ood
from router.threshold import GRID, NEVER, certify

Doubles = NDArray[np.float64]

SEED = 11
ALPHA, DELTA = 0.05, 0.05
#: Ours first; the colours also tell apart in grey and to colour-blind eyes.
OURS, SECOND, THIRD, FOURTH, GREY = "#0b6e99", "#d1495b", "#edae49", "#66a182", "#8d8d8d"
COARSE = GRID[::4]


def pool(data: Data) -> tuple[str, Doubles, Doubles, Doubles]:
    """A student beside a teacher: what it is called, the student's probability of its answer, the
    margin over its second choice, and the losses."""
    arrays = data.arrays("llm_uq_bench_option_logits")
    if arrays is not None:

        def logits(model: str) -> Doubles:
            names = [n for n in arrays if "cosmosqa" in n.lower() and model in n.lower()]
            return arrays[names[0]].astype(np.float64)

        ours, theirs = logits("qwen-14b"), logits("yi-34b")
        ranked = np.sort(ours, axis=1)
        p = 1.0 / np.exp(ours - ranked[:, -1:]).sum(axis=1)
        losses = (ours.argmax(axis=1) != theirs.argmax(axis=1)).astype(np.float64)
        return "CosmosQA, Qwen-14B for Yi-34B", p, ranked[:, -1] - ranked[:, -2], losses
    rng = np.random.default_rng(SEED)
    wrong = rng.random(10_000) < 0.1
    z = rng.normal(size=10_000) + np.where(wrong, 0.0, 2.0) + 0.8
    return "made-up scores", 1 / (1 + np.exp(-z)), z, wrong.astype(np.float64)


def deferral(axes: Any, data: Data, quick: bool) -> None:
    """Disagreement left against the share sent to the teacher, with the certified point."""
    name, p, margins, losses = pool(data)
    rows = np.random.default_rng(SEED).permutation(len(p))
    used, rest = rows[:1000], rows[1000:]
    shares = np.linspace(0.0, 1.0, 101)

    def left(scores: Doubles, at: NDArray[np.int64]) -> Doubles:
        share, quality = base.deferral_curve(scores[at], 1.0 - losses[at])
        return np.interp(shares, share, 100 * (1 - quality))

    drawn = [left(p, rest[pick]) for pick in resamples(len(rest), 20 if quick else 200, SEED)]
    low, high = np.percentile(drawn, [2.5, 97.5], axis=0)
    axes.fill_between(100 * shares, low, high, color=OURS, alpha=0.25, lw=0)
    axes.plot(100 * shares, left(p, rest), color=OURS, label="answer probability")
    ucci = base.margin_isotonic(margins[used], losses[used], margins)
    axes.plot(100 * shares, left(ucci, rest), color=THIRD, ls="--", label="margin + isotonic")
    axes.plot(100 * shares, left(base.random_scores(len(p), 1), rest), color=GREY, label="random")
    axes.plot(
        100 * shares, left(base.oracle_scores(1 - losses, 1.0), rest), color=FOURTH, label="oracle"
    )
    axes.axhline(100 * ALPHA, color=SECOND, lw=0.8, ls=":")
    found = certify(p[used], losses[used], ALPHA, DELTA)
    if found is not None:
        served = p[rest] >= found.threshold
        point = 100 * (1 - served.mean()), 100 * float((losses[rest] * served).mean())
        axes.plot(*point, "o", color=SECOND, label=f"certified for {ALPHA:.0%} on 1,000 rows")
    axes.set(
        title=f"Deferral curve · {name}",
        xlabel="requests sent to the teacher, %",
        ylabel="disagreement of the system, %",
        xlim=(0, 100),
        ylim=(0, None),
    )
    axes.legend()


def reliability(axes: Any, data: Data, quick: bool) -> None:
    """Promised against observed agreement."""
    name, p, margins, losses = pool(data)
    half = len(p) // 2
    iso = base.margin_isotonic(margins[:half], losses[:half], margins[half:])
    axes.plot([0, 1], [0, 1], color=GREY, lw=0.8)
    for label, scores, colour in (("answer probability", p[half:], OURS), ("isotonic", iso, THIRD)):
        right = 1.0 - losses[half:]
        parts = np.array_split(np.argsort(scores, kind="stable"), 15)
        x = [scores[part].mean() for part in parts]
        y = np.array([right[part].mean() for part in parts])
        spread = 1.96 * np.sqrt(np.maximum(y * (1 - y), 1e-4) / [len(part) for part in parts])
        error = base.ece(scores, right)
        axes.errorbar(
            x, y, spread, color=colour, marker="o", ms=3, lw=1, label=f"{label}, ECE {error:.3f}"
        )
    axes.set(title=f"Reliability · {name}", xlabel="score", ylabel="agreement with the teacher")
    axes.legend()


def wealth(axes: Any, data: Data, quick: bool) -> None:
    """Capital against "R(t) >= α" at thresholds of different true risk."""
    from router.certificate import start, update_arrays

    name, p, _, losses = pool(data)
    rows = np.random.default_rng(SEED).permutation(len(p))[: 1000 if quick else 4000]
    risks = base.risks(p, losses)
    for part, colour in ((0.25, FOURTH), (0.5, OURS), (0.75, THIRD), (1.1, SECOND)):
        at = int(np.abs(risks - part * ALPHA).argmin())
        state = start([GRID[at]], ALPHA, DELTA, least_propensity=1.0)
        seen, logs = [0], [0.0]
        for begin in range(0, len(rows), 16):
            few = rows[begin : begin + 16]
            state = update_arrays(
                state, scores=p[few], propensities=np.ones(len(few)), losses=losses[few]
            )
            seen.append(state.n)
            logs.append(float(np.log10(np.exp(np.clip(state.logs[0], -300, 300)).mean())))
        axes.plot(seen, logs, color=colour, label=f"R(t) = {100 * risks[at]:.1f} %")
    axes.axhline(np.log10(1 / DELTA), color=GREY, ls=":", label="1/δ: certified")
    axes.set(
        title=f"Wealth, α = {ALPHA:.0%} · {name}",
        xlabel="labels",
        ylabel="log₁₀ of the capital",
        ylim=(-4, 12),
    )
    axes.legend()


def coverage(axes: Any, data: Data, quick: bool) -> None:
    """What is served under a certificate, as labels come in."""
    from router.certificate import LIVE_GRID, start, threshold, update_arrays

    name, p, _, losses = pool(data)
    marks = [100, 200, 400, 700, 1000, 1500, 2000, 3000, 5000]
    ours, peeked = [], []
    for seed in range(3 if quick else 20):
        rows = np.random.default_rng(seed).integers(0, len(p), marks[-1])
        state, done, lines = start(LIVE_GRID, ALPHA, DELTA, least_propensity=1.0), 0, []
        for mark in marks:
            part = rows[done:mark]
            state = update_arrays(
                state, scores=p[part], propensities=np.ones(len(part)), losses=losses[part]
            )
            done = mark
            lines.append(100 * float((p >= threshold(state)).mean()))
        ours.append(lines)
        once = [base.clopper_pearson(p[rows[:m]], losses[rows[:m]], ALPHA, DELTA) for m in marks]
        peeked.append([100 * float((p >= t).mean()) for t in once])
    for label, lines, colour in (
        ("ours, at any time", ours, OURS),
        ("Clopper–Pearson, one look", peeked, THIRD),
    ):
        low, high = np.percentile(lines, [10, 90], axis=0)
        axes.fill_between(marks, low, high, color=colour, alpha=0.2, lw=0)
        axes.plot(marks, np.median(lines, axis=0), color=colour, label=label)
    best = 100 * float((p >= base.oracle(p, losses, ALPHA)).mean())
    axes.axhline(best, color=FOURTH, ls=":", label="oracle")
    axes.set(
        title=f"Coverage against labels, α = {ALPHA:.0%} · {name}",
        xlabel="labels",
        ylabel="served by the student, %",
        xscale="log",
        ylim=(0, 100),
    )
    axes.legend(loc="lower right")


def violations(figure: Any, data: Data, quick: bool) -> None:
    """How often a threshold breaks the promise, by rows and α."""
    from router.certificate import LIVE_GRID, start, threshold, update_arrays

    name, p, _, losses = pool(data)
    sizes, alphas = (100, 300, 1000, 3000), (0.01, 0.02, 0.03, 0.05, 0.1)
    trials, looks = 10 if quick else 100, range(100, sizes[-1] + 1, 100)

    def broken(t: float, alpha: float) -> bool:
        return t < NEVER and base.violates(t, p, losses, alpha)

    found = np.zeros((4, len(alphas), len(sizes)))
    for seed in range(trials):
        rows = np.random.default_rng(seed).integers(0, len(p), sizes[-1])
        for i, alpha in enumerate(alphas):
            peeked = base.repeeked(p[rows], losses[rows], alpha, DELTA, grid=COARSE)
            again = [broken(t, alpha) for _, t in peeked]
            state, live = start(LIVE_GRID, alpha, DELTA, least_propensity=1.0), []
            for n in looks:
                part = rows[n - 100 : n]
                state = update_arrays(
                    state, scores=p[part], propensities=np.ones(100), losses=losses[part]
                )
                live.append(broken(threshold(state), alpha))
            for j, n in enumerate(sizes):
                few = rows[:n]
                observed = base.empirical(p[few], losses[few], alpha, COARSE)
                found[:, i, j] += (
                    broken(observed, alpha),
                    broken(peeked[n // 100 - 1][1], alpha),
                    any(again[: n // 100]),
                    any(live[: n // 100]),
                )
    titles = ("observed loss under α", "Clopper–Pearson, one look", "the same, re-peeked")
    panels = figure.subplots(1, 4, sharey=True)
    values = 100 * found / trials
    for panel, title, cells in zip(panels, (*titles, "ours, at any time"), values, strict=True):
        panel.imshow(cells, cmap="YlOrRd", vmin=0, vmax=50, aspect="auto")
        for (i, j), value in np.ndenumerate(cells):
            colour = "white" if value > 35 else "black"
            panel.text(j, i, f"{value:.0f}", ha="center", va="center", color=colour)
        panel.set_xticks(range(len(sizes)), [f"{n:,}" for n in sizes])
        panel.set_yticks(range(len(alphas)), [f"{a:.0%}" for a in alphas])
        panel.set_title(title, fontsize=9)
        panel.set_xlabel("rows")
    panels[0].set_ylabel("α")
    figure.suptitle(f"Promises broken, % (allowed: {DELTA:.0%}) · {name}", fontsize=10)


def traffic(data: Data) -> tuple[str, list[tuple[str, str]], list[str], dict[str, list[str]]]:
    """Training rows, held-out prompts, and test prompts by kind: ordinary, near and far."""
    rng = np.random.default_rng(SEED)
    rows = data.rows("clinc150_full")
    if rows is None:
        words = ["".join(chr(97 + c) for c in rng.integers(0, 26, 3 + n % 6)) for n in range(1200)]

        def prompt(kind: int) -> str:
            own = rng.integers(0, 40, 5) + kind * 40
            return " ".join(words[at] for at in [*own, *rng.integers(1000, 1200, 6)])

        known = [(prompt(kind), f"kind {kind}") for kind in rng.integers(0, 15, 1250).tolist()]
        near = [prompt(int(kind)) for kind in rng.integers(15, 25, 400)]
        far = ["".join(chr(a) for a in rng.integers(33, 126, 50)) for _ in range(400)]
        name = "made-up prompts"
    else:
        labels = sorted({row["label"] for row in rows} - {"oos"})
        some = set(rng.permutation(labels)[:15].tolist())
        pairs = [(row["text"], row["label"]) for row in rows]
        shuffled = [pairs[at] for at in rng.permutation(len(pairs))]
        known = [pair for pair in shuffled if pair[1] in some]
        near = [text for text, label in shuffled if label not in some and label != "oos"][:1000]
        far = [text for text, label in shuffled if label == "oos"]
        name = "CLINC150, 15 intents"
    train, held_out, ordinary = known[:450], known[450:850], known[850:]
    tests = {"ordinary": [text for text, _ in ordinary], "near": near, "far": far}
    return name, train, [text for text, _ in held_out], tests


def ood(axes: Any, data: Data, quick: bool) -> None:
    """Foreign prompts caught against ordinary ones turned away."""
    name, train, held_out, tests = traffic(data)
    gate = fit_ood(train, held_out, seed=SEED)
    most = 150 if quick else 1000
    found = {
        kind: np.array([gate.p_value(text) for text in texts[:most]])
        for kind, texts in tests.items()
    }
    marks = np.linspace(0.0, 1.0, 501)
    usual = [(found["ordinary"] <= m).mean() for m in marks]
    for kind, colour in (("near", THIRD), ("far", OURS)):
        caught = [(found[kind] <= m).mean() for m in marks]
        both = np.concatenate([found["ordinary"], found[kind]])
        area = base.auroc(both, np.arange(len(both)) < len(found["ordinary"]))
        axes.plot(usual, caught, color=colour, label=f"{kind}, AUROC {100 * area:.1f}")
    axes.plot([0, 1], [0, 1], color=GREY, lw=0.8)
    axes.set(
        title=f"Out of distribution · {name}",
        xlabel="ordinary prompts turned away",
        ylabel="foreign prompts turned away",
    )
    axes.legend(loc="lower right")


def drift(axes: Any, data: Data, quick: bool) -> None:
    """The tail test along a stream of which 5 % turn foreign half-way."""
    from router.drift import LEVEL, WINDOW, tail_test

    name, train, held_out, tests = traffic(data)
    gate = fit_ood(train, held_out, seed=SEED)
    usual = np.array([gate.p_value(text) for text in tests["ordinary"][:1000]])
    foreign = np.array([gate.p_value(text) for text in tests["far"][:400]])
    turn, n = 1500, 3000
    ends = range(WINDOW, n + 1, 50)
    for seed in range(3 if quick else 12):
        rng = np.random.default_rng(seed)
        stream = rng.choice(usual, n)
        moved = (np.arange(n) >= turn) & (rng.random(n) < 0.05)
        stream[moved] = rng.choice(foreign, int(moved.sum()))
        p = [tail_test(stream[end - WINDOW : end], len(held_out)).p_value for end in ends]
        axes.semilogy(ends, np.maximum(p, 1e-12), color=OURS, lw=0.8, alpha=0.6)
    axes.axvline(turn, color=SECOND, ls=":", label="5 % of the requests turn foreign")
    axes.axhline(LEVEL, color=GREY, ls="--", label="the test fires")
    axes.set(
        title=f"Drift, windows of {WINDOW} · {name}",
        xlabel="requests",
        ylabel="p-value of the tail test",
    )
    axes.legend(loc="lower left")


def loop(axes: Any, data: Data, quick: bool) -> None:
    """Teacher share of the closed loop, quarter by quarter."""
    from benchmarks.router import closed_loop

    found = closed_loop.streams(data)
    name, stream = next(iter(found.items()))
    colours = dict(zip(closed_loop.LOOPS, (GREY, OURS, THIRD, FOURTH), strict=True))
    for label, run in closed_loop.LOOPS.items():
        shares = []
        for seed in range(2 if quick else 12):
            parts = np.array_split(run(stream(seed), seed).called, closed_loop.QUARTERS)
            shares.append([100 * part.mean() for part in parts])
        low, high = np.percentile(shares, [2.5, 97.5], axis=0)
        x = np.arange(1, closed_loop.QUARTERS + 1)
        axes.fill_between(x, low, high, color=colours[label], alpha=0.15, lw=0)
        axes.plot(x, np.mean(shares, axis=0), color=colours[label], marker="o", label=label)
    axes.set(
        title=f"Closed loop · {name}",
        xlabel="quarter of the stream",
        ylabel="teacher calls, %",
        xticks=x,
        ylim=(0, 100),
    )
    axes.legend()


#: Pictures of one panel draw into axes, the others into a figure.
PICTURES: dict[str, Callable[[Any, Data, bool], None]] = {
    "deferral": deferral,
    "reliability": reliability,
    "wealth": wealth,
    "coverage": coverage,
    "violations": violations,
    "ood": ood,
    "drift": drift,
    "loop": loop,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--into", type=Path, required=True)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", nargs="+", choices=PICTURES, default=list(PICTURES))
    options = parser.parse_args()
    try:
        import matplotlib
    except ImportError:
        print("no plots: matplotlib is not installed (pip install matplotlib)")
        return 0
    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    options.into.mkdir(parents=True, exist_ok=True)
    data, failed = find(), []
    for name in options.only:
        wide = name == "violations"
        figure = Figure(figsize=(9.0, 3.4) if wide else (5.6, 3.8), layout="constrained")
        try:
            PICTURES[name](figure if wide else figure.subplots(), data, options.quick)
        except Exception:  # the others are still worth drawing
            traceback.print_exc()
            failed.append(name)
            continue
        if not wide:
            figure.axes[0].title.set_fontsize(10)
            for side in ("top", "right"):
                figure.axes[0].spines[side].set_visible(False)
        # Without the library's version in it, the same picture is the same bytes.
        figure.savefig(options.into / f"router-{name}.png", dpi=90, metadata={"Software": None})
    if failed:
        print(f"not drawn: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
