"""What a decision costs: microseconds of one core for ``before`` and ``after``.

    python benchmarks/router_decision.py

A made-up ticket task with a 30-word prompt, a JSON answer of about 25 tokens, and 1,000 or 5,000
training rows. Needs no data.
"""

import json
import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from router.artifact import load, save
from router.decision import Answer, Token
from router.output import OutputSpec
from router.router import Judged, Labelled, Router, fit_router

CATEGORIES = [f"category_{n}" for n in range(15)]
SPEC = OutputSpec(
    kind="json",
    fields={
        "category": tuple(CATEGORIES),
        "priority": ("low", "normal", "high", "urgent"),
        "needs_human": (True, False),
    },
)


def tickets(count: int, seed: int) -> list[tuple[str, str]]:
    rng = np.random.default_rng(seed)
    words = ["".join(chr(97 + c) for c in rng.integers(0, 26, 2 + n % 9)) for n in range(3000)]
    out = []
    for _ in range(count):
        kind = int(rng.integers(15))
        own = rng.integers(0, 150, 12) + kind * 150
        picked = np.concatenate([own, rng.integers(2250, 3000, 18)])
        data = {"category": CATEGORIES[kind], "priority": "normal", "needs_human": False}
        out.append((" ".join(words[at] for at in rng.permutation(picked)), json.dumps(data)))
    return out


def draft(text: str, p: float) -> Answer:
    pieces = [text[at : at + 3] for at in range(0, len(text), 3)]
    log = math.log(p)
    top = (log, math.log1p(-p), -12.0, -13.0, -14.0)
    return Answer(text=text, tokens=tuple(Token(text=t, logprob=log, top=top) for t in pieces))


def fit(rows: int) -> Router:
    rng = np.random.default_rng(7)
    return fit_router(
        spec=SPEC,
        train=[Labelled(prompt=prompt, answer=answer) for prompt, answer in tickets(rows, 1)],
        calibration=[
            Judged(prompt=prompt, student=draft(answer, float(rng.beta(500, 1))), teacher=answer)
            for prompt, answer in tickets(400, 2)
        ],
        max_disagreement=0.05,
        confidence=0.95,
        ood_epsilon=0.01,
    )


def timed(name: str, call: Callable[[int], object], count: int = 3000) -> None:
    for at in range(200):
        call(at)
    took = []
    for at in range(count):
        began = time.perf_counter_ns()
        call(at)
        took.append((time.perf_counter_ns() - began) / 1000)
    p50, p99 = np.percentile(took, [50, 99])
    print(f"{name:34}{p50:8.0f}{p99:8.0f}{1e6 / np.mean(took):12,.0f}")


def main() -> None:
    print(f"{'':34}{'p50 µs':>8}{'p99 µs':>8}{'per s·core':>12}")
    for rows in (1000, 5000):
        began = time.perf_counter()
        router = fit(rows)
        fitted = time.perf_counter() - began
        with tempfile.TemporaryDirectory() as name:
            save(router, Path(name))
            began = time.perf_counter()
            router = load(Path(name))
            loaded = time.perf_counter() - began
            size = sum(path.stat().st_size for path in Path(name).iterdir()) / 1e6
        asked = tickets(500, 3)
        answers = [draft(answer, 0.999) for _, answer in asked]
        timed(f"before, {rows} rows", lambda at, r=router, q=asked: r.before(q[at % 500][0]))
        timed(
            f"after, {len(answers[0].tokens)} tokens",
            lambda at, r=router, q=asked, a=answers: r.after(q[at % 500][0], a[at % 500], 0.5),
        )
        print(f"  fit {fitted:.1f} s, load {loaded * 1000:.0f} ms, {size:.1f} MB on disk")


if __name__ == "__main__":
    main()
