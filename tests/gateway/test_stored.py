"""Chat completions with ``store: true``: kept as received, the caller's own, gone when deleted."""

import json
import logging
from pathlib import Path
from typing import Any

import openai
import pytest
from fake_openai import FakeOpenAI, Reply
from outage import outage
from running_gateway import RunningGateway, wait_until
from small_bundle import SURE, UNSURE
from sqlmodel import select
from triage import BODY, MESSAGES, Start

from gateway.storage import exchanges
from gateway.storage.store import Store
from gateway.storage.tables import State, StoredCompletion
from gateway.wire.assembly import read_stream

CHAT = "/v1/chat/completions"
STORE = BODY | {"store": True}


@pytest.fixture
def gateway(database_url: str, start: Start) -> RunningGateway:
    """Collects, on a database of each kind."""
    return start(sections={"store": {"url": database_url}})


def asked(gateway: RunningGateway, **more: Any) -> str:
    """One stored completion; its id."""
    status, _, data = gateway.send("POST", CHAT, STORE | more)
    assert status == 200, data
    made: str = json.loads(data)["id"]
    return made


def stored(store: Store) -> list[StoredCompletion]:
    with store.session() as session:
        return list(session.exec(select(StoredCompletion).order_by(StoredCompletion.id)))


def test_the_official_client_lists_reads_updates_and_deletes(gateway: RunningGateway) -> None:
    client = gateway.client()
    answer = client.chat.completions.create(
        model="gpt-large", messages=MESSAGES, store=True, metadata={"ticket": "1"}, seed=7
    )
    completions = client.chat.completions
    kept = completions.retrieve(answer.id)
    assert kept.choices[0].message.content == "parcel"
    assert kept.usage == answer.usage
    assert kept.model_extra is not None
    assert kept.metadata == {"ticket": "1"}
    assert kept.model_extra["seed"] == 7
    assert kept.model_extra["request_id"] == answer._request_id
    said = completions.messages.list(answer.id)
    assert [(m.id, m.role, m.content) for m in said] == [
        (f"{answer.id}-0", "system", MESSAGES[0]["content"]),
        (f"{answer.id}-1", "user", MESSAGES[1]["content"]),
    ]
    updated = completions.update(answer.id, metadata={"ticket": "2"})
    assert updated.metadata == {"ticket": "2"}
    assert [c.id for c in completions.list(metadata={"ticket": "2"})] == [answer.id]
    assert list(completions.list(metadata={"ticket": "1"})) == []
    gone = completions.delete(answer.id)
    assert (gone.id, gone.deleted, gone.object) == (answer.id, True, "chat.completion.deleted")
    for again in (completions.retrieve, completions.delete, completions.messages.list):
        with pytest.raises(openai.NotFoundError):
            again(answer.id)
    assert list(completions.list()) == []


def test_lists_are_filtered_ordered_and_paged(gateway: RunningGateway) -> None:
    odd = 'é "quoted" \\ % _ \0'
    made = [
        asked(gateway, user=str(n), metadata={"n": str(n), odd: "Up", "even": "yn"[n % 2]})
        for n in range(5)
    ]
    completions = gateway.client().chat.completions
    assert [c.id for c in completions.list(limit=2)] == made  # three pages
    assert [c.id for c in completions.list(limit=2, order="desc")] == made[::-1]
    page = completions.list(limit=2, after=made[0])
    body = json.loads(gateway.send("GET", f"{CHAT}?limit=2&after={made[0]}")[2])
    assert [c.id for c in page.data] == made[1:3]
    assert (body["object"], body["first_id"], body["last_id"], body["has_more"]) == (
        *("list", made[1], made[2], True),
    )
    assert [c.id for c in completions.list(metadata={"even": "y"})] == made[::2]
    assert [c.id for c in completions.list(metadata={"even": "n", "n": "3"})] == [made[3]]
    assert len(list(completions.list(metadata={odd: "Up"}))) == 5
    assert list(completions.list(metadata={odd: "up"})) == []
    assert len(list(completions.list(model="gpt-large"))) == 5
    assert list(completions.list(model="gpt-small")) == []
    assert completions.list(limit=0).data == []
    assert completions.list(after="nobody-knows").data == []
    # a list that is deleted as it is read goes on where it was
    completions.delete(made[1])
    assert [c.id for c in completions.list(after=made[1])] == made[2:]
    messages = completions.messages.list(made[0], limit=1)
    assert [m.role for m in messages] == ["system", "user"]
    newest = completions.messages.list(made[0], order="desc", limit=1)
    assert [m.role for m in newest.data] == ["user"] and newest.has_more
    for query in ("limit=101", "limit=-1", "limit=x", "order=up"):
        status, _, data = gateway.send("GET", f"{CHAT}?{query}")
        assert (status, json.loads(data)["error"]["param"]) == (400, query.split("=")[0])
    for path in (f"{CHAT}/%00%ff", f"{CHAT}?after=%00&model=%00&metadata[%00]=%00"):
        assert gateway.send("GET", path)[0] == 200  # the fake teacher knows everything


