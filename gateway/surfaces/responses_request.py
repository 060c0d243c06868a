"""A Responses request as a chat completion request, and as the items it is kept as."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from gateway.errors import InvalidRequest
from gateway.prompt import SYSTEM_ROLES, content_text
from gateway.surfaces.translated import Inexpressible
from gateway.wire.protocol import Body
from gateway.wire.wanted import objects, optional, required, wrong

#: the same words with the same meaning in both APIs
_SAME: dict[str, type] = {
    "temperature": float,
    "top_p": float,
    "parallel_tool_calls": bool,
    "service_tier": str,
    "user": str,
    "safety_identifier": str,
    "prompt_cache_key": str,
    "prompt_cache_retention": str,
    "prompt_cache_options": dict,
    "metadata": dict,
    "stream": bool,
}
_READ = frozenset(
    {
        *_SAME,
        "model",
        "input",
        "instructions",
        "previous_response_id",
        "store",
        "stream_options",
        "include",
        "max_output_tokens",
        "tools",
        "tool_choice",
        "text",
        "reasoning",
        "top_logprobs",
        "truncation",
    }
)
_ROLES = (*SYSTEM_ROLES, "user", "assistant")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """``chat`` is what is asked; ``items`` is the conversation up to here, this input included."""

    chat: Body
    items: list[Body]


def system_texts(body: Body, history: Iterable[Body]) -> list[str]:
    """The texts a task's claim may look at, from a request that need not be well-formed."""
    texts = [body["instructions"]] if isinstance(body.get("instructions"), str) else []
    asked = body.get("input")
    for item in (*history, *(asked if isinstance(asked, list) else ())):
        if isinstance(item, dict) and item.get("role") in ("system", "developer"):
            texts.append(content_text(item.get("content")))
    return texts


def read_request(body: Body, history: Sequence[Body]) -> Wanted:
    """Raises Inexpressible, or InvalidRequest, naming the parameter."""
    for name, value in body.items():
        if name not in _READ and value is not None:
            raise Inexpressible(name)
    if not required(body, "model", str):
        raise wrong("model", "must be a non-empty string")
    items = [*history, *_input_items(body.get("input"))]
    messages = _messages(items, known=len(history))
    instructions = optional(body, "instructions", str)
    if instructions:
        messages.insert(0, {"role": "system", "content": instructions})
    chat: Body = {"model": body["model"], "messages": messages}
    for name, kind in _SAME.items():
        if optional(body, name, kind) is not None:
            chat[name] = body[name]
    _limits(body, chat)
    _tools(body, chat)
    _text(body, chat)
    _storage(body, chat)
    if chat.get("stream"):
        # a response tells its usage in any case
        chat["stream_options"] = {"include_usage": True}
    return Wanted(chat=chat, items=items)


def _limits(body: Body, chat: Body) -> None:
    limit = optional(body, "max_output_tokens", int)
    if limit is not None:
        chat["max_completion_tokens"] = limit
    top = optional(body, "top_logprobs", int)
    # of what may be included, the rest belongs to tools and reasoning a chat completion lacks
    if top or "message.output_text.logprobs" in (optional(body, "include", list) or ()):
        chat["logprobs"] = True
        chat["top_logprobs"] = top or 0
    reasoning = optional(body, "reasoning", dict) or {}
    for name, value in reasoning.items():
        if name != "effort" and value is not None:
            raise Inexpressible(f"reasoning.{name}")
    if optional(reasoning, "effort", str, "reasoning.") is not None:
        chat["reasoning_effort"] = reasoning["effort"]
    if optional(body, "truncation", str) not in (None, "disabled"):
        raise Inexpressible("truncation")
    optional(body, "stream_options", dict)


def _tools(body: Body, chat: Body) -> None:
    tools = [] if body.get("tools") is None else objects(body["tools"], "tools")
    for index, tool in enumerate(tools):
        if required(tool, "type", str, f"tools[{index}].") != "function":
            raise Inexpressible(f"tools[{index}]", f"of type {tool['type']} is not a function")
        required(tool, "name", str, f"tools[{index}].")
    if tools:
        chat["tools"] = [_nested(tool) for tool in tools]
    choice = body.get("tool_choice")
    if choice is None or (choice in ("auto", "none") and not tools):
        # chat completions take no choice among no tools
        return
    if isinstance(choice, str):
        chat["tool_choice"] = choice
        return
    choice = required(body, "tool_choice", dict)
    kind = required(choice, "type", str, "tool_choice.")
    if kind == "function":
        name = required(choice, "name", str, "tool_choice.")
        chat["tool_choice"] = {"type": "function", "function": {"name": name}}
    elif kind == "allowed_tools":
        allowed = objects(choice.get("tools"), "tool_choice.tools")
        if any(tool.get("type") != "function" for tool in allowed):
            raise Inexpressible("tool_choice.tools")
        chat["tool_choice"] = {
            "type": kind,
            kind: {"mode": choice.get("mode"), "tools": [_nested(tool) for tool in allowed]},
        }
    else:
        raise Inexpressible("tool_choice")


