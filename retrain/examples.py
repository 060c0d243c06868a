"""Rows as the model reads them: token ids, and which of them it learns to give.

A row is rendered with the model's own chat template, twice: the prompt as the server will render
it, and prompt and answer together. The second must begin with the first, or the student would be
trained on a context it never sees.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from retrain.errors import TrainingError
from retrain.train import Row

#: the label of tokens that are not learned
IGNORED = -100
#: more rows than this share over `max_length` fail a training: it would learn another task
MAX_DROPPED = 0.02
#: batches are made of rows alike in length among this many batches' worth of neighbours
NEIGHBOURS = 24


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """``ids`` whole; the answer begins at ``start``."""

    ids: tuple[int, ...]
    start: int

    @property
    def labels(self) -> list[int]:
        return [IGNORED] * self.start + list(self.ids[self.start :])


def encode(rows: Sequence[Row], tokenizer: Any, max_length: int) -> list[Example]:
    """The rows that fit. Raises TrainingError where too many do not, or the template is no use."""
    if tokenizer.chat_template is None:
        raise TrainingError("the base model has no chat template")
    examples = [_encode(row, tokenizer) for row in rows]
    kept = [example for example in examples if len(example.ids) <= max_length]
    dropped = len(examples) - len(kept)
    if dropped > MAX_DROPPED * len(examples):
        longest = max(len(example.ids) for example in examples)
        raise TrainingError(
            f"{dropped} of {len(examples)} rows are longer than training.max_length = "
            f"{max_length} tokens (the longest has {longest}): raise it, or cut the prompts with "
            "the task's prompt contract"
        )
    return kept


def _encode(row: Row, tokenizer: Any) -> Example:
    prompt = [dict(message) for message in row.messages]
    whole = [*prompt, {"role": "assistant", "content": row.answer}]
    asked = _ids(tokenizer, prompt, add_generation_prompt=True)
    ids = _ids(tokenizer, whole)
    if ids[: len(asked)] != asked:
        raise TrainingError(
            "the chat template renders a prompt differently once it is answered, so what the "
            "student is trained on is not what it will be asked"
        )
    # what the template puts after the end-of-turn token is never generated
    end = tokenizer.eos_token_id
    last = len(ids) - 1
    while last >= len(asked) and ids[last] != end:
        last -= 1
    if last < len(asked):
        # the template closes no turn: the end-of-text token does
        return Example(ids=(*ids, end), start=len(asked))
    return Example(ids=tuple(ids[: last + 1]), start=len(asked))


def _ids(tokenizer: Any, messages: list[dict[str, Any]], **options: Any) -> list[int]:
    text = tokenizer.apply_chat_template(messages, tokenize=False, **options)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def plan(lengths: Sequence[int], *, batch_size: int, epochs: float, seed: int) -> list[list[int]]:
    """Which rows make up each step, over all passes: shuffled, but rows of like length together,
    for little padding. A last pass that is not whole takes its first batches."""
    draw = random.Random(seed)
    per_pass = -(-len(lengths) // batch_size)
    steps = max(1, round(per_pass * epochs))
    batches: list[list[int]] = []
    while len(batches) < steps:
        order = list(range(len(lengths)))
        draw.shuffle(order)
        pool = batch_size * NEIGHBOURS
        one_pass: list[list[int]] = []
        for at in range(0, len(order), pool):
            near = sorted(order[at : at + pool], key=lambda index: lengths[index])
            one_pass += [near[i : i + batch_size] for i in range(0, len(near), batch_size)]
        draw.shuffle(one_pass)
        batches += one_pass
    return batches[:steps]
