"""A small world to spend nights in: a task, a teacher with a rule, and students that learn words.

The student server is `FakeOpenAI`; an adapter is a JSON table from words to labels that the fake
training counted off its rows. Everything between the two is real.
"""

import hashlib
import json
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fake_openai import FakeOpenAI, Reply

from gateway.config import Claim, Config, Contract, Nightly, Output, Student, Task, Training
from gateway.ids import new_id
from gateway.storage import exchanges
from gateway.storage.store import Store
from gateway.storage.tables import Exchange, utcnow
from retrain.adapter_files import CONFIG, WEIGHTS
from retrain.train import Row, TrainReport

#: The words the teacher's rule goes by.
WORDS = {
    "parcel": "delivery", "courier": "delivery", "late": "delivery",
    "money": "refund", "charged": "refund", "invoice": "refund",
    "password": "account", "login": "account", "email": "account",
}  # fmt: skip
FILLER = (
    *("hello", "please", "thanks", "my", "the", "a", "since", "monday", "tuesday", "week", "order"),
    *("number", "again", "still", "never", "once", "with", "from", "about", "and", "but", "today"),
    *("urgent", "kindly", "sir", "madam", "shop", "app", "phone", "website", "team", "help"),
)


def make_config(folder: Path, student_url: str, **nightly: Any) -> Config:
    task = Task(
        name="triage",
        claim=Claim(model=["triage"]),
        output=Output(kind="label", labels=["delivery", "refund", "account"], max_tokens=16),
        contract=Contract(max_disagreement=0.08),
    )
    return Config(
        state_dir=str(folder / "state"),
        student=Student(base_url=student_url),
        tasks=[task],
        training=Training(base_model=str(folder / "base")),
        nightly=Nightly(**{"min_new_rows": 10, "margin": 0.05} | nightly),
    )


def open_store(config: Config) -> Store:
    config.state.mkdir(parents=True, exist_ok=True)
    return Store.open(config.database_url, config.state / "spool", config.store.commit_ms)


def questions(count: int, seed: int) -> list[tuple[str, str]]:
    """(prompt, the teacher's answer)."""
    random_ = random.Random(seed)
    made = []
    for _ in range(count):
        word = random_.choice(sorted(WORDS))
        words = [*random_.sample(FILLER, 6), word]
        random_.shuffle(words)
        made.append((" ".join(words), WORDS[word]))
    return made


def collect(
    store: Store,
    count: int,
    seed: int = 1,
    *,
    sampled: bool = True,
    answer: Callable[[str], str | None] = lambda text: text,
) -> list[str]:
    """Exchanges as the gateway stores them while it collects. Returns their ids."""
    rows = []
    for prompt, text in questions(count, seed):
        body = {"model": "triage", "messages": [{"role": "user", "content": prompt}]}
        raw = json.dumps([seed, body]).encode()
        rows.append(
            Exchange(
                id=new_id("req"),
                dedupe_key=exchanges.dedupe_key("triage", raw),
                at=utcnow(),
                task="triage",
                group_key=exchanges.group_key(prompt),
                prompt=prompt,
                body=body,
                teacher_text=answer(text),
                teacher_model="big",
                route="teacher",
                reason="collect",
                sampled=sampled,
            )
        )
    assert set(store.insert(rows)) <= {"stored", "duplicate"}
    return [row.id for row in rows]


@dataclass
class WordTrainer:
    """Learns which label each word goes with, from its rows; ``blind`` to some words."""

    blind: Sequence[str] = ()
    calls: int = 0
    rows: int = 0

    def __call__(
        self,
        rows: Sequence[Row],
        *,
        base_model: Path,
        out: Path,
        training: Training,
        progress: bool = True,
        done: Callable[[int, float], None] | None = None,
    ) -> TrainReport:
        self.calls += 1
        self.rows = len(rows)
        counts: dict[str, Counter[str]] = defaultdict(Counter)
        for row in rows:
            for word in row.messages[-1]["content"].split():
                if word in WORDS and word not in self.blind:
                    counts[word][row.answer] += 1
        table = {word: labels.most_common(1)[0][0] for word, labels in sorted(counts.items())}
        write_adapter(out, table)
        if done is not None:
            done(1, 2.0)
            done(2, 1.0)
        data = (out / WEIGHTS).read_bytes()
        return TrainReport(
            rows=len(rows),
            dropped=0,
            steps=2,
            tokens=10 * len(rows),
            loss_first=2.0,
            loss_last=1.0,
            seconds=0.1,
            adapter_sha256=hashlib.sha256(data).hexdigest(),
            losses=((1, 2.0), (2, 1.0)),
        )


def write_adapter(folder: Path, table: dict[str, str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / WEIGHTS).write_text(json.dumps(table))
    (folder / CONFIG).write_text("{}\n")


class StudentServer(FakeOpenAI):
    """vLLM with runtime LoRA: knows `v0` and whatever is loaded, and answers by its table."""

    def __init__(self) -> None:
        super().__init__(self.answer, models=("student-base", "v0"), strict_models=True, vllm=True)
        #: while set, requests fail with this status
        self.broken: int | None = None

    def answer(self, body: dict[str, Any]) -> Reply:
        if self.broken is not None:
            return Reply(status=self.broken)
        path = self.adapters.get(body["model"])
        table = json.loads((Path(path) / WEIGHTS).read_text()) if path else {}
        for word in body["messages"][-1]["content"].split():
            if word in table:
                return Reply(text=table[word], logprob=-0.01)
        guess = "hm" if path is None else "delivery"
        return Reply(text=guess, logprob=-2.5)
