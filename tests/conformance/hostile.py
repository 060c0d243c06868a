"""llmock as a teacher, and as a student, that does what upstreams do on a bad day.

The client is the official one with its default retries, and does what an application should: it
asks again after an error in mid-stream. Judged are what it got (the whole text or an error, never
less of the text without one; never later than its time) and llmock's own verdict on its client,
which is the gateway.
"""

import contextlib
import json
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import openai
from rig import Clock, Result, gateway, pinned, process, python, spec_server
from student import promoted, shim

#: the gateway's patience with the teacher, and more than a case may take with all its retries
PATIENCE_S = 2.0
LONGEST_S = 30.0
TASK = {"name": "everything", "mode": "collect", "claim": {"model": ["gpt-4o"]}}
#: the pauses it judges are mostly those of the official client and of the application, and under
#: load their jitter looks constant
NOT_OURS = ("no_backoff",)
#: what llmock says of a client that turns to another model in place of asking again, which it
#: cannot see
FALLS_BACK = (*NOT_OURS, "truncated_stream_accepted", "malformed_chunk_ignored", "gave_up")
TOOL = {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """``behaviours`` are llmock's; ``status``: the error that the client must get."""

    name: str
    behaviours: list[dict[str, Any]]
    status: int | None = None
    streams_only: bool = False
    tools: bool = False


def fault(kind: str, after: int, **more: Any) -> Case:
    name = f"{kind} after {after} chunks"
    behaviour = {"type": "stream_fault", "kind": kind, "after_chunks": after, **more}
    return Case(name=name, behaviours=[behaviour], streams_only=True)


def cases() -> Iterator[Case]:
    for status in (400, 401, 403, 404, 409, 422):
        forever = {"type": "fail", "status": status, "times": None}
        # 409 the client repeats by itself; it fails each time
        yield Case(name=f"{status}", behaviours=[forever], status=status)
    for status in (408, 429, 500, 502, 503, 504, 529):
        for times in (1, 2):
            once = {"type": "fail", "status": status, "times": times}
            yield Case(name=f"{status}, {times} times", behaviours=[once])
    for wait_s in (1, 2):
        limited = {"type": "fail", "status": 429, "retry_after": wait_s, "times": 2}
        yield Case(name=f"429, retry after {wait_s} s", behaviours=[limited])
    outage = {"type": "fail", "status": 503, "times": None}
    yield Case(name="outage", behaviours=[outage], status=503)
    yield Case(name="slow", behaviours=[{"type": "delay", "seconds": PATIENCE_S / 2}])
    yield Case(name="too slow", behaviours=[{"type": "delay", "seconds": PATIENCE_S * 4}])
    for seconds in (PATIENCE_S / 2, PATIENCE_S * 4):
        late = {"type": "slow_first_token", "seconds": seconds}
        yield Case(name=f"first token in {seconds:g} s", behaviours=[late], streams_only=True)
    for after in (0, 1, 2, 5):
        for kind in ("disconnect", "truncate", "malformed"):
            yield fault(kind, after)
    for after in (0, 1, 5):
        yield fault("stall", after, stall_seconds=PATIENCE_S * 4)
    yield fault("stall", 2, stall_seconds=PATIENCE_S * 0.4)
    twice = [fault("disconnect", 1, times=2).behaviours[0], *fault("truncate", 2).behaviours]
    yield Case(name="disconnect, disconnect, truncate", behaviours=twice, streams_only=True)
    for kind in ("malformed_arguments", "unknown_tool"):
        # as the model said it: the application's own business
        yield Case(name=kind, behaviours=[{"type": "tool_fault", "kind": kind}], tools=True)


def suites() -> Iterator[Result]:
    """All three at once: most of their time is waiting."""
    python("tools")
    runs = (
        partial(teacher, "request of no task", {}),
        partial(teacher, "request of a task", {"tasks": [TASK]}),
        student,
    )
    with ThreadPoolExecutor(len(runs)) as pool:
        yield from pool.map(lambda run: run(), runs)


def teacher(name: str, sections: dict[str, Any]) -> Result:
    clock = Clock()
    sections = {"teacher": {"timeout_s": PATIENCE_S, "retries": 1}, **sections}
    with (
        tempfile.TemporaryDirectory() as folder,
        llmock() as mock,
        gateway(Path(folder), f"{mock}/v1", **sections) as url,
        openai.OpenAI(base_url=f"{mock}/v1", api_key="app") as direct,
    ):
        return result(f"llmock, hostile teacher, {name}", clock, judged(mock, url, direct))


def student() -> Result:
    """A good teacher, and a student that fails: the answer is always the teacher's, whole."""
    clock = Clock()
    with (
        tempfile.TemporaryDirectory() as folder,
        spec_server() as good,
        llmock() as mock,
        shim(mock) as student_url,
        openai.OpenAI(base_url=good, api_key="app") as direct,
    ):
        state = Path(folder)
        sections = {
            "teacher": {"base_url": good},
            "student": {"base_url": student_url, "timeout_s": PATIENCE_S},
            "tasks": [TASK | {"mode": "serve", "output": {"kind": "text"}}],
        }
        promoted(state, sections)
        with gateway(state, good, **sections) as url:
            return result("llmock, hostile student", clock, judged(mock, url, direct, student=True))


def result(suite: str, clock: Clock, verdicts: Iterator[tuple[str, str]]) -> Result:
    found = list(verdicts)
    return Result(
        suite=suite,
        version=pinned("tools", "llmock"),
        passed=sum(not problem for _, problem in found),
        total=len(found),
        failed=[f"{case}: {problem}" for case, problem in found if problem],
        seconds=clock.seconds,
    )


def judged(
    mock: str, url: str, direct: openai.OpenAI, *, student: bool = False
) -> Iterator[tuple[str, str]]:
    """Each case with what was wrong; nothing: an empty string. ``direct`` gives the right answer,
    which whatever happens to a student must not change."""
    with openai.OpenAI(base_url=url, api_key="app", timeout=LONGEST_S / 2) as client:
        for case in cases():
            for stream in (False, True):
                if case.streams_only and not stream:
                    continue
                body: dict[str, Any] = {"model": "gpt-4o", "stream": stream}
                words = f"Tell me of {case.name}, please, in a few words."
                body["messages"] = [{"role": "user", "content": words}]
                if case.tools:
                    body["tools"] = [TOOL]
                told(mock, "reset")
                expected = "" if case.tools else complete(direct, body)
                if student:
                    case = replace(case, status=None)
                told(mock, "reset")
                told(mock, "scenario", {"behaviors": case.behaviours})
                clock = Clock()
                problem = wrong(client, body, case, expected)
                if clock.seconds > LONGEST_S:
                    problem += f" took {clock.seconds:.0f} s"
                problem += "".join(findings(mock, FALLS_BACK if student else NOT_OURS))
                yield f"{case.name}{', stream' if stream else ''}", problem


def wrong(client: openai.OpenAI, body: dict[str, Any], case: Case, expected: str) -> str:
    """What the application got, if it is not what it should have got."""
    wait_s, last = 0.5, None
    for _ in range(4):
        if last is not None:
            time.sleep(asked_s(last) or wait_s)
            wait_s *= 2
        try:
            text = complete(client, body)
        except Silent as error:
            return f"silently incomplete: {error} "
        except openai.APIStatusError as error:
            if error.status_code in (408, 409, 429) or error.status_code >= 500:
                last = error
                if case.status is None:
                    continue
            if error.status_code != case.status:
                return f"status {error.status_code} "
            keys = set(error.body) if isinstance(error.body, dict) else set()
            return "" if keys >= {"message", "type", "param", "code"} else f"body {error.body} "
        except (openai.APIError, ValueError) as error:
            # in mid-stream, or a timeout; a ValueError is the client's word for broken JSON
            last = error
            continue
        if case.status is not None:
            return "an answer in place of the error "
        return "" if case.tools or text == expected else f"said {text!r} for {expected!r} "
    return f"never answered: {last} "


def asked_s(error: Exception) -> float | None:
    """The pause that an error answer asks for."""
    headers = error.response.headers if isinstance(error, openai.APIStatusError) else {}
    return float(headers["retry-after"]) if "retry-after" in headers else None


class Silent(Exception):
    """The client was not told that something is missing."""


def complete(client: openai.OpenAI, body: dict[str, Any]) -> str:
    """The whole answer. Raises Silent where there is less, and what the client raises."""
    if not body["stream"]:
        choice = client.chat.completions.create(**body).choices[0]
        if choice.finish_reason is None:
            raise Silent(choice.message.content)
        return choice.message.content or ""
    parts, finished = [], False
    for chunk in client.chat.completions.create(**body):
        for choice in chunk.choices:
            parts.append(choice.delta.content or "")
            finished = finished or choice.finish_reason is not None
    if not finished:
        raise Silent("".join(parts))
    return "".join(parts)


def findings(mock: str, but: Sequence[str]) -> Iterator[str]:
    """llmock's verdict, errors and warnings."""
    for finding in told(mock, "verdict")["findings"]:
        if finding["code"] not in but:
            yield f"llmock: {finding['code']} ({finding['title']}) "


def told(mock: str, what: str, body: Any = None) -> Any:
    """llmock's admin API."""
    post = body is not None or what == "reset"
    data = json.dumps(body or {}).encode() if post else None
    headers = {"content-type": "application/json"}
    request = urllib.request.Request(f"{mock}/_llmock/{what}", data, headers)
    with urllib.request.urlopen(request, timeout=10) as response:
        return json.loads(response.read() or b"null")


@contextlib.contextmanager
def llmock() -> Iterator[str]:
    """Its address, without /v1."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    command = [python("tools").parent / "llmock", "serve", "--port", port, "--log-level", "error"]
    # or a short stream is over before its client can leave it
    command += ["--stream-chunk-delay-ms", "20"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with process(command, **quiet):
        deadline = time.monotonic() + 30
        while True:
            try:
                told(f"http://127.0.0.1:{port}", "verdict")
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
