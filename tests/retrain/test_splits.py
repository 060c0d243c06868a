"""Sides are for ever, and near-identical prompts never sit on both."""

import random

import pytest

from retrain.errors import LeakageError
from retrain.splits import SPLITS, Prompted, guard, near_duplicates, split_of

SIDES = [
    "train",
    "train",
    "calibration",
    "train",
    "train",
    "test",
    "train",
    "train",
    "train",
    "calibration",
    "train",
    "calibration",
]


def row(id: str, prompt: str, group: str | None = None) -> Prompted:
    return Prompted(id=id, group_key=group or prompt, prompt=prompt)


def on_side(side: str, start: int = 0) -> str:
    return next(f"group-{i}" for i in range(start, start + 1000) if split_of(f"group-{i}") == side)


def test_sides_of_known_groups_never_change() -> None:
    """A failure here means that every row in the field changed sides: do not "fix" the test."""
    assert [split_of(f"group-{i}") for i in range(12)] == SIDES


def test_sides_have_the_promised_shares() -> None:
    counts = dict.fromkeys(SPLITS, 0)
    for i in range(20_000):
        counts[split_of(str(i))] += 1
    assert abs(counts["train"] / 20_000 - 0.6) < 0.015
    assert abs(counts["calibration"] / 20_000 - 0.2) < 0.012
    assert abs(counts["test"] / 20_000 - 0.2) < 0.012


def test_the_same_prompt_in_two_conversations_is_left_out_of_training() -> None:
    rows = [row("a", "thank you", on_side("train")), row("b", "thank you", on_side("test"))]
    assert [(leak.train.id, leak.held_out.id) for leak in guard(rows, max_share=1.0)] == [
        ("a", "b")
    ]


def test_near_duplicates_across_sides_are_reported_once_per_training_row() -> None:
    text = "my parcel with the blue kettle has not arrived since the order of last week, please"
    rows = [
        row("train", text, on_side("train")),
        row("test", text.replace("please", "pleese"), on_side("test")),
        row("calibration", text + ".", on_side("calibration")),
        row("other", "how do I change the name on my account?", on_side("train", 50)),
    ]
    leaks = guard(rows, max_share=0.5)
    assert [leak.train.id for leak in leaks] == ["train"]
    assert leaks[0].alike >= 0.85


def test_too_many_near_duplicates_fail_the_run_with_a_pair() -> None:
    text = "the same long sentence about a parcel that never arrived at my home address"
    rows = [row("t", text, on_side("train")), row("h", text + "!", on_side("test"))]
    with pytest.raises(LeakageError, match=r"1 of 1 training rows.*example t .* and h "):
        guard(rows, max_share=0.1)


def test_rows_that_differ_in_digits_only_are_near_duplicates() -> None:
    one, other = row("a", "order 1234 is late"), row("b", "order 9876 is late")
    assert [leak.alike for leak in near_duplicates([one], [other])] == [1.0]


def test_the_fast_search_finds_what_comparing_all_pairs_finds() -> None:
    random.seed(3)
    words = [f"word{'abcdefghij'[i]}" for i in range(10)]
    texts = [" ".join(random.choices(words, k=random.randint(1, 14))) for _ in range(240)]
    texts += [text[:-1] for text in texts[:60]]
    train = [row(f"t{i}", text) for i, text in enumerate(texts[::2])]
    held_out = [row(f"h{i}", text) for i, text in enumerate(texts[1::2])]

    def pieces(text: str) -> set[str]:
        return {text[i : i + 5] for i in range(max(1, len(text) - 4))}

    for alike in (0.6, 0.9):
        wanted = {
            one.id
            for one in train
            for two in held_out
            if len(pieces(one.prompt) & pieces(two.prompt))
            >= alike * len(pieces(one.prompt) | pieces(two.prompt))
        }
        found = {leak.train.id for leak in near_duplicates(train, held_out, alike)}
        assert found == wanted and wanted