def test_rows_belong_to_their_caller(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APP_KEYS", "one,two")
    gateway = start(sections={"server": {"api_keys_env": "APP_KEYS"}})
    mine, others = gateway.client("one").chat.completions, gateway.client("two").chat.completions
    made = mine.create(model="gpt-large", messages=MESSAGES, store=True)
    # the same request of another caller is another completion
    theirs = others.create(model="gpt-large", messages=MESSAGES, store=True)
    assert [c.id for c in mine.list()] == [made.id]
    for call in (others.retrieve, others.delete, others.messages.list):
        with pytest.raises(openai.NotFoundError):
            call(made.id)
    with pytest.raises(openai.NotFoundError):
        others.update(made.id, metadata={"a": "b"})
    # nor does their deletion take the row of the queue, which is the first caller's
    others.delete(theirs.id)
    assert gateway.exchanges()[0].prompt != ""
    assert mine.retrieve(made.id).id == made.id


@pytest.mark.parametrize("stream", [False, True])
def test_a_student_s_answer_is_stored_too(
    serving: Start, teacher: FakeOpenAI, stream: bool
) -> None:
    gateway = serving()
    status, headers, data = gateway.send("POST", CHAT, STORE | {"stream": stream})
    assert (status, headers["x-retort-route"]) == (200, "student")
    (row,) = stored(gateway.store)
    assert (row.id, row.route) == (headers["x-request-id"], "student")
    assert row.completion_id.encode() in data
    assert row.answer["choices"][0]["message"]["content"] == "parcel"
    assert row.answer["usage"]["total_tokens"] > 0
    # what only the gate needed is not in it
    assert row.answer["choices"][0]["logprobs"] is None
    kept = gateway.client().chat.completions.retrieve(row.completion_id)
    assert kept.model == "gpt-large" and kept.object == "chat.completion"
    gateway.client().chat.completions.delete(row.completion_id)
    assert not [r for r in teacher.requests if r.method == "DELETE"]
    (erased,) = gateway.exchanges()  # so that no audit brings the text back
    assert (erased.id, erased.state) == (row.id, State.ERASED)


def test_a_stream_is_stored_as_the_completion_it_makes_up(
    start: Start, teacher: FakeOpenAI
) -> None:
    gateway = start()
    teacher.reply = Reply(text="one two three")
    body = STORE | {"stream": True, "n": 2, "logprobs": True}
    _, _, data = gateway.send("POST", CHAT, body)
    assert data.endswith(b"data: [DONE]\n\n")
    (row,) = stored(gateway.store)
    assert [c["message"]["content"] for c in row.answer["choices"]] == ["one two three"] * 2
    assert [c["index"] for c in row.answer["choices"]] == [0, 1]
    assert [t["token"] for t in row.answer["choices"][0]["logprobs"]["content"]] == [
        *("one", " two", " three"),
    ]
    assert row.answer["object"] == "chat.completion"
    assert row.answer["usage"]["completion_tokens"] > 0  # which the client did not ask to see


def test_an_answer_that_failed_is_not_stored(start: Start, teacher: FakeOpenAI) -> None:
    gateway = start()
    teacher.reply = Reply(text="one two three", cut_after=1)
    _, _, data = gateway.send("POST", CHAT, STORE | {"stream": True})
    assert b'"error"' in data
    teacher.reply = Reply(status=400)
    assert gateway.send("POST", CHAT, STORE)[0] == 400
    assert stored(gateway.store) == []


def test_tool_calls_come_back_in_one_piece() -> None:
    def chunk(delta: dict[str, Any], finish: str | None = None) -> str:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        return f"data: {json.dumps({'id': 'c', 'model': 'm', 'choices': [choice]})}"

    def call(index: int, arguments: str, **more: Any) -> dict[str, Any]:
        function = {"arguments": arguments} | ({"name": more.pop("name")} if more else {})
        return {"index": index, "function": function, **more}

    chunks = [
        chunk({"role": "assistant", "content": None, "tool_calls": [
            call(0, "", name="where", id="a", type="function"),
        ]}),
        chunk({"tool_calls": [
            call(0, '{"city":'), call(1, "{}", name="when", id="b", type="function"),
        ]}),
        chunk({"tool_calls": [call(0, ' "Ulm"}')]}),
        chunk({}, "tool_calls"),
        "data: [DONE]",
    ]  # fmt: skip
    answer = read_stream("\r\n\r\n".join([": hello", *chunks, ""]).encode())
    assert answer is not None
    assert answer["choices"][0]["finish_reason"] == "tool_calls"
    message = answer["choices"][0]["message"]
    assert message == {
        "role": "assistant",
        "content": None,
        "refusal": None,
        "tool_calls": [
            {
                "id": "a",
                "type": "function",
                "function": {"name": "where", "arguments": '{"city": "Ulm"}'},
            },
            {"id": "b", "type": "function", "function": {"name": "when", "arguments": "{}"}},
        ],
    }
    assert read_stream("\n\n".join(chunks[:-2]).encode()) is None


@pytest.mark.parametrize(
    "chunk",
    [
        "7",
        "{",
        '{"error": {"message": "no"}}',
        '{"choices": [7]}',
        '{"choices": [{"index": [], "delta": {}, "finish_reason": "stop"}]}',
        '{"choices": [{"index": 0, "delta": "x", "finish_reason": "stop"}]}',
        '{"choices": [{"delta": {"tool_calls": [7]}, "finish_reason": "stop"}]}',
        '{"choices": [{"delta": %s, "finish_reason": "stop"}]}'
        % ('{"a": ' * 1000 + "1" + "}" * 1000),
    ],
)
def test_a_stream_of_something_else_is_not_stored(chunk: str) -> None:
    assert read_stream(f"data: {chunk}\n\ndata: [DONE]\n\n".encode()) is None


def test_deleting_erases_the_row_of_the_queue_and_the_teachers_copy(
    gateway: RunningGateway, teacher: FakeOpenAI
) -> None:
    canary = "canary-4711"
    messages = [MESSAGES[0], {"role": "user", "content": f"where is {canary}"}]
    first = asked(gateway, messages=messages, metadata={"who": canary})
    # the same again is another completion of the same row
    second = asked(gateway, messages=messages, metadata={"who": canary})
    (row,) = gateway.exchanges()
    assert canary in row.prompt and row.seen == 2
    gateway.client().chat.completions.delete(second)
    (row,) = gateway.exchanges()
    assert (row.state, row.prompt, row.body, row.teacher_text) == (State.ERASED, "", {}, None)
    _, events = exchanges.show(gateway.store, row.id)
    assert events[-1].detail == "stored completion deleted"
    assert [r.path for r in teacher.requests if r.method == "DELETE"] == [f"{CHAT}/{second}"]
    gateway.client().chat.completions.delete(first)
    if gateway.store.engine.dialect.name == "sqlite":
        assert canary not in files_of(gateway)


def files_of(gateway: RunningGateway) -> str:
    """All bytes of the database file and everything beside it, the spool included."""
    folder = gateway.config.state
    database = gateway.store.engine.url.database or ""
    paths = {*Path(database).parent.glob(f"{Path(database).name}*"), *folder.rglob("*")}
    return b"".join(path.read_bytes() for path in paths if path.is_file()).decode("latin-1")


def test_an_operators_erasure_takes_the_stored_copies_along(gateway: RunningGateway) -> None:
    made = asked(gateway)
    erasure = exchanges.erase(gateway.store, [gateway.exchange().id])
    assert (erasure.rows, erasure.completions) == (1, 1)
    assert [(row.body, row.answer, row.deleted) for row in stored(gateway.store)] == [
        ({}, {}, True)
    ]
    assert gateway.send("GET", f"{CHAT}/{made}")[0] == 404


def test_ids_that_are_not_ours_are_the_teachers(start: Start) -> None:
    gateway = start()
    for method, path in (("GET", ""), ("POST", ""), ("DELETE", ""), ("GET", "/messages")):
        body = {"metadata": {}} if method == "POST" else b""
        status, headers, data = gateway.send(method, f"{CHAT}/chatcmpl-old{path}", body)
        assert (status, headers["x-retort-reason"]) == (200, "unclaimed")
        assert json.loads(data)["path"] == f"{CHAT}/chatcmpl-old{path}"


def test_without_a_task_the_list_is_the_teachers(start: Start, teacher: FakeOpenAI) -> None:
    config = start().config.model_copy(update={"tasks": []})
    with RunningGateway(config) as gateway:
        _, headers, _ = gateway.send("GET", f"{CHAT}?limit=3")
    assert headers["x-retort-reason"] == "unclaimed"
    assert (teacher.requests[-1].method, teacher.requests[-1].path) == ("GET", CHAT)
    assert teacher.requests[-1].query == "limit=3"


BAD_METADATA: list[tuple[Any, str]] = [
    ({str(n): "x" for n in range(17)}, "metadata"),
    ({"k" * 65: "x"}, "metadata"),
    ({"k": "x" * 513}, "metadata.k"),
    ({"k": 1}, "metadata.k"),
    (["k"], "metadata"),
]


def test_metadata_has_openais_limits_where_it_is_stored(start: Start, teacher: FakeOpenAI) -> None:
    gateway = start()
    for metadata, param in BAD_METADATA:
        status, _, data = gateway.send("POST", CHAT, STORE | {"metadata": metadata})
        assert (status, json.loads(data)["error"]["param"]) == (400, param)
    assert teacher.chats == []
    made = asked(gateway, metadata={"k" * 64: "x" * 512} | {str(n): "" for n in range(15)})
    for metadata, _ in BAD_METADATA:
        assert gateway.send("POST", CHAT, BODY | {"metadata": metadata})[0] == 200
        assert gateway.send("POST", f"{CHAT}/{made}", {"metadata": metadata})[0] == 400


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("why", ["body", "header", "task"])
def test_what_must_not_be_kept_is_kept_nowhere(
    serving: Start, student: FakeOpenAI, caplog: pytest.LogCaptureFixture, why: str, stream: bool
) -> None:
    caplog.set_level(logging.DEBUG)
    canary = "canary-0815"
    gateway = serving(audit_rate=1.0, store_payloads=why != "task")
    headers = {"x-retort-no-store": "1"} if why == "header" else {}
    body = {**BODY, "store": why != "body", "stream": stream, "metadata": {"who": canary}}
    body["messages"] = [*MESSAGES[:1], {"role": "user", "content": f"where is my parcel {canary}"}]
    student.reply = Reply(text="parcel", logprob=SURE)
    first = gateway.send("POST", CHAT, body, headers | {"x-retort-route": "student"})
    student.reply = Reply(text="refund", logprob=UNSURE)
    second = gateway.send("POST", CHAT, body, headers)
    assert [sent[1]["x-retort-route"] for sent in (first, second)] == ["student", "teacher"]
    with outage(gateway.store, None):
        gateway.send("POST", CHAT, body, headers)  # and now to the spool
    gateway.ledger(3)
    gateway.stop()
    assert canary not in files_of(gateway)
    assert canary not in caplog.text + "".join(str(record.__dict__) for record in caplog.records)


def test_the_same_canary_is_found_where_it_may_be_kept(start: Start) -> None:
    """Or the test above could not fail."""
    gateway = start()
    asked(gateway, metadata={"who": "canary-0815"})
    assert "canary-0815" in files_of(gateway)


def test_while_the_database_is_away_completions_wait_on_local_disk(start: Start) -> None:
    gateway = start()
    with outage(gateway.store, None):
        made = asked(gateway)
        wait_until(lambda: not gateway.store.healthy)
        status, headers, _ = gateway.send("GET", f"{CHAT}/{made}")
        assert (status, headers["x-should-retry"]) == (503, "true")
        assert gateway.send("GET", CHAT)[0] == 503
    wait_until(lambda: [row.completion_id for row in stored(gateway.store)] == [made], 20)


def test_a_request_without_store_leaves_no_completion(start: Start) -> None:
    gateway = start()
    assert gateway.send("POST", CHAT, BODY)[0] == 200
    assert len(gateway.exchanges()) == 1
    assert stored(gateway.store) == []


def test_an_id_given_twice_is_listed_twice_and_deleted_at_once(
    gateway: RunningGateway, teacher: FakeOpenAI
) -> None:
    choice = {"index": 0, "message": {"role": "assistant", "content": "x"}, "finish_reason": "stop"}
    answer = {"id": "chatcmpl-same", "object": "chat.completion", "created": 1, "model": "m"}
    teacher.reply = Reply(raw=json.dumps(answer | {"choices": [choice]}).encode())
    for n in range(3):
        asked(gateway, user=str(n))
    completions = gateway.client().chat.completions
    for order in ("asc", "desc"):
        assert len(completions.list(order=order).data) == 3
        # and a reader who goes on from that id comes to an end
        assert len(list(completions.list(order=order, limit=1))) == 1
    completions.delete("chatcmpl-same")
    assert list(completions.list()) == []
    assert {row.state for row in gateway.exchanges()} == {State.ERASED}
