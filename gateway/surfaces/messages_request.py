"""A request of Anthropic's Messages API as a chat completion request."""

from typing import Any

import orjson

from gateway.surfaces.translated import Inexpressible
from gateway.wire.protocol import Body
from gateway.wire.wanted import objects, optional, required, wrong

_READ = frozenset(
    {
        "model",
        "max_tokens",
        "messages",
        "metadata",
        "output_config",
        "service_tier",
        "stop_sequences",
        "stream",
        "system",
        "temperature",
        "thinking",
        "tool_choice",
        "tools",
        "top_p",
        # a hint for the prompt cache, which chat completions have without hints
        "cache_control",
    }
)
_TIERS = {"auto": "auto", "standard_only": "default"}
_CHOICES = {"auto": "auto", "any": "required", "none": "none"}
_EFFORTS = ("low", "medium", "high", "xhigh")
#: of a tool, hints that change nothing of what may be answered
_TOOL_HINTS = ("cache_control", "eager_input_streaming")


def system_texts(body: Body) -> list[str]:
    """The system prompt, from a request that need not be well-formed."""
    system = body.get("system")
    if isinstance(system, str):
        return [system]
    blocks = system if isinstance(system, list) else []
    texts = (block.get("text") for block in blocks if isinstance(block, dict))
    text = "\n".join(text for text in texts if isinstance(text, str))
    return [text] if text else []


def read_request(body: Body) -> Body:
    """Raises Inexpressible, or InvalidRequest, naming the parameter."""
    for name, value in body.items():
        if name not in _READ and value is not None:
            raise Inexpressible(name)
    if not required(body, "model", str):
        raise wrong("model", "must be a non-empty string")
    limit = required(body, "max_tokens", int)
    if limit < 1:
        raise wrong("max_tokens", "must be at least 1")
    messages = _system(body.get("system"))
    turns = objects(body.get("messages"), "messages")
    if not turns:
        raise wrong("messages", "must not be empty")
    for index, turn in enumerate(turns):
        messages += _turn(turn, f"messages[{index}]")
    if turns[-1]["role"] == "assistant":
        raise Inexpressible("messages", "ends in a turn of the assistant that is to be continued")
    chat: Body = {"model": body["model"], "messages": messages, "max_completion_tokens": limit}
    _settings(body, chat)
    _tools(body, chat)
    _output(body, chat)
    return chat


def _settings(body: Body, chat: Body) -> None:
    for name in ("temperature", "top_p"):
        if optional(body, name, float) is not None:
            chat[name] = body[name]
    stop = optional(body, "stop_sequences", list)
    if stop:
        if not all(isinstance(text, str) for text in stop):
            raise wrong("stop_sequences", "must be an array of strings")
        chat["stop"] = stop
    metadata = optional(body, "metadata", dict) or {}
    for name, value in metadata.items():
        if name != "user_id" and value is not None:
            raise Inexpressible(f"metadata.{name}")
    if optional(metadata, "user_id", str, "metadata.") is not None:
        chat["user"] = metadata["user_id"]
    tier = optional(body, "service_tier", str)
    if tier is not None:
        if tier not in _TIERS:
            raise wrong("service_tier", "must be auto or standard_only")
        chat["service_tier"] = _TIERS[tier]
    thinking = optional(body, "thinking", dict)
    if thinking is not None and thinking.get("type") != "disabled":
        raise Inexpressible("thinking")
    if optional(body, "stream", bool):
        chat["stream"] = True
        # a message tells its usage in any case
        chat["stream_options"] = {"include_usage": True}


def _tools(body: Body, chat: Body) -> None:
    tools = [] if body.get("tools") is None else objects(body["tools"], "tools")
    if tools:
        chat["tools"] = [_tool(tool, f"tools[{index}]") for index, tool in enumerate(tools)]
    choice = optional(body, "tool_choice", dict)
    if choice is None:
        return
    kind = required(choice, "type", str, "tool_choice.")
    if kind == "tool":
        name = required(choice, "name", str, "tool_choice.")
        chat["tool_choice"] = {"type": "function", "function": {"name": name}}
    elif kind in _CHOICES:
        chat["tool_choice"] = _CHOICES[kind]
    else:
        raise wrong("tool_choice.type", "must be auto, any, tool or none")
    if optional(choice, "disable_parallel_tool_use", bool, "tool_choice."):
        chat["parallel_tool_calls"] = False


def _tool(tool: Body, path: str) -> Body:
    if tool.get("type") not in (None, "custom"):
        raise Inexpressible(path, f"of type {tool['type']} runs on Anthropic's side")
    function = {
        "name": required(tool, "name", str, f"{path}."),
        "parameters": required(tool, "input_schema", dict, f"{path}."),
    }
    for name, value in tool.items():
        if name in ("description", "strict"):
            function[name] = value
        elif name not in ("type", "name", "input_schema", *_TOOL_HINTS) and value is not None:
            raise Inexpressible(f"{path}.{name}")
    return {"type": "function", "function": function}


