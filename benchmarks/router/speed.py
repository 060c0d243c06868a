"""What a decision costs on one core, without the embedding: ``before`` from a ready vector, and
``after`` on a draft, on the real ``Router``.

    python benchmarks/router/speed.py [--quick]

A made-up ticket task with 30-word prompts, and drafts of three kinds: a label, JSON with five
fields, a text of 200 tokens. Needs no data. Times are the thread's own CPU time, so that a core
shared with others counts as one core; caches and clock speed still vary, so each cost is also
given as a multiple of a yardstick, ``orjson.loads`` of a chat request of 4 KB, timed in between.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import numpy as np
import orjson
from numpy.typing import NDArray

if __name__ == "__main__":  # so that it runs alone
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.router.data import Data, find
from benchmarks.router.table import Line, percentiles
from router.decision import Answer, Token
from router.output import Kind, OutputSpec
from router.router import Judged, Labelled, Router, fit_router

Floats = NDArray[np.float32]

SEED = 7
CATEGORIES = tuple(f"category_{n}" for n in range(15))
FIELDS = {
    "category": CATEGORIES,
    "priority": ("low", "normal", "high", "urgent"),
    "needs_human": (True, False),
    "product": (),
    "days_open": (),
}
SPECS: dict[Kind, OutputSpec] = {
    "label": OutputSpec(kind="label", labels=CATEGORIES),
    "json": OutputSpec(kind="json", fields=FIELDS),
    "text": OutputSpec(kind="text"),
}
TOP = 5
CHUNK = 50
#: Bars of the whole decision, before and after together.
P50_MS, PER_SECOND = 0.2, 4000.0


class Ready:
    """Stands in for what embeds: the vectors of the prompts that will come, computed before."""

    def __init__(self, vectors: dict[str, Floats]) -> None:
        self.vectors = vectors

    def __call__(self, text: str, vector: Floats | None = None) -> Floats:
        return self.vectors[text]


def made_ready(router: Router, asked: list[str]) -> None:
    """Take the embedding out of the router's gate, whatever the field that holds it is called."""
    names = {field.name for field in fields(router.ood)}
    name = "space" if "space" in names else "embedding"
    embed = getattr(router.ood, name)
    object.__setattr__(router.ood, name, Ready({prompt: embed(prompt) for prompt in asked}))


def prompts(count: int, seed: int) -> list[tuple[str, int]]:
    rng = np.random.default_rng(seed)
    words = ["".join(chr(97 + c) for c in rng.integers(0, 26, 2 + n % 9)) for n in range(3000)]
    out = []
    for _ in range(count):
        kind = int(rng.integers(15))
        own = rng.integers(0, 150, 12) + kind * 150
        picked = np.concatenate([own, rng.integers(2250, 3000, 18)])
        out.append((" ".join(words[at] for at in rng.permutation(picked)), kind))
    return out


def text_of(output: Kind, kind: int) -> str:
    if output == "label":
        return CATEGORIES[kind]
    if output == "json":
        values = (CATEGORIES[kind], "normal", False, f"lamp {kind}", 3)
        return json.dumps(dict(zip(FIELDS, values, strict=True)))
    return " ".join(f"word{(kind * 31 + at) % 90 + 10}" for at in range(115))


def draft(text: str, p: float) -> Answer:
    """Tokens of four characters (a text of 115 words has 200), each with its alternatives."""
    pieces = [text[at : at + 4] for at in range(0, len(text), 4)]
    log = math.log(p)
    top = (log, math.log1p(-p), *(-12.0 - at for at in range(TOP - 2)))
    return Answer(text=text, tokens=tuple(Token(text=t, logprob=log, top=top) for t in pieces))


