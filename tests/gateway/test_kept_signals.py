"""A row of the queue keeps how sure the student was of its draft."""

from fake_openai import FakeOpenAI, Reply
from small_bundle import UNSURE
from triage import BODY, Start

CHAT = "/v1/chat/completions"


def test_a_fallback_keeps_the_signals_of_its_draft(serving: Start, student: FakeOpenAI) -> None:
    gateway = serving()
    student.reply = Reply(text="refund!", logprob=UNSURE)
    _, headers, _ = gateway.send("POST", CHAT, BODY)
    assert headers["x-retort-reason"] == "unsure"
    (row,) = gateway.exchanges()
    assert row.signals is not None
    assert row.signals["seq"] == UNSURE * row.signals["values"]


def test_without_a_draft_there_are_none(serving: Start, student: FakeOpenAI) -> None:
    gateway = serving()
    student.reply = Reply(status=500)
    gateway.send("POST", CHAT, BODY)
    (row,) = gateway.exchanges()
    assert row.signals is None