def _output(body: Body, chat: Body) -> None:
    config = optional(body, "output_config", dict) or {}
    for name, value in config.items():
        if name not in ("format", "effort") and value is not None:
            raise Inexpressible(f"output_config.{name}")
    effort = optional(config, "effort", str, "output_config.")
    if effort is not None:
        if effort not in _EFFORTS:
            raise Inexpressible("output_config.effort")
        chat["reasoning_effort"] = effort
    form = optional(config, "format", dict, "output_config.")
    if form is None:
        return
    if form.get("type") != "json_schema":
        raise Inexpressible("output_config.format")
    schema = required(form, "schema", dict, "output_config.format.")
    wanted = {"name": "output", "schema": schema, "strict": True}
    chat["response_format"] = {"type": "json_schema", "json_schema": wanted}


def _system(system: Any) -> list[Body]:
    if system is None or system == "" or system == []:
        return []
    if not isinstance(system, str):
        system = "\n".join(
            _text(block, f"system[{index}]")
            for index, block in enumerate(objects(system, "system"))
        )
    return [{"role": "system", "content": system}]


def _turn(turn: Body, path: str) -> list[Body]:
    role = required(turn, "role", str, f"{path}.")
    if role not in ("user", "assistant"):
        raise wrong(f"{path}.role", "must be user or assistant")
    content = turn.get("content")
    if isinstance(content, str):
        return [{"role": role, "content": content}]
    blocks = objects(content, f"{path}.content")
    paths = [f"{path}.content[{index}]" for index in range(len(blocks))]
    for block, where in zip(blocks, paths, strict=True):
        required(block, "type", str, f"{where}.")
    if role == "user":
        return _user(blocks, paths)
    return _assistant(blocks, paths)


def _user(blocks: list[Body], paths: list[str]) -> list[Body]:
    """Results of tools come before what else is said: they answer the turn before."""
    results: list[Body] = []
    parts: list[Body] = []
    for block, path in zip(blocks, paths, strict=True):
        kind = block["type"]
        if kind == "tool_result":
            results.append(_result(block, path))
        elif kind == "text":
            parts.append({"type": "text", "text": _text(block, path)})
        elif kind == "image":
            parts.append({"type": "image_url", "image_url": {"url": _image(block, path)}})
        else:
            raise Inexpressible(path, f"of type {kind} has no counterpart in chat completions")
    if parts or not results:
        results.append({"role": "user", "content": _plain(parts)})
    return results


def _assistant(blocks: list[Body], paths: list[str]) -> list[Body]:
    parts: list[Body] = []
    calls: list[Body] = []
    for block, path in zip(blocks, paths, strict=True):
        kind = block["type"]
        if kind == "text":
            parts.append({"type": "text", "text": _text(block, path)})
        elif kind == "tool_use":
            arguments = orjson.dumps(required(block, "input", dict, f"{path}.")).decode()
            function = {"name": required(block, "name", str, f"{path}."), "arguments": arguments}
            call_id = required(block, "id", str, f"{path}.")
            calls.append({"id": call_id, "type": "function", "function": function})
        elif kind not in ("thinking", "redacted_thinking"):
            # another model's thoughts are signed for it alone; Anthropic drops them likewise
            raise Inexpressible(path, f"of type {kind} has no counterpart in chat completions")
    message: Body = {"role": "assistant", "content": _plain(parts) if parts else None}
    if calls:
        message["tool_calls"] = calls
    elif not parts:
        message["content"] = ""
    return [message]


def _result(block: Body, path: str) -> Body:
    content = block.get("content")
    if content is None:
        content = ""
    elif not isinstance(content, str):
        content = _plain(
            [
                {"type": "text", "text": _text(part, f"{path}.content[{index}]")}
                for index, part in enumerate(objects(content, f"{path}.content"))
            ]
        )
    if optional(block, "is_error", bool, f"{path}."):
        # chat completions have no place for it but the text
        content = f"Error: {content}" if isinstance(content, str) else [_ERROR, *content]
    call_id = required(block, "tool_use_id", str, f"{path}.")
    return {"role": "tool", "tool_call_id": call_id, "content": content}


_ERROR: Body = {"type": "text", "text": "Error:"}


def _text(block: Body, path: str) -> str:
    if block.get("type") != "text":
        raise Inexpressible(path, f"of type {block.get('type')} must be text in chat completions")
    return required(block, "text", str, f"{path}.")


def _image(block: Body, path: str) -> str:
    source = required(block, "source", dict, f"{path}.")
    if source.get("type") == "url":
        return required(source, "url", str, f"{path}.source.")
    if source.get("type") == "base64":
        media = required(source, "media_type", str, f"{path}.source.")
        return f"data:{media};base64,{required(source, 'data', str, f'{path}.source.')}"
    raise Inexpressible(f"{path}.source")


def _plain(parts: list[Body]) -> str | list[Body]:
    """The plain form where there is one: servers and templates know it best."""
    if not parts:
        return ""
    if len(parts) == 1 and parts[0]["type"] == "text":
        return str(parts[0]["text"])
    return parts