def _nested(tool: Body) -> Body:
    """Chat completions keep a function's fields one level deeper."""
    fields = {name: value for name, value in tool.items() if name != "type" and value is not None}
    return {"type": "function", "function": fields}


def _text(body: Body, chat: Body) -> None:
    text = optional(body, "text", dict) or {}
    for name, value in text.items():
        if name not in ("format", "verbosity") and value is not None:
            raise Inexpressible(f"text.{name}")
    if optional(text, "verbosity", str, "text.") is not None:
        chat["verbosity"] = text["verbosity"]
    form = optional(text, "format", dict, "text.")
    if form is None:
        return
    kind = required(form, "type", str, "text.format.")
    if kind == "json_schema":
        required(form, "name", str, "text.format.")
        required(form, "schema", dict, "text.format.")
        rest = {name: value for name, value in form.items() if name != "type"}
        chat["response_format"] = {"type": kind, kind: rest}
    elif kind == "json_object":
        chat["response_format"] = form
    elif kind != "text":
        raise Inexpressible("text.format")


def _storage(body: Body, chat: Body) -> None:
    """A response is stored unless it says otherwise, a chat completion only if it says so, and
    OpenAI takes metadata only for what is stored."""
    if optional(body, "store", bool) is False:
        chat["store"] = False
    elif chat.get("metadata"):
        chat["store"] = True


def _input_items(asked: Any) -> list[Body]:
    if isinstance(asked, str):
        return [{"type": "message", "role": "user", "content": asked}]
    if asked is None:
        raise wrong("input", "is required: a string or an array")
    if not isinstance(asked, list):
        raise wrong("input", "must be a string or an array")
    return objects(asked, "input")


def _messages(items: Sequence[Body], *, known: int) -> list[Body]:
    """``known`` items were there before this request's input."""
    messages: list[Body] = []
    for index, item in enumerate(items):
        path = f"input[{index - known}]"
        kind = item.get("type")
        if kind == "function_call":
            call = _call(item, path)
            if messages and messages[-1]["role"] == "assistant":
                messages[-1].setdefault("tool_calls", []).append(call)
            else:
                messages.append({"role": "assistant", "content": None, "tool_calls": [call]})
        elif kind == "function_call_output":
            messages.append(_call_output(item, path))
        elif kind in (None, "message"):
            messages.append(_message(item, path))
        else:
            raise Inexpressible(path, f"of type {kind} has no counterpart in chat completions")
    if not messages:
        raise wrong("input", "must not be empty")
    return messages


def _call(item: Body, path: str) -> Body:
    return {
        "id": required(item, "call_id", str, f"{path}."),
        "type": "function",
        "function": {
            "name": required(item, "name", str, f"{path}."),
            "arguments": required(item, "arguments", str, f"{path}."),
        },
    }


def _call_output(item: Body, path: str) -> Body:
    output = item.get("output")
    if not isinstance(output, str):
        output = _content(output, f"{path}.output", role="tool")
    call_id = required(item, "call_id", str, f"{path}.")
    return {"role": "tool", "tool_call_id": call_id, "content": output}


def _message(item: Body, path: str) -> Body:
    role = required(item, "role", str, f"{path}.")
    if role not in _ROLES:
        raise wrong(f"{path}.role", f"must be one of {', '.join(sorted(_ROLES))}")
    content = item.get("content")
    if not isinstance(content, str):
        content = _content(content, f"{path}.content", role=role)
    return {"role": role, "content": content}


def _content(parts: Any, path: str, *, role: str) -> str | list[Body]:
    made = [
        _part(part, f"{path}[{index}]", role) for index, part in enumerate(objects(parts, path))
    ]
    # the plain form where there is one: servers and templates know it best
    if len(made) == 1 and made[0]["type"] == "text":
        return str(made[0]["text"])
    return made


def _part(part: Body, path: str, role: str) -> Body:
    kind = required(part, "type", str, f"{path}.")
    if kind in ("input_text", "output_text"):
        return {"type": "text", "text": required(part, "text", str, f"{path}.")}
    if kind == "refusal" and role == "assistant":
        return {"type": kind, kind: required(part, kind, str, f"{path}.")}
    if kind == "input_image" and role == "user" and part.get("file_id") is None:
        image = {"url": required(part, "image_url", str, f"{path}.")}
        if optional(part, "detail", str, f"{path}.") is not None:
            image["detail"] = part["detail"]
        return {"type": "image_url", "image_url": image}
    if kind == "input_audio" and role == "user":
        return {"type": kind, kind: required(part, kind, dict, f"{path}.")}
    raise Inexpressible(path, f"of type {kind} has no counterpart in chat completions")


def unknown_previous(response_id: object) -> InvalidRequest:
    return InvalidRequest(
        f"Previous response with id '{response_id}' not found.",
        param="previous_response_id",
        code="previous_response_not_found",
    )
