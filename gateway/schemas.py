"""JSON Schemas and regular expressions that strangers may have written, run within bounds.

Both go to jsonschema-rs, with its regular expressions in an engine that takes time linear in the
text. References lead nowhere but into the schema itself: no file and no URL is ever read.
"""

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import jsonschema_rs
import orjson

#: A client's schema may be this large, and have this many nodes with its references written out.
#: Beyond, an answer could take the validator hours: references double the work at each step.
MAX_BYTES = 100_000
MAX_NODES = 20_000
#: It may have so many expressions, each compiled to so many bytes: fractions of a second in all.
MAX_PATTERNS = 30
MAX_PATTERN_BYTES = 200_000


_FLAGS = re.compile(r"\(\?[a-zA-Z-]+[:)]")
#: keywords that give references another meaning than "from the top of this document"
_ELSEWHERE = frozenset({"$id", "$dynamicRef", "$recursiveRef"})


class BadSchema(ValueError):
    """A schema or expression that cannot be used, and why."""


class _TooMuch(Exception):
    pass


def compiled(
    schema: Any, *, size_limit: int | None = None, formats: bool | None = None
) -> Callable[[Any], bool]:
    """Whether a parsed JSON value fits the schema. Raises BadSchema."""
    try:
        validator = jsonschema_rs.validator_for(
            schema,
            pattern_options=jsonschema_rs.RegexOptions(size_limit=size_limit),
            validate_formats=formats,
            offline=True,
        )
    except ValueError as error:
        raise BadSchema(f"not a usable JSON Schema: {_line(error)}") from None
    return validator.is_valid


def searcher(pattern: str, *, case_sensitive: bool = False) -> Callable[[str], bool]:
    """Whether a text holds what the expression, in JSON Schema's dialect, describes. Raises
    BadSchema."""
    if _FLAGS.search(pattern):
        # some would be ignored without a word
        raise BadSchema(f"flags within an expression are not supported: {pattern!r}")
    flags = "" if case_sensitive else "(?i)"
    try:
        found = compiled({"type": "string", "pattern": flags + pattern})
    except BadSchema:
        raise BadSchema(f"not a regular expression of linear time: {pattern!r}") from None
    # half of a surrogate pair is no text to the engine
    return lambda text: found(text.encode("utf-8", "replace").decode())


def clients(schema: Any) -> Callable[[Any], bool]:
    """The same for a schema that came with a request; ``format`` is only a remark there. Raises
    BadSchema also for one that is too large or recursive. Kept for the next request with it."""
    try:
        data = orjson.dumps(schema)
    except TypeError:
        raise BadSchema("nested too deeply") from None
    if len(data) > MAX_BYTES:
        raise BadSchema(f"larger than {MAX_BYTES} bytes")
    return _clients(data)


@lru_cache(maxsize=256)
def _clients(data: bytes) -> Callable[[Any], bool]:
    schema = orjson.loads(data)
    if isinstance(schema, dict) and "draft-04" in str(schema.get("$schema")):
        raise BadSchema("draft 4 is not supported")
    try:
        nodes = _nodes(schema, schema, {}, ())
    except (_TooMuch, RecursionError):
        raise BadSchema("recursive, nested too deeply, or with references to elsewhere") from None
    if nodes > MAX_NODES:
        raise BadSchema(f"more than {MAX_NODES} nodes, its references written out")
    if _patterns(schema) > MAX_PATTERNS:
        raise BadSchema(f"more than {MAX_PATTERNS} regular expressions")
    return compiled(schema, size_limit=MAX_PATTERN_BYTES, formats=False)


def _patterns(node: Any) -> int:
    """How many regular expressions there are, or may be."""
    if isinstance(node, list):
        return sum(map(_patterns, node))
    if not isinstance(node, dict):
        return 0
    by_name = node.get("patternProperties")
    own = isinstance(node.get("pattern"), str) + (len(by_name) if isinstance(by_name, dict) else 0)
    return own + sum(map(_patterns, node.values()))


def _nodes(node: Any, root: Any, known: dict[str, int], open_: tuple[str, ...]) -> int:
    """How large a schema is with its references written out. ``known``: those counted already;
    ``open_``: those that are being counted, so that a recursion is seen."""
    if isinstance(node, list):
        return 1 + sum(_nodes(item, root, known, open_) for item in node)
    if not isinstance(node, dict):
        return 1
    total = 1
    for key, value in node.items():
        if key in _ELSEWHERE and isinstance(value, str) and (key != "$id" or node is not root):
            raise _TooMuch
        if key == "$ref" and isinstance(value, str):
            if value in open_:
                raise _TooMuch
            if value not in known:
                known[value] = _nodes(_target(value, root), root, known, (*open_, value))
            total += known[value]
        else:
            total += _nodes(value, root, known, open_)
    return total


def _target(reference: str, root: Any) -> Any:
    """What a reference inside the document names."""
    if not reference.startswith("#/"):
        raise _TooMuch
    node = root
    for part in reference[2:].split("/"):
        name = part.replace("~1", "/").replace("~0", "~")
        if not isinstance(node, dict) or name not in node:
            raise _TooMuch
        node = node[name]
    return node


def _line(error: ValueError) -> str:
    return " ".join(str(error).split())[:200]
