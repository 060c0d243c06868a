"""What is never stored, and what becomes a placeholder first."""

import json

import pytest
from fake_openai import FakeOpenAI
from triage import BODY, Start

from gateway.redaction import Redaction

CHAT = "/v1/chat/completions"
CARD = "4111 1111 1111 1111"
TOKEN = "ghp_" + "a1B2" * 9
PEM = (
    "-----BEGIN RSA PRIVATE KEY-----\nMIIEow" + "Ab1+" * 15 + "\nQ==\n-----END RSA PRIVATE KEY-----"
)


def test_a_value_has_one_placeholder_in_the_whole_row() -> None:
    redaction = Redaction(["email", "card"])
    asked = redaction.text(f"Ann.Lee@shop.io paid with {CARD}, bob@shop.io did not")
    assert asked == "<EMAIL_1> paid with <CARD_1>, <EMAIL_2> did not"
    # another spelling of the same value
    assert redaction.text("ann.lee@SHOP.io / 4111-1111-1111-1111") == "<EMAIL_1> / <CARD_1>"
    assert redaction.counts == {"email": 3, "card": 2}


@pytest.mark.parametrize(
    "secret",
    [
        "sk-proj-" + "x1" * 15,
        TOKEN,
        "AKIA" + "ABCDEFGH12345678",
        "eyJhbGciOiJI.eyJzdWIiOiIx.c2lnbmF0dXJl",
        PEM,
        PEM.replace("\n", "\\n"),
    ],
)
def test_secrets_are_replaced_whatever_a_task_says(secret: str) -> None:
    assert Redaction([]).text(f"it is {secret}, keep it") == "it is <SECRET_1>, keep it"


def test_an_iban_ends_where_its_country_says() -> None:
    text = "to DE89 3704 0044 0532 0130 00 by Monday"
    assert Redaction(["iban"]).text(text) == "to <IBAN_1> by Monday"
    assert Redaction(["iban"]).text(text.replace("DE89", "DE88")) == text.replace("DE89", "DE88")


def test_every_string_of_a_body_is_looked_at_and_nothing_else_changes() -> None:
    body = {
        "model": "m",
        "temperature": 0.5,
        "messages": [{"role": "user", "content": [{"type": "text", "text": f"pay {CARD}"}]}],
        "metadata": {"note": TOKEN, CARD: None},
        "n": True,
    }
    assert Redaction(["card"]).json(body) == {
        "model": "m",
        "temperature": 0.5,
        "messages": [{"role": "user", "content": [{"type": "text", "text": "pay <CARD_1>"}]}],
        "metadata": {"note": "<SECRET_1>", "<CARD_1>": None},
        "n": True,
    }


def test_numbers_of_no_kind_stay() -> None:
    text = "order 4111111111111112 of 2026-11-24, 12.50 EUR, v1.2.3, ask-me-anything-about-tokens"
    assert Redaction(["card", "iban", "ssn", "email", "phone"]).text(text) == text


def test_consent_and_licence_are_settled_when_a_row_is_written(start: Start) -> None:
    teacher_section = {"teacher": {"trainable": False}}
    gateway = start(consent="asked", sections=teacher_section)
    for at, wish in enumerate(("yes", "no", None)):
        headers = {} if wish is None else {"x-retort-train": wish}
        body = BODY | {"user": "ann", "temperature": at / 10}
        assert gateway.send("POST", CHAT, body, headers)[0] == 200
    rows = sorted(gateway.exchanges(), key=lambda row: row.body["temperature"])
    assert [row.consent for row in rows] == [True, False, False]
    assert not any(row.licensed for row in rows)
    assert len({row.subject for row in rows} - {""}) == 1
    status, _, data = gateway.send("POST", CHAT, BODY, {"x-retort-train": "maybe"})
    assert status == 400 and b"x-retort-train" in data


def test_the_queue_holds_placeholders_and_the_teacher_gets_the_text(
    start: Start, teacher: FakeOpenAI
) -> None:
    gateway = start()
    said = f"my card {CARD} and key {TOKEN}"
    teacher.reply = f"parcel for {CARD}"
    messages = [*BODY["messages"][:-1], {"role": "user", "content": said}]
    assert CARD in str(gateway.send("POST", CHAT, BODY | {"messages": messages})[2])
    assert teacher.chats[-1]["messages"][-1]["content"] == said
    row = gateway.exchange()
    assert row.prompt == "my card <CARD_1> and key <SECRET_1>"
    assert row.teacher_text == "parcel for <CARD_1>"
    kept = json.dumps(row.model_dump(mode="json"))
    assert CARD not in kept and TOKEN not in kept
    assert gateway.metric('retort_redacted_total{data="card",task="triage"}') == 3
