"""Recorded chats are read whole or refused with file and line."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from night_world import make_config, open_store

from gateway.storage import exchanges
from retrain.errors import TrafficError
from retrain.evaluate import gold_of
from retrain.traffic import Imported, import_traffic, read_traffic

USER = {"role": "user", "content": "where is it"}
ANSWER = {"role": "assistant", "content": "delivery"}


def write(path: Path, *lines: Any) -> Path:
    path.write_text("\n".join(x if isinstance(x, str) else json.dumps(x) for x in lines) + "\n")
    return path


def test_chats_and_pairs_are_read_in_order(tmp_path: Path) -> None:
    path = write(
        tmp_path / "chats.jsonl",
        {"messages": [USER, ANSWER], "metadata": {"app": "x"}, "model": "gpt-4"},
        "",
        {
            "request": {"model": "a", "messages": [USER], "temperature": 0},
            "response": {"model": "b", "choices": [{"message": ANSWER, "finish_reason": "stop"}]},
        },
    )
    first, second = read_traffic(path)
    assert first.body == {"model": "gpt-4", "metadata": {"app": "x"}, "messages": [USER]}
    assert (first.answer, first.model) == ("delivery", "gpt-4")
    assert second.body == {"model": "a", "messages": [USER], "temperature": 0}
    assert (second.answer, second.model) == ("delivery", "b")


def test_gold_goes_into_the_metadata(tmp_path: Path) -> None:
    path = write(
        tmp_path / "chats.jsonl",
        {"messages": [USER, ANSWER], "gold": "refund", "metadata": {"app": "x"}},
        {"messages": [USER, ANSWER], "gold": {"category": "refund"}},
    )
    assert [r.body["metadata"] for r in read_traffic(path)] == [
        {"app": "x", "gold": "refund"},
        {"gold": '{"category": "refund"}'},
    ]


def test_gzip_is_read_whatever_its_name(tmp_path: Path) -> None:
    path = tmp_path / "chats.jsonl"
    path.write_bytes(gzip.compress(json.dumps({"messages": [USER, ANSWER]}).encode()))
    assert len(read_traffic(path)) == 1


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("{", "not JSON"),
        ("[1]", "not a JSON object"),
        ({"messages": []}, "messages is missing or empty"),
        ({"text": "hi"}, "messages is missing or empty"),
        ({"messages": [USER, "hi"]}, r"messages\[1\] is not a message with a role"),
        ({"messages": [ANSWER, USER]}, "the last message is not the assistant's"),
        ({"messages": [ANSWER]}, "there is no user message"),
        ({"messages": [USER, {"role": "assistant", "content": None}]}, "has no text"),
        ({"messages": [USER, ANSWER], "metadata": "x"}, "metadata is not an object"),
        ({"request": {"messages": [USER]}}, "response is missing"),
        ({"response": {}}, "request is missing"),
        ({"request": {"messages": [USER]}, "response": {"choices": []}}, "choices is missing"),
        ({"request": {"messages": [USER]}, "response": {"choices": [{}]}}, "message is missing"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: Any, why: str) -> None:
    path = write(tmp_path / "chats.jsonl", {"messages": [USER, ANSWER]}, line)
    with pytest.raises(TrafficError, match=rf"chats.jsonl:2: .*{why}"):
        read_traffic(path)


def test_all_bad_lines_are_counted(tmp_path: Path) -> None:
    path = write(tmp_path / "chats.jsonl", *["{"] * 9)
    with pytest.raises(TrafficError, match=r":1: not JSON \(8 more bad lines: 2, 3, 4, 5, …\)"):
        read_traffic(path)


def test_broken_text_and_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "chats.jsonl"
    path.write_bytes(json.dumps({"messages": [USER, ANSWER]}).encode() + b"\n\xff\xfe\n")
    with pytest.raises(TrafficError, match=":2: not JSON"):
        read_traffic(path)
    path.write_bytes(gzip.compress(b"x" * 5000)[:30])
    with pytest.raises(TrafficError, match="cannot be read"):
        read_traffic(path)
    with pytest.raises(TrafficError, match="cannot be read"):
        read_traffic(tmp_path / "none.jsonl")
    with pytest.raises(TrafficError, match="no exchanges"):
        read_traffic(write(tmp_path / "empty.jsonl", ""))


def test_imported_traffic_is_collected_traffic(tmp_path: Path) -> None:
    config = make_config(tmp_path, "http://127.0.0.1:1/v1")
    path = write(
        tmp_path / "chats.jsonl",
        {"messages": [USER, ANSWER], "gold": "refund", "model": "gpt-4"},
        {"messages": [USER, ANSWER], "gold": "refund", "model": "gpt-4"},
        {"messages": [{"role": "user", "content": "my money, please"}, ANSWER]},
    )
    recorded = read_traffic(path)
    with open_store(config) as store:
        assert import_traffic(store, config.tasks[0], recorded) == Imported(stored=2, repeated=1)
        assert import_traffic(store, config.tasks[0], recorded) == Imported(stored=0, repeated=3)
        first, second = sorted(
            exchanges.find(store, "triage"), key=lambda row: row.prompt, reverse=True
        )
    assert (first.prompt, first.teacher_text, first.teacher_model) == (
        "where is it",
        "delivery",
        "gpt-4",
    )
    assert (first.state, first.route, first.reason) == ("captured", "teacher", "collect")
    assert first.sampled and first.propensity == 1.0 and first.seen > 1
    assert gold_of(first.body) == "refund" and gold_of(second.body) is None


def test_a_thousand_chats_are_imported_in_pieces(tmp_path: Path) -> None:
    config = make_config(tmp_path, "http://127.0.0.1:1/v1")
    chats = [
        {"messages": [{"role": "user", "content": f"question {k}"}, ANSWER]} for k in range(1001)
    ]
    recorded = read_traffic(write(tmp_path / "chats.jsonl", *chats))
    with open_store(config) as store:
        assert import_traffic(store, config.tasks[0], recorded).stored == 1001
