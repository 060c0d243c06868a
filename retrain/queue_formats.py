"""Rows of the queue in the formats of other tools, and people's answers read back from them.

chat: OpenAI chat JSONL, what fine-tuning jobs take. dpo: preference pairs (the right answer over
the student's), as TRL and most trainers take them. argilla: records as `Dataset.records.log` takes
them and `to_json` gives them back. label-studio: tasks to import, and its JSON export. csv: a
table for people.
"""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from gateway.storage.tables import Exchange
from retrain.curate import right_answer
from retrain.errors import TrafficError

Format = Literal["chat", "dpo", "argilla", "label-studio", "csv"]
FORMATS: tuple[Format, ...] = ("chat", "dpo", "argilla", "label-studio", "csv")
#: formats that people's answers come back in
ANNOTATED: tuple[Format, ...] = ("argilla", "label-studio", "csv")
#: name of the question that a person answers
ANSWER = "answer"
COLUMNS = ("id", "prompt", "teacher", "student", ANSWER)


def written(rows: Iterable[Exchange], format: Format) -> Iterator[str]:
    """Lines of text. Rows that have no right answer, or for dpo no other one of the student's, are
    left out."""
    answered = (row for row in rows if right_answer(row) is not None)
    if format == "csv":
        yield _csv(COLUMNS)
        yield from (_csv(_cells(row)) for row in answered)
    elif format == "label-studio":
        # one JSON list, a task per line
        yield "["
        comma = ""
        for row in answered:
            yield comma + _json(_label_studio(row))
            comma = ","
        yield "]"
    elif format == "dpo":
        yield from (_json(_pair(row)) for row in answered if _differs(row))
    else:
        make = _chat if format == "chat" else _argilla
        yield from (_json(make(row)) for row in answered)


def annotations(path: Path, format: Format) -> dict[str, str]:
    """What people answered, by the row's id. Rows they left alone are not in it. Raises
    TrafficError with what cannot be read."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise TrafficError(f"{path}: cannot be read ({error})") from None
    try:
        if format == "csv":
            return dict(_from_csv(text))
        read = _from_argilla if format == "argilla" else _from_label_studio
        return dict(pair for item in _items(text) if (pair := read(item)) is not None)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise TrafficError(f"{path}: is no {format} export ({error!r})") from None


def _messages(row: Exchange) -> list[Any]:
    return list(row.body.get("messages") or [{"role": "user", "content": row.prompt}])


def _said(text: str | None) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def _chat(row: Exchange) -> dict[str, Any]:
    return {"messages": [*_messages(row), _said(right_answer(row))]}


def _differs(row: Exchange) -> bool:
    student = (row.student_text or "").strip()
    return bool(student) and student != (right_answer(row) or "").strip() and row.loss != 0.0


def _pair(row: Exchange) -> dict[str, Any]:
    return {
        "prompt": _messages(row),
        "chosen": [_said(right_answer(row))],
        "rejected": [_said(row.student_text)],
    }


def _argilla(row: Exchange) -> dict[str, Any]:
    fields = {"prompt": row.prompt, "teacher": row.teacher_text, "student": row.student_text}
    return {
        "id": row.id,
        "fields": {name: value or "" for name, value in fields.items()},
        "metadata": {"task": row.task, "reason": row.reason, "state": row.state},
        "suggestions": [{"question_name": ANSWER, "value": right_answer(row)}],
    }


def _label_studio(row: Exchange) -> dict[str, Any]:
    data = {"id": row.id, "prompt": row.prompt, "reason": row.reason}
    data |= {"teacher": row.teacher_text or "", "student": row.student_text or ""}
    value = {"text": [right_answer(row)]}
    result = {"from_name": ANSWER, "to_name": "prompt", "type": "textarea", "value": value}
    return {"data": data, "predictions": [{"model_version": "teacher", "result": [result]}]}


def _cells(row: Exchange) -> list[str]:
    cells = (row.id, row.prompt, row.teacher_text, row.student_text, row.correction)
    return [cell or "" for cell in cells]


def _csv(cells: Iterable[str]) -> str:
    line = io.StringIO()
    # what a spreadsheet would run is text to it
    safe = ["'" + cell if cell[:1] in ("=", "+", "-", "@", "\t") else cell for cell in cells]
    csv.writer(line).writerow(safe)
    return line.getvalue().removesuffix("\r\n")


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _items(text: str) -> list[Any]:
    if text.lstrip().startswith("["):
        found = json.loads(text)
        assert isinstance(found, list)
        return found
    return [json.loads(line) for line in text.split("\n") if line.strip()]


def _from_csv(text: str) -> Iterator[tuple[str, str]]:
    reader = csv.DictReader(io.StringIO(text))
    if not {"id", ANSWER} <= set(reader.fieldnames or ()):
        raise ValueError(f"no columns 'id' and {ANSWER!r}")
    for line in reader:
        answer = (line[ANSWER] or "").strip()
        if answer.startswith("'") and answer[1:2] in ("=", "+", "-", "@"):
            answer = answer[1:]
        if answer:
            yield line["id"], answer


def _from_argilla(item: Mapping[str, Any]) -> tuple[str, str] | None:
    given = (item.get("responses") or {}).get(ANSWER) or []
    said = [one for one in given if one.get("status", "submitted") == "submitted"]
    if not said:
        return None
    return str(item.get("external_id") or item["id"]), _text(said[-1]["value"])


def _from_label_studio(item: Mapping[str, Any]) -> tuple[str, str] | None:
    done = [one for one in item.get("annotations") or () if not one.get("was_cancelled")]
    results = [r for one in done for r in one["result"] if r.get("from_name") == ANSWER]
    if not results:
        return None
    value = results[-1]["value"]
    return str(item["data"]["id"]), _text((value.get("text") or value["choices"])[0])


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{value!r} is no answer")
    return value.strip()
