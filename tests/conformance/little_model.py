"""The mind of the suites' upstream: no model, but rules that behave like one.

It answers the last message. A tool is called when it must be, or when the text speaks of it; its
arguments, and structured answers, are filled in from the JSON schema with what the text offers.
The same request has the same answer.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """``calls``: name and arguments of each tool to be called."""

    text: str | None
    calls: Sequence[tuple[str, Json]] = ()


def said(body: Json) -> Said:
    """The answer to a chat completion request."""
    messages = [m for m in body.get("messages") or [] if isinstance(m, dict)]
    text = text_of(messages[-1]) if messages else ""
    asked = next((text_of(m) for m in reversed(messages) if m.get("role") == "user"), text)
    functions = _functions(body)
    wanted = body.get("tool_choice", body.get("function_call")) or "auto"
    answered = bool(messages) and messages[-1].get("role") in ("tool", "function")
    called = [f for f in functions if _calls(f, wanted, asked, answered)]
    if called:
        calls = [(f["name"], fill(f.get("parameters") or {}, asked)) for f in called]
        return Said(text=None, calls=calls)
    schema = _schema(body, asked)
    if schema is not None:
        return Said(text=json.dumps(fill(schema, asked), ensure_ascii=False))
    return Said(text=f"You said: {text}" if text else "Hello.")


def text_of(message: Json) -> str:
    content = message.get("content")
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    parts = (p.get("text") or p.get("input_text") or "" for p in content if isinstance(p, dict))
    return " ".join(part for part in parts if isinstance(part, str))


def words(text: str) -> list[str]:
    """The text in the pieces it is streamed in."""
    return re.findall(r"\s*\S+\s*$|\s*\S+", text)


def fill(schema: Json, text: str) -> Any:
    """A value that the JSON schema allows, with the numbers and names that stand in the text."""
    numbers = iter(re.findall(r"-?\d+(?:\.\d+)?", text))
    names = iter(_names(text))
    return _fill(schema, schema.get("$defs") or schema.get("definitions") or {}, numbers, names)


def _fill(schema: Json, defs: Json, numbers: Iterator[str], names: Iterator[str]) -> Any:
    def inner(part: Json) -> Any:
        return _fill(part, defs, numbers, names)

    if "$ref" in schema:
        return inner(defs.get(str(schema["$ref"]).rsplit("/", 1)[-1], {}))
    for key in ("anyOf", "oneOf", "allOf"):
        if schema.get(key):
            return inner(next((s for s in schema[key] if s.get("type") != "null"), schema[key][0]))
    if "const" in schema:
        return schema["const"]
    if schema.get("enum"):
        return schema["enum"][0]
    kind = schema.get("type", "object" if "properties" in schema else None)
    if isinstance(kind, list):
        kind = next((k for k in kind if k != "null"), "null")
    if kind == "object":
        return {name: inner(part) for name, part in (schema.get("properties") or {}).items()}
    if kind == "array":
        item = inner(schema.get("items") or {"type": "string"})
        return [item] * min(max(1, schema.get("minItems", 1)), 20)
    if kind in ("integer", "number"):
        found = float(next(numbers, schema.get("minimum", 1)))
        return int(found) if kind == "integer" else found
    if kind == "boolean":
        return True
    return next(names, "text") if kind == "string" else None


def _names(text: str) -> list[str]:
    """What a person would put into a form: what stands in quotes, else capitalised words."""
    quoted = re.findall(r"'([^']+)'|\"([^\"]+)\"", text)
    if quoted:
        return [one or other for one, other in quoted]
    return re.findall(r"(?<!^)(?<![.?!] )\b[A-Z]\w*(?:,? [A-Z]\w*)*", text) or words(text.strip())


def _functions(body: Json) -> list[Json]:
    tools = [t.get("function") for t in body.get("tools") or [] if isinstance(t, dict)]
    found = [*tools, *(body.get("functions") or [])]
    return [f for f in found if isinstance(f, dict) and isinstance(f.get("name"), str)]


def _calls(function: Json, wanted: Any, asked: str, answered: bool) -> bool:
    name = function["name"]
    if isinstance(wanted, dict):
        return bool((wanted.get("function") or wanted).get("name") == name)
    if wanted == "none" or answered:
        return False
    if wanted == "required":
        return True
    told = asked.lower()
    parts = re.split(r"[_\W]+", name.lower())
    return "tool" in told or any(len(part) > 3 and part in told for part in parts)


def _schema(body: Json, asked: str) -> Json | None:
    wanted = body.get("response_format") or {}
    kind = wanted.get("type") if isinstance(wanted, dict) else None
    if kind == "json_object":
        # with the keys that are named
        keys = re.findall(r"['\"`](\w+)['\"`]", asked) or ["answer"]
        return {"type": "object", "properties": {key: {"type": "string"} for key in keys}}
    return (wanted["json_schema"].get("schema") or {}) if kind == "json_schema" else None
