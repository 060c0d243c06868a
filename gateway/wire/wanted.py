"""Reading a request's fields: of the right type, or an error that names the parameter."""

from typing import Any, TypeVar

from gateway.errors import InvalidRequest

T = TypeVar("T")

_NAMES: dict[type, str] = {
    bool: "a boolean",
    dict: "an object",
    float: "a number",
    int: "an integer",
    list: "an array",
    str: "a string",
}


def optional(holder: dict[str, Any], name: str, kind: type[T], path: str = "") -> T | None:
    """``holder[name]`` of this type; None where it is missing or null. A float may be written as
    an integer. ``path`` is where the holder stands in the request."""
    value = holder.get(name)
    if value is None:
        return None
    fits = isinstance(value, (int, float) if kind is float else kind)
    if not fits or (isinstance(value, bool) and kind is not bool):
        raise wrong(f"{path}{name}", f"must be {_NAMES[kind]}")
    made: T = value
    return made


def required(holder: dict[str, Any], name: str, kind: type[T], path: str = "") -> T:
    value = optional(holder, name, kind, path)
    if value is None:
        raise wrong(f"{path}{name}", f"is required: {_NAMES[kind]}")
    return value


def objects(value: Any, path: str) -> list[dict[str, Any]]:
    """An array of objects."""
    if not isinstance(value, list):
        raise wrong(path, "must be an array")
    for index, item in enumerate(value):
        if not isinstance(item, dict):
            raise wrong(f"{path}[{index}]", "must be an object")
    return value


def wrong(param: str, what: str) -> InvalidRequest:
    return InvalidRequest(f"'{param}' {what}.", param=param)
