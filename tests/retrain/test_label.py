"""Raw inputs become rows of the queue with the teacher's answers: each once, none lost."""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from batch_server import BatchServer
from fake_openai import FakeOpenAI, Reply
from sqlmodel import select

from gateway.app import make_chain
from gateway.config import Config, load
from gateway.lane import output_spec
from gateway.money.prices import PriceBook
from gateway.storage import exchanges
from gateway.storage.store import Store
from gateway.storage.tables import Exchange, Request
from retrain.cli import main
from retrain.errors import TrafficError
from retrain.label import Labelling, label
from retrain.label_batch import BatchApi, label_in_batches
from retrain.label_inputs import Asking, read_inputs

ASKING = Asking(model="gpt-large", system="Which queue?")
CONFIG = """\
state_dir: {state}
teacher:
  base_url: "{teacher}"
  api_key_env: null
  model: gpt-large
  price: {{input_usd: 1.0, output_usd: 2.0}}
student: {{base_url: "http://127.0.0.1:9/v1"}}
tasks:
  - name: triage
    claim: {{model: [triage]}}
    output: {{kind: label, labels: [parcel, refund]}}
"""


@pytest.fixture
def teacher() -> Iterator[FakeOpenAI]:
    with FakeOpenAI(models=("gpt-large",)) as server:
        server.reply = lambda body: "refund" if "money" in str(body["messages"]) else "parcel"
        yield server


@pytest.fixture
def configured(tmp_path: Path) -> Callable[[str], Path]:
    def write(url: str) -> Path:
        path = tmp_path / "retort.yaml"
        path.write_text(CONFIG.format(state=tmp_path / "state", teacher=url))
        return path

    return write


def labelling(config: Config, store: Store, **more: Any) -> Labelling:
    task = config.task("triage")
    prices = PriceBook(config)
    prices.open()
    spec = output_spec(task.output)
    return Labelling(config=config, task=task, store=store, prices=prices, spec=spec, **more)


def inputs(*texts: str) -> list[dict[str, Any]]:
    return [
        {
            "model": "gpt-large",
            "messages": [
                {"role": "system", "content": "Which queue?"},
                {"role": "user", "content": text},
            ],
        }
        for text in texts
    ]


def rows(store: Store) -> list[Exchange]:
    with store.session() as session:
        return list(session.exec(select(Exchange)))


def test_each_input_is_asked_once_and_kept_with_its_cost(
    configured: Callable[[str], Path], teacher: FakeOpenAI, store: Store
) -> None:
    config = load(configured(teacher.url))
    run, chain = labelling(config, store), make_chain(config.teacher, pass_key=False)
    asked = inputs("where is it?", "my money, please", "where is it?")
    first = label(run, chain, asked, show=False)
    assert (first.labelled, first.invalid, first.known, first.left) == (2, 0, 1, 0)
    assert {row.prompt: row.teacher_text for row in rows(store)} == {
        "where is it?": "parcel",
        "my money, please": "refund",
    }
    assert all(row.sampled and row.reason == "collect" for row in rows(store))
    with store.session() as session:
        lines = session.exec(select(Request).where(Request.kind == "label")).all()
    assert first.usd == pytest.approx(sum(line.teacher_usd or 0.0 for line in lines))
    assert len(lines) == 2 and first.usd > 0
    again = label(run, make_chain(config.teacher, pass_key=False), asked, show=False)
    assert (again.labelled, again.known) == (0, 3)
    assert len(teacher.chats) == 2


def test_a_rate_limit_is_waited_out_and_nothing_is_lost(
    configured: Callable[[str], Path], teacher: FakeOpenAI, store: Store
) -> None:
    count = iter(range(1000))

    def limited(body: dict[str, Any]) -> Reply:
        if next(count) % 3 == 0:
            return Reply(status=429, headers={"retry-after-ms": "20"})
        return Reply(text="parcel")

    teacher.reply = limited
    config = load(configured(teacher.url))
    section = config.teacher.model_copy(update={"retries": 0})
    chain = make_chain(section, pass_key=False)
    tally = label(labelling(config, store), chain, inputs(*map(str, range(20))), show=False)
    assert (tally.labelled, tally.failed, tally.why) == (20, 0, None)


def test_refusals_are_kept_so_that_they_are_not_paid_twice(
    configured: Callable[[str], Path], teacher: FakeOpenAI, store: Store
) -> None:
    teacher.reply = Reply(text=None, message={"refusal": "no"})
    config = load(configured(teacher.url))
    for known in (0, 1):
        chain = make_chain(config.teacher, pass_key=False)
        tally = label(labelling(config, store), chain, inputs("how to …"), show=False)
        assert (tally.refused, tally.known) == (1 - known, known)
    assert [row.teacher_text for row in rows(store)] == [None]


def test_it_stops_at_its_budget_and_goes_on_from_there(
    configured: Callable[[str], Path], teacher: FakeOpenAI, store: Store
) -> None:
    config = load(configured(teacher.url))
    asked = inputs(*map(str, range(12)))
    chain = make_chain(config.teacher, pass_key=False)
    tally = label(labelling(config, store, concurrency=1, max_usd=1e-9), chain, asked, show=False)
    assert (tally.labelled, tally.left) == (1, 11)
    assert tally.why is not None and "spent" in tally.why
    chain = make_chain(config.teacher, pass_key=False)
    assert label(labelling(config, store), chain, asked, show=False).labelled == 11


