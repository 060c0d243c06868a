"""A ledger to try `retort replay` on, and to time it with.

    python benchmarks/replay_ledger.py FOLDER                    # BANKING77 with GPT-4's answers
    python benchmarks/replay_ledger.py FOLDER --rows 1000000     # made-up numbers instead
    retort replay --config FOLDER/retort.yaml --out FOLDER

BANKING77: questions and GPT-4's recorded answers are those of the OCaTS study (stoyian/OCaTS), read
from $RETORT_DATA (default: ../shared/data). The student is a logistic regression on TF-IDF, taught
with GPT-4's answers to 700 questions; the router is fitted and certified on 500 others; the
remaining ones are the traffic, decided by that router and audited by the gateway's own sampler.
Scores, losses and decisions are therefore real. *Simulated* are the times (drawn) and the dollars
(characters / 4 as tokens, at GPT-4's list price of the time).
"""

import argparse
import json
import os
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
from banking77_traffic import SYSTEM, TEACHER, rows
from sqlalchemy import Connection
from sqlmodel import SQLModel

from gateway.config import Config, load
from gateway.lane import sampled
from gateway.prompt import prompt_hash
from gateway.storage import bundles, exchanges
from gateway.storage.line import Line
from gateway.storage.store import Store
from gateway.storage.tables import Exchange, utcnow
from router.artifact import save
from router.decision import Answer, Reason, Route, Token
from router.kept_signals import kept_signals
from router.output import OutputSpec, disagreement
from router.router import Judged, Labelled, Router, fit_router

TAUGHT, CALIBRATION = 700, 500
#: GPT-4 in 2023, dollars per million tokens; and what a small model of one's own may cost
GPT4, STUDENT = (30.0, 60.0), (0.1, 0.1)
AUDIT_RATE = 0.15
CONFIG = """\
state_dir: {state}
teacher: {{base_url: "http://127.0.0.1:9/v1", api_key_env: null}}
student: {{base_url: "http://127.0.0.1:9/v1"}}
tasks:
  - name: banking
    claim: {{model: [gpt-4]}}
    output: {{kind: label, max_tokens: 32}}
    contract: {{max_disagreement: 0.05}}
    audit: {{rate: {rate}}}
"""


@dataclass(frozen=True)
class Student:
    """Answers with an intent and its probability, as one token."""

    vectorizer: Any
    model: Any

    def answers(self, texts: Sequence[str]) -> list[Answer]:
        logs = self.model.predict_log_proba(self.vectorizer.transform(texts))
        found = []
        for row in logs:
            top = tuple(float(value) for value in np.sort(row)[::-1][:5])
            label = str(self.model.classes_[int(row.argmax())])
            found.append(Answer(text=label, tokens=(Token(text=label, logprob=top[0], top=top),)))
        return found


def teach(texts: Sequence[str], labels: Sequence[str]) -> Student:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    model = LogisticRegression(C=20.0, max_iter=300)
    return Student(vectorizer, model.fit(vectorizer.fit_transform(texts), labels))


def banking(folder: Path, seed: int) -> tuple[Router, list[SQLModel | Line]]:
    """The router and the logged traffic."""
    data = Path(os.environ.get("RETORT_DATA", "../shared/data"))
    questions = list(rows(data / TEACHER))
    dice = random.Random(seed)
    dice.shuffle(questions)
    texts, labels = [q["text"] for q in questions], [q["gpt4"] for q in questions]
    held = slice(TAUGHT, TAUGHT + CALIBRATION)
    student = teach(texts[:TAUGHT], labels[:TAUGHT])
    router = fit_router(
        spec=OutputSpec(kind="label", max_tokens=32),
        train=[Labelled(prompt=t, answer=a) for t, a in zip(texts, labels, strict=True)][:TAUGHT],
        calibration=[
            Judged(prompt=prompt, student=draft, teacher=teacher)
            for prompt, draft, teacher in zip(
                texts[held], student.answers(texts[held]), labels[held], strict=True
            )
        ],
        max_disagreement=0.05,
        confidence=0.95,
        ood_epsilon=0.01,
        seed=seed,
    )
    intents = "\n".join(sorted({q["gold"] for q in questions}))
    system = len(SYSTEM.format(intents=intents, out="out_of_scope"))
    live = slice(TAUGHT + CALIBRATION, None)
    drafts = student.answers(texts[live])
    found: list[SQLModel | Line] = []
    for at, (text, draft, said) in enumerate(zip(texts[live], drafts, labels[live], strict=True)):
        found += logged(router, at, text, draft, said, system, dice)
    return router, found


