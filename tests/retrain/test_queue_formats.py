"""Rows leave in the formats of other tools, and people's answers come back as corrections."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from store_process import TASK, exchange

from gateway.config import Claim, Output, Task
from gateway.storage import exchanges
from gateway.storage.store import Store
from gateway.storage.tables import State
from retrain import cli
from retrain.errors import TrafficError
from retrain.queue_formats import ANNOTATED, FORMATS, Format, annotations, written
from retrain.review import take

TRIAGE = Task(
    name=TASK,
    claim=Claim(model=["m"]),
    output=Output(kind="label", labels=["parcel", "bill", "other"]),
)


@pytest.fixture
def rows(store: Store) -> Store:
    """r0: both say parcel; r1: the student said bill; r2: nobody answered; r3: corrected."""
    store.insert(
        [
            exchange("r0", student_text="parcel", loss=0.0),
            exchange("r1", student_text="bill", loss=1.0),
            exchange("r2", teacher_text=None),
            exchange("r3", correction="other", student_text="parcel", loss=1.0),
        ]
    )
    return store


def lines(store: Store, format: Format, **wanted: Any) -> list[str]:
    return list(written(exchanges.answered(store, TASK, **wanted), format))


def test_the_command_line_knows_the_formats() -> None:
    assert (cli.FORMATS, cli.ANNOTATED) == (FORMATS, ANNOTATED)


def test_chats_end_with_the_right_answer(rows: Store) -> None:
    found = [json.loads(line)["messages"] for line in lines(rows, "chat")]
    assert [chat[-1]["content"] for chat in found] == ["parcel", "parcel", "other"]
    assert found[0][0] == {"role": "user", "content": "where is my parcel r0"}
    exchanges.move(rows, ["r1"], State.TRAINABLE)
    assert len(lines(rows, "chat", states=["trainable"])) == 1


def test_preference_pairs_are_rows_where_the_student_was_wrong(rows: Store) -> None:
    pairs = [json.loads(line) for line in lines(rows, "dpo")]
    said = [(p["chosen"][0]["content"], p["rejected"][0]["content"]) for p in pairs]
    assert said == [("parcel", "bill"), ("other", "parcel")]


@pytest.mark.parametrize("format", ANNOTATED)
def test_what_people_answered_comes_back_as_corrections(
    rows: Store, format: Format, tmp_path: Path
) -> None:
    path = tmp_path / "answers"
    answers = {"r0": "parcel", "r1": "bill"}
    path.write_text(annotated(lines(rows, format), format, answers))
    assert annotations(path, format) == answers
    done = take(rows, TRIAGE, annotations(path, format))
    assert (done.wrong, done.right, done.unknown, done.invalid) == (1, 1, 0, ())
    row, events = exchanges.show(rows, "r1")
    assert (row.correction, row.loss) == ("bill", 0.0)
    assert [event.detail for event in events[-2:]] == ["corrected", "reviewed: wrong"]


def annotated(exported: list[str], format: Format, answers: dict[str, str]) -> str:
    """The export as the tool would give it back, with these answers."""
    if format == "argilla":
        records = [json.loads(line) for line in exported]
        for record in records:
            if record["id"] in answers:
                said = {"value": answers[record["id"]], "user_id": "u", "status": "submitted"}
                record["responses"] = {"answer": [said]}
        return json.dumps(records)
    if format == "label-studio":
        tasks = json.loads("".join(exported))
        for task in tasks:
            if (said := answers.get(task["data"]["id"])) is not None:
                result = {"from_name": "answer", "to_name": "prompt", "value": {"text": [said]}}
                task["annotations"] = [{"was_cancelled": False, "result": [result]}]
        return json.dumps(tasks)
    table = list(csv.DictReader(io.StringIO("\n".join(exported))))
    out = io.StringIO()
    writer = csv.DictWriter(out, table[0].keys())
    writer.writeheader()
    for line in table:
        writer.writerow(line | {"answer": answers.get(line["id"], "")})
    return out.getvalue()


def test_answers_of_no_row_or_against_the_rules_are_counted_and_not_taken(rows: Store) -> None:
    done = take(rows, TRIAGE, {"r0": "a long story", "nobody": "bill"})
    assert (done.wrong, done.unknown, done.invalid) == (0, 1, ("r0",))
    assert exchanges.show(rows, "r0")[0].correction is None


def test_a_cell_is_text_to_a_spreadsheet_and_itself_again_when_read(store: Store) -> None:
    formula = "=HYPERLINK(1)"
    store.insert([exchange("r0", prompt=formula, correction=formula)])
    header, line = lines(store, "csv")
    assert next(csv.reader([line]))[1] == "'" + formula
    assert header.startswith("id,prompt")


def test_formulas_survive_the_way_through_a_spreadsheet(tmp_path: Path) -> None:
    path = tmp_path / "answers.csv"
    path.write_text("id,answer\nr0,'=1+1\nr1,\n")
    assert annotations(path, "csv") == {"r0": "=1+1"}


@pytest.mark.parametrize(
    ("format", "content"),
    [
        ("csv", "name,answer\n"),
        ("argilla", "[1]"),
        ("argilla", "not json"),
        ("label-studio", '[{"annotations": [{"result": [{"from_name": "answer"}]}]}]'),
        ("label-studio", '[{"annotations": 1}]'),
    ],
)
def test_what_is_no_export_is_said(tmp_path: Path, format: Format, content: str) -> None:
    path = tmp_path / "answers"
    path.write_text(content)
    with pytest.raises(TrafficError, match=f"is no {format} export"):
        annotations(path, format)