def test_a_refused_key_ends_the_run_at_once(
    configured: Callable[[str], Path], teacher: FakeOpenAI, store: Store
) -> None:
    teacher.reply = Reply(status=401)
    config = load(configured(teacher.url))
    chain = make_chain(config.teacher, pass_key=False)
    tally = label(labelling(config, store, concurrency=1), chain, inputs("a", "b", "c"), show=False)
    assert (tally.failed, tally.left) == (1, 2)
    assert tally.why is not None and "key" in tally.why


def test_made_up_inputs_teach_but_prove_nothing(
    configured: Callable[[str], Path], teacher: FakeOpenAI, store: Store
) -> None:
    config = load(configured(teacher.url))
    chain = make_chain(config.teacher, pass_key=False)
    label(labelling(config, store, real=False), chain, inputs("x"), show=False)
    assert [row.sampled for row in rows(store)] == [False]


def test_a_batch_is_found_again_after_a_stop_and_paid_once(
    configured: Callable[[str], Path], store: Store, tmp_path: Path
) -> None:
    def answer(body: dict[str, Any]) -> dict[str, Any] | None:
        if body["messages"][-1]["content"] == "bad":
            return None
        choice = {"message": {"content": "parcel"}, "finish_reason": "stop"}
        usage = {"prompt_tokens": 1000, "completion_tokens": 0}
        return {"model": "gpt-large", "choices": [choice], "usage": usage}

    with BatchServer(answer, looks=2) as server:
        config = load(configured(server.url))
        run = labelling(config, store, price_share=0.5)
        api = BatchApi(base_url=server.url, key=None, poll_s=0.01)
        asked, state = inputs("a", "b", "bad"), tmp_path / "batches.json"
        handed_in = {"batch-0": [run.key(body) for body in asked]}
        tally = label_in_batches(run, api, asked, state, show=False)
        assert (tally.labelled, tally.failed) == (2, 1)
        # half of a dollar a million
        assert tally.usd == pytest.approx(2 * 1000 * 0.5 / 1e6)
        assert json.loads(state.read_text()) == {}
        # as if it had been stopped while the batch was under way
        state.write_text(json.dumps(handed_in))
        again = label_in_batches(run, api, asked, state, show=False)
        assert len(server.batches) == 1
        assert len(rows(store)) == 2 and again.failed == 1
        with store.session() as session:
            assert len(session.exec(select(Request)).all()) == 2


@pytest.mark.parametrize(
    ("name", "content", "error"),
    [
        ("a.jsonl", '{"text": "a"}\n{"messages": []}\n', ":2: messages is empty"),
        ("a.jsonl", "[1]\n", ":1: not a JSON object"),
        ("a.jsonl", '{"messages": [{"role": "assistant", "content": "x"}]}\n', "queue import"),
        ("a.jsonl", '{"prompt": "x"}\n', "neither messages nor text"),
        ("a.jsonl", "\n\n", "no inputs"),
    ],
)
def test_bad_inputs_are_named_with_their_line(
    tmp_path: Path, name: str, content: str, error: str
) -> None:
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(TrafficError, match=error):
        read_inputs(path, ASKING)


def test_the_teachers_prompt_goes_before_what_has_none(tmp_path: Path) -> None:
    path = tmp_path / "inputs.txt"
    path.write_text("one\n\ntwo\n")
    assert read_inputs(path, ASKING) == [
        body | {"temperature": 0.0} for body in inputs("one", "two")
    ]
    path = tmp_path / "inputs.jsonl"
    own = [{"role": "system", "content": "mine"}, {"role": "user", "content": "x"}]
    path.write_text(json.dumps({"messages": own, "gold": {"a": 1}}) + "\n")
    (body,) = read_inputs(path, Asking(model="m", system="theirs", json=True, logprobs=5))
    assert body["messages"] == own
    assert body["metadata"] == {"gold": '{"a": 1}'}
    assert body["response_format"] == {"type": "json_object"}
    assert (body["logprobs"], body["top_logprobs"]) == (True, 5)


def test_the_command_says_what_it_would_cost_and_what_it_did(
    configured: Callable[[str], Path],
    teacher: FakeOpenAI,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = configured(teacher.url)
    path = tmp_path / "inputs.txt"
    path.write_text("where is it?\nmy money\n")
    arguments = ["label", str(path), "--config", str(config)]
    assert main([*arguments, "--dry-run"]) == 0
    assert "2 of 2 inputs are new: about $0.00" in capsys.readouterr().out
    assert teacher.chats == []
    assert main(arguments) == 0
    assert "labelled 2 (0 against the output rules)" in capsys.readouterr().out
    with ExitStack() as stack:
        loaded = load(config)
        store = stack.enter_context(Store.open(loaded.database_url, loaded.state / "spool"))
        assert sum(exchanges.counts(store, "triage").values()) == 2
    assert main(["label", str(tmp_path / "none.txt"), "--config", str(config)]) == 1
    assert "none.txt: cannot be read" in capsys.readouterr().err
