"""The upstream behind the gateway in the suites: a small OpenAI on a loopback port.

    python tests/conformance/spec_server.py [--port 0]

It answers every endpoint that the suites call with objects valid by OpenAI's specification and
prints its base URL when it listens. Ids it does not know are treated as if it knew them, as the
tests of the OpenAI clients expect of a mock; models that begin with ``missing`` do not exist.
"""

import argparse
import asyncio
import base64
import contextlib
import itertools
import json
import math
import struct
import time
from collections.abc import Callable, Coroutine
from typing import Any

from aiohttp import web
from little_model import Json, Said, fill, said, text_of, words

COUNT = itertools.count(1)
MODELS = ("gpt-6-astra", "gpt-4o", "gpt-4o-mini", "text-embedding-3-small")

#: what a handler trips over where a request was not valid
TRIPPED = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError)

Work = Callable[[web.Request, Json], Coroutine[Any, Any, web.StreamResponse]]


class Refused(Exception):
    def __init__(self, status: int, message: str, code: str | None, param: str | None) -> None:
        self.status = status
        self.error = {"message": message, "type": "invalid_request_error"}
        self.error |= {"param": param, "code": code}


def bad(message: str, param: str | None = None) -> Refused:
    return Refused(400, message, None, param)


def new_id(prefix: str) -> str:
    return f"{prefix}-{next(COUNT):08x}"


def now() -> int:
    return int(time.time())


def served(work: Work) -> Callable[[web.Request], Coroutine[Any, Any, web.StreamResponse]]:
    async def answer(request: web.Request) -> web.StreamResponse:
        raw = await request.read()
        try:
            if not request.headers.get("authorization", "").startswith("Bearer "):
                raise Refused(401, "You didn't provide an API key.", "invalid_api_key", None)
            try:
                body = json.loads(raw) if raw else {}
            except ValueError:
                raise bad("We could not parse the JSON body of your request.") from None
            if not isinstance(body, dict):
                raise bad("The body must be a JSON object.")
            model = body.get("model")
            if isinstance(model, str) and model.startswith("missing"):
                text = f"The model `{model}` does not exist."
                raise Refused(404, text, "model_not_found", "model")
            return await work(request, body)
        except Refused as error:
            return web.json_response({"error": error.error}, status=error.status)
        except TRIPPED as error:
            # it checks nothing in advance; what it trips over was not valid
            wrong = bad(f"Your request is not valid: {error}.")
            return web.json_response({"error": wrong.error}, status=wrong.status)

    return answer


async def stream(request: web.Request, events: list[str], *, pause_s: float = 0.0) -> Any:
    response = web.StreamResponse(headers={"content-type": "text/event-stream; charset=utf-8"})
    await response.prepare(request)
    with contextlib.suppress(ConnectionResetError):
        for event in events:
            if pause_s:
                await asyncio.sleep(pause_s)
            await response.write(event.encode())
        await response.write_eof()
    return response


def data(value: Json) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"


# -- chat completions


async def chat(request: web.Request, body: Json) -> web.StreamResponse:
    messages = body.get("messages")
    if not isinstance(body.get("model"), str):
        raise bad("you must provide a model parameter", "model")
    if not isinstance(messages, list) or not messages or not isinstance(messages[0], dict):
        raise bad("'messages' must be a non-empty array.", "messages")
    answer = said(body)
    if not body.get("stream"):
        return web.json_response(completion(body, answer))
    # `slow` in the last message: for clients that leave in the middle
    slow = "slow" in text_of(messages[-1]).lower()
    return await stream(request, list(chunks(body, answer)), pause_s=0.2 if slow else 0.0)


def message(answer: Said, body: Json) -> Json:
    made: Json = {"role": "assistant", "content": answer.text, "refusal": None, "annotations": []}
    if answer.calls and body.get("functions") and not body.get("tools"):
        name, arguments = answer.calls[0]
        return made | {"function_call": {"name": name, "arguments": json.dumps(arguments)}}
    if answer.calls:
        made["tool_calls"] = tool_calls(answer)
    return made


def tool_calls(answer: Said) -> list[Json]:
    return [
        {
            "id": new_id("call"),
            "type": "function",
            "function": {"name": name, "arguments": json.dumps(args, ensure_ascii=False)},
        }
        for name, args in answer.calls
    ]


def finish(answer: Said) -> str:
    return "tool_calls" if answer.calls else "stop"