def logged(
    router: Router, at: int, text: str, draft: Answer, said: str, system: int, dice: random.Random
) -> Iterator[SQLModel | Line]:
    """The rows of one request, as the gateway would write them."""
    decision = router.before(text)
    asked = decision.route is Route.STUDENT
    if asked:
        decision = router.after(text, draft, decision.p_ood)
    served = decision.route is Route.STUDENT
    id, moment = f"req-{at:012x}", utcnow() - timedelta(minutes=2000 - at)
    chosen = sampled(id, AUDIT_RATE)
    loss = disagreement(router.spec, draft.text, said)
    student_ms, teacher_ms = 60 * dice.lognormvariate(0, 0.25), 750 * dice.lognormvariate(0, 0.45)
    teacher_usd = cost((system + len(text)) / 4, len(said) / 4, GPT4)
    student_usd = cost(len(text) / 4, len(draft.text) / 4, STUDENT) if asked else 0.0
    common: dict[str, Any] = {
        "at": moment,
        "task": "banking",
        "reason": decision.reason.value,
        "bundle": "",
        "score": decision.score,
        "p_ood": decision.p_ood,
        "sampled": chosen,
        "propensity": AUDIT_RATE,
    }
    yield Line(
        id=id,
        route=decision.route.value,
        status=200,
        loss=loss if asked and not served else None,
        student_usd=student_usd,
        teacher_usd=0.0 if served else teacher_usd,
        cost_usd=student_usd + (0.0 if served else teacher_usd),
        teacher_cost_usd=teacher_usd,
        estimated=served,
        student_ms=student_ms if asked else None,
        teacher_ms=None if served else teacher_ms,
        duration_ms=(student_ms if asked else 0.0) + (0.0 if served else teacher_ms),
        **common,
    )
    if served and not chosen:
        return
    if served:
        audit = {"route": Route.TEACHER.value, "status": 200, "kind": "audit", "parent": id}
        yield Line(
            id=f"{id}-audit",
            loss=loss,
            teacher_usd=teacher_usd,
            cost_usd=teacher_usd,
            teacher_ms=teacher_ms,
            duration_ms=teacher_ms,
            **audit,
            **common,
        )
    body = {"messages": [{"role": "user", "content": text}]}
    yield Exchange(
        id=id,
        dedupe_key=exchanges.dedupe_key("banking", f"{at} {text}".encode()),
        group_key=exchanges.group_key(text, body),
        prompt=text,
        body=body,
        teacher_text=said,
        student_text=draft.text if asked else None,
        route=decision.route.value,
        loss=loss if asked else None,
        signals=kept_signals(router.spec, draft) if asked else None,
        **common,
    )


def cost(prompt: float, answer: float, price: tuple[float, float]) -> float:
    return (prompt * price[0] + answer * price[1]) / 1e6


