"""The whole demo with a student that is quick: everything else in it is real."""

import hashlib
import json
import re
import socket
from pathlib import Path
from typing import Any

import pytest
from fake_openai import FakeOpenAI, Reply

from retrain.adapter_files import CONFIG, WEIGHTS
from retrain.demo.options import Options, Plan
from retrain.demo.run import run_demo
from retrain.errors import StudentError
from retrain.train import TrainReport


class Parrot(FakeOpenAI):
    """vLLM whose adapters are tables: it answers like the most similar ticket it was trained on,
    and is the surer the more similar that is."""

    def __init__(self) -> None:
        super().__init__(self.answer, models=("student-base", "v0"), strict_models=True, vllm=True)
        self.tables: dict[str, list[tuple[frozenset[str], str]]] = {}
        self.checks = 0

    @property
    def base_url(self) -> str:
        return self.url

    def check(self) -> None:
        self.checks += 1
        if self.checks > 2:
            raise StudentError("the student server ended: enough")

    def answer(self, body: dict[str, Any]) -> Reply:
        path = self.adapters.get(body["model"])
        if path is None:
            return Reply(text="Sure! I can help with that.", logprob=-1.5)
        if path not in self.tables:
            rows = json.loads((Path(path) / WEIGHTS).read_text())
            self.tables[path] = [(pieces(text), answer) for text, answer in rows]
        asked = pieces(body["messages"][-1]["content"])
        alike, text = max(
            (len(asked & known) / len(asked | known), answer) for known, answer in self.tables[path]
        )
        return Reply(text=text, logprob=-2.5 * (1.0 - alike) ** 2)


def pieces(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"[a-z]{3,}", text.lower()))


def memorise(rows, *, base_model, out, training, progress=True, done=None) -> TrainReport:
    out.mkdir(parents=True, exist_ok=True)
    data = json.dumps([(row.messages[-1]["content"], row.answer) for row in rows])
    (out / WEIGHTS).write_text(data)
    (out / CONFIG).write_text("{}\n")
    return TrainReport(
        rows=len(rows),
        dropped=0,
        steps=1,
        tokens=len(data),
        loss_first=2.0,
        loss_last=1.0,
        seconds=0.1,
        adapter_sha256=hashlib.sha256(data.encode()).hexdigest(),
        losses=((1, 1.0),),
    )


@pytest.fixture
def student():
    with FakeOpenAI() as unused:  # a port that is surely bound, then free for the parrot
        port = unused.port
    parrot = Parrot()
    parrot.port = port
    return parrot


@pytest.mark.slow
def test_eight_steps_end_in_a_table_a_report_and_nothing_left_running(
    tmp_path, student, capsys, monkeypatch
):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    options = Options(
        plan=Plan(
            collect=300,
            serve=50,
            max_train_rows=200,
            epochs=1.0,
            max_disagreement=0.15,
            ood_epsilon=0.03,
        ),
        port=0,
        home=tmp_path,
        report=tmp_path / "report.html",
    )
    # the gateway stays up until the student, checked twice a second, is said to have ended
    with pytest.raises(StudentError, match="enough"):
        run_demo(
            options,
            prepare=lambda options, folder: (student, Path("tiny-parrot")),
            train=memorise,
            pace=0.02,
        )
    out = capsys.readouterr().out
    assert re.findall(r"^\[(\d)/8\] (\w+):", out, re.MULTILINE) == [
        ("1", "prepare"),
        ("2", "teacher"),
        ("3", "collect"),
        ("4", "distil"),
        ("5", "calibrate"),
        ("6", "serve"),
        ("7", "nightly"),
        ("8", "replay"),
    ]
    assert "RECORDING" in out and "verdict: promote" in out and "Certificate: " in out
    (folder,) = (tmp_path / "demo").iterdir()
    columns = json.loads((folder / "table.json").read_text())["columns"]
    assert [column["name"] for column in columns] == ["teacher only", "round 1", "round 2"]
    assert columns[0]["answered"] == 300 and columns[0]["coverage"]["hits"] == 0
    assert columns[1]["answered"] == columns[2]["answered"] == 50
    assert columns[1]["coverage"]["hits"] > 0, "the parrot is certified for something"
    assert 0 < columns[1]["usd_per_1000"] < columns[0]["usd_per_1000"]
    assert "mode: collect" not in (folder / "retort.yaml").read_text()
    assert "<svg" in (tmp_path / "report.html").read_text()

    lines = re.search(r"another terminal:\n\n  (.*)\n  (.*)\n  (.*)\n", out)
    assert lines is not None and lines[1] == "import json, openai"
    assert "base_url=" in lines[2] and "messages=json.load(open(" in lines[3]

    assert not (folder / "state" / "gateway.json").exists(), "the gateway has gone"
    with pytest.raises(OSError), socket.create_connection(("127.0.0.1", student.port), 1):
        pass