def completion(body: Json, answer: Said) -> Json:
    choices = [
        {
            "index": index,
            "message": message(answer, body),
            "logprobs": logprobs(answer.text, body),
            "finish_reason": finish(answer),
        }
        for index in range(count(body))
    ]
    return head(body, "chat.completion") | {"choices": choices, "usage": usage(body, answer)}


def count(body: Json) -> int:
    n = body.get("n")
    return bounded("n", n, 128) if isinstance(n, int) and n > 0 else 1


def bounded(name: str, value: Any, limit: int) -> int:
    """As the specification bounds it. Raises Refused."""
    if not isinstance(value, int) or not 0 < value <= limit:
        raise bad(f"'{name}' must be an integer from 1 to {limit}.", name)
    return value


def head(body: Json, kind: str) -> Json:
    return {
        "id": new_id("chatcmpl"),
        "object": kind,
        "created": now(),
        "model": body["model"],
        "service_tier": "default",
        "system_fingerprint": "fp_conformance",
    }


def usage(body: Json, answer: Said) -> Json:
    asked = max(1, len(json.dumps(body.get("messages"))) // 4)
    answered = max(1, len(words(answer.text or "")) + 8 * len(answer.calls)) * count(body)
    zero = {"accepted_prediction_tokens": 0, "rejected_prediction_tokens": 0, "audio_tokens": 0}
    return {
        "prompt_tokens": asked,
        "completion_tokens": answered,
        "total_tokens": asked + answered,
        "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0, **zero},
    }


def logprobs(text: str | None, body: Json) -> Json | None:
    if not body.get("logprobs") or text is None:
        return None
    top = body.get("top_logprobs") or 0
    if top:
        bounded("top_logprobs", top, 20)

    def token(word: str, logprob: float) -> Json:
        return {"token": word, "logprob": logprob, "bytes": list(word.encode())}

    others = [[token(f"~{k}", -5.0 - k) for k in range(top)] for _ in words(text)]
    content = [
        token(word, -0.01) | {"top_logprobs": [token(word, -0.01), *other][:top]}
        for word, other in zip(words(text), others, strict=True)
    ]
    return {"content": content, "refusal": None}


def chunks(body: Json, answer: Said) -> Any:
    first = head(body, "chat.completion.chunk")
    wants_usage = bool((body.get("stream_options") or {}).get("include_usage"))

    def chunk(index: int, delta: Json, text: str | None = None, end: str | None = None) -> str:
        choice = {"index": index, "delta": delta, "finish_reason": end}
        choice["logprobs"] = logprobs(text, body)
        made = first | {"choices": [choice]}
        return data(made | {"usage": None} if wants_usage else made)

    for index in range(count(body)):
        yield chunk(index, {"role": "assistant", "content": "", "refusal": None})
        for word in words(answer.text or ""):
            yield chunk(index, {"content": word}, word)
        for k, call in enumerate(tool_calls(answer)):
            arguments = call["function"]["arguments"]
            opening = call["function"] | {"arguments": ""}
            yield chunk(index, {"tool_calls": [call | {"index": k, "function": opening}]})
            for start in range(0, len(arguments), 9):
                part = {"arguments": arguments[start : start + 9]}
                yield chunk(index, {"tool_calls": [{"index": k, "function": part}]})
        yield chunk(index, {}, end=finish(answer))
    if wants_usage:
        yield data(first | {"choices": [], "usage": usage(body, answer)})
    yield "data: [DONE]\n\n"


# -- stored completions


def stored(completion_id: str, body: Json) -> Json:
    body = {"model": "gpt-6-astra", "messages": [{"role": "user", "content": "stored"}]} | body
    made = completion(body, said(body))
    return made | {"id": completion_id, "metadata": body.get("metadata") or {}}


def page(items: list[Json]) -> Json:
    first = items[0]["id"] if items else ""
    last = items[-1]["id"] if items else ""
    return {
        "object": "list",
        "data": items,
        "first_id": first,
        "last_id": last,
        "has_more": False,
    }


async def list_stored(request: web.Request, body: Json) -> web.StreamResponse:
    return web.json_response(page([stored(new_id("chatcmpl"), {})]))


async def one_stored(request: web.Request, body: Json) -> web.StreamResponse:
    found = request.match_info["id"]
    if request.method == "DELETE":
        gone = {"object": "chat.completion.deleted", "id": found, "deleted": True}
        return web.json_response(gone)
    return web.json_response(stored(found, body))


async def stored_messages(request: web.Request, body: Json) -> web.StreamResponse:
    item = {"id": f"{request.match_info['id']}-0", "role": "user", "content": "stored"}
    kept = {"role": "assistant", "refusal": None, "content_parts": None}
    return web.json_response(page([item | kept]))


# -- completions, embeddings, models


async def completions(request: web.Request, body: Json) -> web.StreamResponse:
    if not isinstance(body.get("model"), str):
        raise bad("you must provide a model parameter", "model")
    text = f"You said: {body.get('prompt')}"
    answer = Said(text=text)
    first = {"id": new_id("cmpl"), "object": "text_completion", "created": now()}
    first |= {"model": body["model"], "system_fingerprint": "fp_conformance"}

    def choice(index: int, part: str, end: str | None) -> Json:
        return {"index": index, "text": part, "logprobs": None, "finish_reason": end}

    if body.get("stream"):
        events = [data(first | {"choices": [choice(0, word, None)]}) for word in words(text)]
        events.append(data(first | {"choices": [choice(0, "", "stop")]}))
        return await stream(request, [*events, "data: [DONE]\n\n"])
    choices = [choice(index, text, "stop") for index in range(count(body))]
    return web.json_response(first | {"choices": choices, "usage": usage(body, answer)})


async def embeddings(request: web.Request, body: Json) -> web.StreamResponse:
    if not isinstance(body.get("model"), str) or "input" not in body:
        raise bad("'model' and 'input' are required.", "input")
    given = body["input"]
    many = given if isinstance(given, list) and not isinstance(given[:1], int) else [given]
    if isinstance(given, list) and given and isinstance(given[0], int):
        many = [given]
    size = bounded("dimensions", body.get("dimensions") or 8, 4096)
    made = []
    for index, one in enumerate(many):
        seed = sum(json.dumps(one).encode())
        vector = [math.sin(seed + k) for k in range(size)]
        # by the specification's schema an embedding is an array of numbers; the client's strict
        # mode, which its own tests use, refuses the base64 that it asks for
        packed = base64.b64encode(struct.pack(f"<{size}f", *vector)).decode()
        base64_wanted = body.get("encoding_format") == "base64" and body["model"].endswith("large")
        value = packed if base64_wanted else vector
        made.append({"object": "embedding", "index": index, "embedding": value})
    tokens = {"prompt_tokens": 8, "total_tokens": 8}
    listed = {"object": "list", "data": made, "model": body["model"], "usage": tokens}
    return web.json_response(listed)


def model(name: str) -> Json:
    return {"id": name, "object": "model", "created": 1_700_000_000, "owned_by": "openai"}


async def models(request: web.Request, body: Json) -> web.StreamResponse:
    return web.json_response({"object": "list", "data": [model(name) for name in MODELS]})


async def one_model(request: web.Request, body: Json) -> web.StreamResponse:
    name = request.match_info["id"]
    if name.startswith("missing"):
        raise Refused(404, f"The model '{name}' does not exist.", "model_not_found", "model")
    if request.method == "DELETE":
        return web.json_response({"id": name, "object": "model", "deleted": True})
    return web.json_response(model(name))


# -- responses


def response_usage() -> Json:
    return {
        "input_tokens": 8,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": 4,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 12,
    }


def output_item(body: Json) -> Json:
    """What the model says to the input, as the one output item: a message or a function call."""
    given = body.get("input")
    told = given if isinstance(given, str) else ""
    if isinstance(given, list):
        told = next((text_of(i) for i in reversed(given) if isinstance(i, dict)), "")
    wanted = ((body.get("text") or {}).get("format") or {}) if body.get("text") else {}
    functions = [t for t in body.get("tools") or [] if t.get("type") == "function"]
    as_chat: Json = {"messages": [{"role": "user", "content": told}], "functions": functions}
    as_chat["function_call"] = body.get("tool_choice") or "auto"
    answer = said(as_chat)
    if answer.calls:
        name, arguments = answer.calls[0]
        return {
            "type": "function_call",
            "id": new_id("fc"),
            "call_id": new_id("call"),
            "name": name,
            "arguments": json.dumps(arguments),
            "status": "completed",
        }
    text = answer.text
    if wanted.get("type") == "json_schema":
        text = json.dumps(fill(wanted.get("schema") or {}, told))
    part = {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
    return {
        "type": "message",
        "id": new_id("msg"),
        "role": "assistant",
        "status": "completed",
        "content": [part],
    }


def response(body: Json, item: Json | None, *, status: str = "completed") -> Json:
    done = status == "completed"
    return {
        "id": new_id("resp"),
        "object": "response",
        "created_at": now(),
        "status": status,
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "max_output_tokens": None,
        "model": body.get("model") or "gpt-6-astra",
        "output": [item] if done and item else [],
        "parallel_tool_calls": True,
        "previous_response_id": body.get("previous_response_id"),
        "reasoning": {"effort": None, "summary": None},
        "store": True,
        "temperature": 1.0,
        "text": {"format": {"type": "text"}},
        "tool_choice": "auto",
        "tools": [],
        "top_p": 1.0,
        "truncation": "disabled",
        "usage": response_usage() if done else None,
        "user": None,
        "metadata": body.get("metadata") or {},
    }


def response_events(body: Json) -> list[str]:
    item = output_item(body)
    whole = response(body, item)
    opened = whole | {"status": "in_progress", "output": [], "usage": None}
    at = {"output_index": 0, "item_id": item["id"]}
    events: list[Json] = [
        {"type": "response.created", "response": opened},
        {"type": "response.in_progress", "response": opened},
    ]
    if item["type"] == "message":
        part = item["content"][0]
        empty = item | {"content": [], "status": "in_progress"}
        here = at | {"content_index": 0}
        events += [
            {"type": "response.output_item.added", "output_index": 0, "item": empty},
            {"type": "response.content_part.added", **here, "part": part | {"text": ""}},
        ]
        for word in words(part["text"]):
            events.append({"type": "response.output_text.delta", **here, "delta": word})
            events[-1]["logprobs"] = []
        done = {"text": part["text"], "logprobs": []}
        events += [
            {"type": "response.output_text.done", **here, **done},
            {"type": "response.content_part.done", **here, "part": part},
        ]
    else:
        arguments = item["arguments"]
        empty = item | {"arguments": "", "status": "in_progress"}
        events += [
            {"type": "response.output_item.added", "output_index": 0, "item": empty},
            {"type": "response.function_call_arguments.delta", **at, "delta": arguments},
            {"type": "response.function_call_arguments.done", **at, "arguments": arguments},
        ]
        events[-1]["name"] = item["name"]
    events += [
        {"type": "response.output_item.done", "output_index": 0, "item": item},
        {"type": "response.completed", "response": whole},
    ]
    return [
        f"event: {event['type']}\n" + data(event | {"sequence_number": number})
        for number, event in enumerate(events)
    ]


async def responses(request: web.Request, body: Json) -> web.StreamResponse:
    if body.get("stream") or request.query.get("stream") == "true":
        return await stream(request, response_events(body))
    return web.json_response(response(body, output_item(body)))


async def one_response(request: web.Request, body: Json) -> web.StreamResponse:
    if request.method == "DELETE":
        gone = {"id": request.match_info["id"], "object": "response", "deleted": True}
        return web.json_response(gone)
    return await responses(request, body)


async def compact(request: web.Request, body: Json) -> web.StreamResponse:
    item = {"type": "compaction", "id": new_id("cmp"), "encrypted_content": "eA=="}
    made = {"id": new_id("resp"), "object": "response.compaction", "created_at": now()}
    return web.json_response(made | {"output": [item], "usage": response_usage()})


async def input_items(request: web.Request, body: Json) -> web.StreamResponse:
    part = {"type": "input_text", "text": "stored"}
    item = {"type": "message", "id": new_id("msg"), "role": "user", "status": "completed"}
    return web.json_response(page([item | {"content": [part]}]))


async def input_tokens(request: web.Request, body: Json) -> web.StreamResponse:
    return web.json_response({"object": "response.input_tokens", "input_tokens": 8})


def application() -> web.Application:
    app = web.Application(client_max_size=50_000_000)

    def add(methods: str, path: str, work: Work) -> None:
        for method in methods.split():
            app.router.add_route(method, "/v1" + path, served(work))

    add("POST", "/chat/completions", chat)
    add("GET", "/chat/completions", list_stored)
    add("GET POST DELETE", "/chat/completions/{id}", one_stored)
    add("GET", "/chat/completions/{id}/messages", stored_messages)
    add("POST", "/completions", completions)
    add("POST", "/embeddings", embeddings)
    add("GET", "/models", models)
    add("GET DELETE", "/models/{id}", one_model)
    add("POST", "/responses", responses)
    add("POST", "/responses/compact", compact)
    add("POST", "/responses/input_tokens", input_tokens)
    add("GET DELETE", "/responses/{id}", one_response)
    add("POST", "/responses/{id}/cancel", one_response)
    add("GET", "/responses/{id}/input_items", input_items)
    return app


async def run(port: int) -> None:
    runner = web.AppRunner(application(), handler_cancellation=True, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port)
    await site.start()
    bound = runner.addresses[0][1]
    print(f"http://127.0.0.1:{bound}/v1", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    asyncio.run(run(parser.parse_args().port))