def made_up(count: int, threshold: float, seed: int, chunk: int = 20_000) -> Iterator[list[Line]]:
    """Binormal scores: drafts are wrong with 8 %, and wrong ones score lower (AUROC about 0.9)."""
    rng = np.random.default_rng(seed)
    now = utcnow()
    for start in range(0, count, chunk):
        size = min(chunk, count - start)
        wrong = rng.random(size) < 0.08
        scores = 1 / (1 + np.exp(-(rng.normal(3.0, 1.3, size) - 2.4 * wrong)))
        served, drawn = scores >= threshold, rng.random(size) < 0.02
        strange = rng.random(size) < 0.01
        student_ms = rng.lognormal(4.0, 0.3, size)
        teacher_ms = rng.lognormal(6.6, 0.5, size)
        lines = []
        for at in range(size):
            id = f"req-{start + at:012x}"
            out, mine = bool(strange[at]), bool(served[at]) and not strange[at]
            reason = Reason.OOD if out else Reason.TRUSTED if mine else Reason.UNSURE
            common: dict[str, Any] = {
                "at": now - timedelta(seconds=(count - start - at) * 0.1),
                "task": "banking",
                "bundle": "",
                "reason": reason.value,
                "status": 200,
                "score": None if out else float(scores[at]),
                "sampled": bool(drawn[at]),
                "propensity": 0.02,
            }
            lines.append(
                Line(
                    id=id,
                    route=(Route.STUDENT if mine else Route.TEACHER).value,
                    loss=None if mine or out else float(wrong[at]),
                    student_usd=0.0 if out else 2e-6,
                    teacher_usd=0.0 if mine else 4e-3,
                    teacher_cost_usd=4e-3,
                    student_ms=None if out else float(student_ms[at]),
                    teacher_ms=None if mine else float(teacher_ms[at]),
                    duration_ms=1.0,
                    **common,
                )
            )
            if mine and drawn[at]:
                lines.append(
                    Line(
                        id=f"{id}-audit",
                        kind="audit",
                        parent=id,
                        route=Route.TEACHER.value,
                        loss=float(wrong[at]),
                        teacher_usd=4e-3,
                        teacher_ms=float(teacher_ms[at]),
                        duration_ms=1.0,
                        **common,
                    )
                )
        yield lines


def bundle(config: Config, store: Store, folder: Path, router: Router) -> str:
    """Write, register and promote it; its adapter is an empty stand-in."""
    adapter = folder / "adapter"
    adapter.mkdir(parents=True, exist_ok=True)
    (adapter / "adapter_config.json").write_text("{}")
    save(router, folder / "router")
    files = bundles.write_bundle(
        config.state / "bundles",
        task="banking",
        adapter_dir=adapter,
        router_dir=folder / "router",
        base_model="logistic regression",
        prompt_hash=prompt_hash(config.task("banking").prompt),
        dataset_id="ocats",
        detail={},
    )
    bundles.register(store, files)
    bundles.promote(store, files.id)
    return files.id


def insert(connection: Connection, lines: Sequence[Line]) -> None:
    table = SQLModel.metadata.tables["request"]
    names = [column.name for column in table.columns]
    values = [{name: getattr(line, name) for name in names} for line in lines]
    connection.execute(table.insert(), values)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, help="so many made-up requests instead")
    parser.add_argument("--database", help="URL, in place of SQLite in the folder")
    parser.add_argument("--seed", type=int, default=17)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    path = args.folder / "retort.yaml"
    text = CONFIG.format(state=json.dumps(str(args.folder / "state")), rate=AUDIT_RATE)
    if args.database:
        text += f"store: {{url: {json.dumps(args.database)}}}\n"
    path.write_text(text)
    config = load(path)
    router, found = banking(args.folder, args.seed)
    with Store.open(config.database_url, config.state / "spool") as store:
        id = bundle(config, store, args.folder / "parts", router)
        if args.rows is None:
            for row in found:
                row.bundle = id  # type: ignore[union-attr]
            store.insert(found)
        else:
            with store.engine.begin() as connection:
                for lines in made_up(args.rows, router.threshold, args.seed):
                    for line in lines:
                        line.bundle = id
                    insert(connection, lines)
    print(f"{path}: threshold {router.threshold:.4f}, bundle {id}")


if __name__ == "__main__":
    main()
