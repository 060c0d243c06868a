"""Write docs/configuration.md from the configuration's own types, defaults and docstrings.

usage: python docs/generate_configuration.py [--check]
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from gateway.config import Config, Section

PAGE = Path(__file__).with_name("configuration.md")
HEAD = """# Configuration

One YAML file, read once at start. Unknown keys, wrong types and impossible combinations are
refused with the path of every mistake. Secrets never stand in it, only the names of the environment
variables that hold them. `retort doctor --config retort.yaml` checks the file and what it names.

*This page is generated from `gateway/config.py`.*
"""


def sections_in(annotation: Any) -> list[type[Section]]:
    """The Section classes behind X, list[X], X | None or list[X | Y]."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    return [found for inner in get_args(annotation) for found in sections_in(inner)]


def type_name(field: FieldInfo) -> str:
    text = str(field.annotation).replace("typing.", "")
    return text.removeprefix("<class '").removesuffix("'>").replace("gateway.config.", "")


def default_of(field: FieldInfo) -> str:
    if field.is_required():
        return "**required**"
    value = field.default if field.default is not PydanticUndefined else None
    return f"`{json.dumps(value)}`"


def sections(cls: type[Section], path: str) -> Iterator[tuple[str, type[Section]]]:
    yield path, cls
    for name, field in cls.model_fields.items():
        found = sections_in(field.annotation)
        shape = str(field.annotation)
        many = "[]" if shape.startswith("list") else ".NAME" if shape.startswith("dict") else ""
        for inner in found:
            # of several kinds, each is named by its tag
            kind = f" {get_args(inner.model_fields['kind'].annotation)[0]}" if found[1:] else ""
            yield from sections(inner, f"{path}.{name}{many}{kind}".removeprefix("."))


def page() -> str:
    parts = [HEAD]
    for path, cls in sections(Config, ""):
        summary = " ".join((cls.__doc__ or "").split())
        parts.append(f"\n## {f'`{path}`' if path else 'Top level'}\n\n{summary}\n")
        rows = [
            f"| `{name}` | {type_name(field).replace('|', 'or')} | {default_of(field)} | "
            f"{' '.join((field.description or '').split())} |"
            for name, field in cls.model_fields.items()
            if not sections_in(field.annotation)
        ]
        if rows:
            parts.append("\n| key | type | default | meaning |\n| --- | --- | --- | --- |\n")
            parts.append("\n".join(rows) + "\n")
    return "".join(parts)


if __name__ == "__main__":
    if "--check" in sys.argv:
        sys.exit(0 if PAGE.read_text() == page() else f"{PAGE} is stale: python {__file__}")
    PAGE.write_text(page())
