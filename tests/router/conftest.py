"""A small made-up task: support tickets with a category, and a student of known quality."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest

from router.decision import Answer, Token
from router.output import OutputSpec
from router.router import Judged, Labelled, Router, fit_router

OPENERS = ("Hello, ", "Hi team, ", "Please help: ", "Good morning. ", "")
CLOSERS = (" Thanks.", " Please reply soon.", " This is urgent!", "", " Order 4711.")
SUBJECTS = {
    "billing": ("I was charged twice on my invoice", "the refund has not reached my card"),
    "delivery": ("my parcel never arrived at home", "the courier left the package outside"),
    "login": ("I cannot sign in with my password", "the reset link of my account is broken"),
    "returns": ("I want to send the shoes back", "how do I return a damaged lamp"),
}
STRANGE = (
    "Which enzyme unwinds the double helix during replication?",
    "Écris un poème sur la lune et les oiseaux de nuit",
    "SELECT id, sum(x) FROM t GROUP BY id HAVING sum(x) > 3",
    "the orbital period of Jupiter's moon Ganymede in days",
)


@dataclass(frozen=True)
class Traffic:
    """Prompts with their categories; ``ask`` is a student right with ``quality``, and honest."""

    seed: int

    def rows(self, count: int) -> list[tuple[str, str]]:
        rng = np.random.default_rng(self.seed)
        names = sorted(SUBJECTS)
        out = []
        for _ in range(count):
            name = names[rng.integers(len(names))]
            subject = SUBJECTS[name][rng.integers(2)]
            words = OPENERS[rng.integers(5)] + subject + CLOSERS[rng.integers(5)]
            out.append((f"{words} ({rng.integers(10_000)})", name))
        return out

    def train(self, count: int) -> list[Labelled]:
        return [Labelled(prompt=text, answer=answer(name)) for text, name in self.rows(count)]

    def judged(self, count: int, quality: float = 0.95) -> list[Judged]:
        rng = np.random.default_rng(self.seed + 1)
        names = sorted(SUBJECTS)
        out = []
        for text, name in self.rows(count):
            right = rng.random() < quality
            said = name if right else names[(names.index(name) + 1) % len(names)]
            p = float(rng.beta(30, 1) if right else rng.beta(3, 3))
            out.append(Judged(prompt=text, student=draft(said, p), teacher=answer(name)))
        return out


def answer(name: str) -> str:
    return json.dumps({"category": name, "urgent": False})


def draft(name: str, p: float) -> Answer:
    """A JSON draft whose category the student gave the probability ``p``."""
    p = min(max(p, 1e-9), 1 - 1e-9)
    sure = (-1e-6, -14.0)
    pieces = ['{"', "category", '":', ' "', name[:3], name[3:], '",', ' "urgent', '":', " false"]
    tokens = [Token(text=piece, logprob=sure[0], top=sure) for piece in (*pieces, "}")]
    unsure = math.log(p), math.log1p(-p)
    tokens[4] = Token(text=name[:3], logprob=unsure[0], top=tuple(sorted(unsure, reverse=True)))
    return Answer(text=answer(name), tokens=tuple(tokens))


SPEC = OutputSpec(
    kind="json", fields={"category": tuple(sorted(SUBJECTS)), "urgent": (True, False)}
)


@pytest.fixture
def traffic() -> type[Traffic]:
    return Traffic


@pytest.fixture
def make_draft() -> Callable[[str, float], Answer]:
    return draft


@pytest.fixture
def strange() -> tuple[str, ...]:
    return STRANGE


@pytest.fixture
def spec() -> OutputSpec:
    return SPEC


def fit(calibration: list[Judged], **changes: float) -> Router:
    settings = {"max_disagreement": 0.05, "confidence": 0.95, "ood_epsilon": 0.01, **changes}
    return fit_router(spec=SPEC, train=Traffic(1).train(150), calibration=calibration, **settings)


@pytest.fixture
def fit_small() -> Callable[..., Router]:
    return fit


@pytest.fixture(scope="session")
def router() -> Router:
    """A certified router on a good student."""
    return fit(Traffic(2).judged(200))