def fitted(output: Kind, rows: int) -> Router:
    rng = np.random.default_rng(SEED)
    train = [
        Labelled(prompt=prompt, answer=text_of(output, kind)) for prompt, kind in prompts(rows, 1)
    ]
    calibration = [
        Judged(
            prompt=prompt,
            student=draft(text_of(output, kind), float(rng.beta(500, 1))),
            teacher=text_of(output, kind),
        )
        for prompt, kind in prompts(400, 2)
    ]
    return fit_router(
        spec=SPECS[output],
        train=train,
        calibration=calibration,
        max_disagreement=0.05,
        confidence=0.95,
        ood_epsilon=0.01,
    )


def timed(calls: dict[str, Callable[[int], object]], rounds: int) -> dict[str, NDArray[np.float64]]:
    """Microseconds of each call, the things compared taking turns in chunks."""
    took: dict[str, list[float]] = {name: [] for name in calls}
    clock = time.thread_time_ns
    for round_ in range(rounds + 2):
        for name, call in calls.items():
            samples = []
            for at in range(CHUNK):
                began = clock()
                call(round_ * CHUNK + at)
                samples.append((clock() - began) / 1000)
            if round_ >= 2:  # the first two warm up
                took[name] += samples
    return {name: np.array(samples) for name, samples in took.items()}


def yardstick() -> Callable[[int], object]:
    """``orjson.loads`` of a chat request of 4 KB."""
    turns = [
        {"role": "user", "content": f"turn {n}: " + "some words of a chat " * 8} for n in range(21)
    ]
    body = orjson.dumps({"model": "m", "messages": turns, "temperature": 0.2})
    assert 3900 < len(body) < 4400, len(body)
    return lambda _: orjson.loads(body)


def measure(data: Data, quick: bool) -> list[Line]:
    lines = []
    rows = 1000 if quick else 5000
    for output in SPECS:
        router = fitted(output, rows)
        asked = prompts(500, 3)
        made_ready(router, [prompt for prompt, _ in asked])
        answers = [draft(text_of(output, kind), 0.999) for _, kind in asked]

        def decide(at: int, r: Router = router, a: list[Answer] = answers) -> object:
            prompt = asked[at % 500][0]  # noqa: B023
            return r.after(prompt, a[at % 500], r.before(prompt).p_ood)

        took = timed({"decision": decide, "yardstick": yardstick()}, 20 if quick else 100)
        tokens = len(answers[0].tokens)
        lines += _lines(f"{output} of {tokens} tokens, {rows:,} training rows", took)
    return lines


def _lines(what: str, took: dict[str, NDArray[np.float64]]) -> list[Line]:
    chunks = took["decision"].reshape(-1, CHUNK)
    unit = float(np.median(took["yardstick"]))
    rng = np.random.default_rng(SEED)
    picks = [chunks[rng.integers(0, len(chunks), len(chunks))] for _ in range(200)]

    def line(of: str, value: float, samples: list[float], **bar: object) -> Line:
        low, high = percentiles(samples)
        return Line(
            section="speed",
            what=f"{what}: {of}",
            who="ours",
            value=value,
            low=low,
            high=high,
            **bar,
        )  # type: ignore[arg-type]

    def part(q: float) -> tuple[float, list[float]]:
        return float(np.percentile(chunks, q)) / 1000, [
            float(np.percentile(pick, q)) / 1000 for pick in picks
        ]

    middle, tail = part(50), part(99)
    rates = [1e6 / float(pick.mean()) for pick in picks]
    return [
        line("p50", *middle, bar=P50_MS, at_most=True, unit="ms"),
        line("p99", *tail, unit="ms"),
        line("decisions a second", 1e6 / float(chunks.mean()), rates, bar=PER_SECOND, unit="1/s"),
        Line(
            section="speed",
            what=f"{what}: p50",
            who="orjson.loads of 4 KB",
            value=unit / 1000,
            unit="ms",
        ),
        line(
            "p50 against orjson.loads of 4 KB",
            middle[0] * 1000 / unit,
            [s * 1000 / unit for s in middle[1]],
            unit="×",
        ),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    for line in measure(find(), parser.parse_args().quick):
        print(f"{line.what:66}{line.who:22}{line.value:10.4g} {line.unit}")


if __name__ == "__main__":
    main()
