"""What every number the router computes must obey: the OOD p-value, the plain and the learned
score."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from router.artifact import ARRAYS, MANIFEST, load, save
from router.confidence import Confidence
from router.decision import Answer, Token
from router.errors import BadArtifact
from router.head import MonotoneTrees
from router.isotonic import Curve
from router.linear import Linear
from router.output import OutputSpec
from router.router import Router
from router.signals import EXTRAS, FEATURES
from router.trees import Trees

Scorer = Callable[[Router, str, Answer], float]

HUGE = "word " * 200_000
ODD_PROMPTS = (
    "",
    " ",
    "\x00",
    "\ud800",
    "👩‍👩‍👧",
    "ß" * 50,
    "�" * 9,
    "\n" * 99,
    HUGE,
    "1" * 10_000,
)
ODD_ANSWERS = (
    Answer(text=""),
    Answer(text="{" * 5000, tokens=(Token(text="{", logprob=float("-inf")),) * 50),
    Answer(text="\ud800", tokens=(Token(text="\ufffd", logprob=float("nan")),)),
    Answer(text="x", tokens=(Token(text="x", logprob=0.0, top=(0.0,) * 20),)),
)


def p_ood(router: Router, prompt: str, answer: Answer) -> float:
    return router.ood.p_value(prompt)


def plain(router: Router, prompt: str, answer: Answer) -> float:
    return router.score(prompt, answer)


def learned(router: Router, prompt: str, answer: Answer) -> float:
    return with_head(router).score(prompt, answer)


def trained(router: Router, prompt: str, answer: Answer) -> float:
    return with_trees(router).score(prompt, answer)


def read(router: Router, prompt: str, answer: Answer) -> float:
    return with_reader(router).score(prompt, answer)


def with_trees(router: Router) -> Router:
    """Trees, and the curve after them."""
    trees = some_trees(len(FEATURES) + len(router.ood.uses) + len(EXTRAS))
    curve = Curve(x=np.array([0.0, 0.4, 1.0]), y=np.array([0.0, 0.7, 1.0]))
    return replace(router, confidence=Confidence(kind="json", form=True, trees=trees, curve=curve))


@cache
def some_trees(width: int) -> Trees:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, width))
    return MonotoneTrees(rounds=9).fit(x, x[:, 0] > rng.normal(size=200)).compiled()


def with_reader(router: Router) -> Router:
    """A head of a label task that is little but its reading."""
    labels = ("billing", "delivery", "x")
    width = len(FEATURES) + len(router.ood.uses) + len(EXTRAS) + 1
    reader = Linear(
        weights=np.eye(4), biases=np.zeros(4), means=np.full(4, -1.0), scales=np.ones(4)
    )
    head = Confidence(
        kind="label",
        weights=np.linspace(0.0, 1.0, width),
        means=np.zeros(width),
        scales=np.ones(width),
        form=True,
        reader=reader,
        lengths=(2.0, 0.5),
    )
    return replace(router, spec=OutputSpec(kind="label", labels=labels), confidence=head)


def with_head(router: Router) -> Router:
    width = len(FEATURES) + len(router.ood.uses)
    head = Confidence(
        kind="json",
        weights=np.linspace(-1.0, 1.0, width),
        means=np.zeros(width),
        scales=np.full(width, 2.0),
        bias=0.1,
    )
    return replace(router, confidence=head)


@pytest.fixture(
    params=[p_ood, plain, learned, trained, read], ids=lambda scorer: str(scorer.__name__)
)
def scorer(request: pytest.FixtureRequest) -> Scorer:
    found: Scorer = request.param
    return found


@pytest.fixture
def requests(traffic: Any) -> list[tuple[str, Answer]]:
    return [(row.prompt, row.student) for row in traffic(11).judged(20, quality=0.7)]


def test_lies_in_0_1_for_any_prompt_and_any_answer(
    scorer: Scorer, router: Router, requests: list[tuple[str, Answer]]
) -> None:
    odd = [(prompt, answer) for prompt in ODD_PROMPTS for answer in ODD_ANSWERS]
    for prompt, answer in (*requests, *odd):
        value = scorer(router, prompt, answer)
        assert type(value) is float and 0.0 <= value <= 1.0


def test_is_pure_and_independent_of_what_came_before(
    scorer: Scorer, router: Router, requests: list[tuple[str, Answer]]
) -> None:
    forwards = [scorer(router, *request) for request in requests]
    backwards = [scorer(router, *request) for request in reversed(requests)]
    assert forwards == backwards[::-1]


def test_survives_saving_to_the_last_bit(
    scorer: Scorer, router: Router, requests: list[tuple[str, Answer]], tmp_path: Path
) -> None:
    save(router, tmp_path)
    again = load(tmp_path)
    assert [scorer(again, *r) for r in requests] == [scorer(router, *r) for r in requests]


@pytest.mark.parametrize("make", [with_head, with_trees, with_reader])
def test_a_learned_head_survives_saving(
    make: Callable[[Router], Router],
    router: Router,
    requests: list[tuple[str, Answer]],
    tmp_path: Path,
) -> None:
    headed = make(router)
    save(headed, tmp_path)
    again = load(tmp_path)
    assert again.confidence.learned
    assert [again.score(*r) for r in requests] == [headed.score(*r) for r in requests]


@pytest.mark.parametrize(
    ("make", "part", "change"),
    [
        (with_head, "head_weights", lambda a: a[:-1]),
        (with_head, "head_weights", lambda a: a * np.nan),
        (with_head, "head_means", lambda a: a[:-1]),
        (with_head, "head_scales", lambda a: a * 0),
        (with_head, "head_scales", lambda a: a.astype(str)),
        (with_trees, "trees_left", lambda a: a * 0),
        (with_trees, "trees_width", lambda a: a + 1),
        (with_trees, "trees_value", lambda a: a[:-1]),
        (with_trees, "trees_depth", lambda a: a + 0.5),
        (with_trees, "trees_roots", lambda a: None),
        (with_trees, "curve_y", lambda a: a[::-1].copy()),
        (with_reader, "reader_weights", lambda a: a[:, :-1]),
        (with_reader, "reader_biases", lambda a: None),
        (with_reader, "reader_means", lambda a: a.astype(object).astype(bytes)),
    ],
)
def test_a_score_of_arrays_that_do_not_fit_is_refused(
    make: Callable[[Router], Router], part: str, change: Any, router: Router, tmp_path: Path
) -> None:
    save(make(router), tmp_path)
    with np.load(tmp_path / ARRAYS, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    changed = change(arrays.pop(part))
    np.savez(tmp_path / ARRAYS, **arrays, **({} if changed is None else {part: changed}))
    signed_again(tmp_path)
    with pytest.raises(BadArtifact):
        load(tmp_path)


def signed_again(folder: Path) -> None:
    """The checksums as if the router had been saved like this."""
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["files"][ARRAYS] = hashlib.sha256((folder / ARRAYS).read_bytes()).hexdigest()
    del manifest["sha256"]
    content = json.dumps(manifest, sort_keys=True).encode()
    manifest["sha256"] = hashlib.sha256(content).hexdigest()
    (folder / MANIFEST).write_text(json.dumps(manifest))
