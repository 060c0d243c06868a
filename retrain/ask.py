"""Ask the student over HTTP as the gateway does, and see whether an adapter is really served."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp
import orjson

from gateway.draft import TOP_LOGPROBS, read_draft
from gateway.errors import BundleError, UpstreamError
from gateway.upstreams.adapters import loaded
from retrain.errors import StudentError
from retrain.progress import Bar
from router.decision import Answer

Messages = Sequence[Mapping[str, Any]]

TIMEOUT_S = 180.0
ATTEMPTS = 4
BACKOFF_S = 0.5
#: what a token's log-probability may differ by (nats) between two runs of the same adapter,
#: because other requests shared the batch
NOISE = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeReport:
    """What asking an adapter and its reference the same found. ``changed``: the prompts on which
    they differ, in text or by more than numerical noise in the first token's log-probability."""

    adapter: str
    reference: str
    asked: int
    changed: int
    changed_text: int


def ask_student(
    prompts: Sequence[Messages],
    *,
    base_url: str,
    adapter: str,
    max_tokens: int,
    concurrency: int = 16,
    progress: bool = True,
    label: str = "ask the student",
) -> list[Answer | None]:
    """Its answers at temperature 0, in order; None where it refuses the request (a prompt too
    long) or failed every attempt. Raises StudentError where it answers none at all."""
    return asyncio.run(
        ask(
            prompts,
            base_url=base_url,
            adapter=adapter,
            max_tokens=max_tokens,
            concurrency=concurrency,
            progress=progress,
            label=label,
        )
    )


async def ask(
    prompts: Sequence[Messages],
    *,
    base_url: str,
    adapter: str,
    max_tokens: int,
    concurrency: int = 16,
    progress: bool = True,
    label: str = "ask the student",
) -> list[Answer | None]:
    """The same, for callers that run an event loop."""
    answers: list[Answer | None] = [None] * len(prompts)
    waiting = iter(enumerate(prompts))
    failures: list[str] = []

    async def worker(session: aiohttp.ClientSession, bar: Bar) -> None:
        for index, messages in waiting:
            body = {
                "model": adapter,
                "messages": list(messages),
                "temperature": 0,
                "max_tokens": max_tokens,
                "logprobs": True,
                "top_logprobs": TOP_LOGPROBS,
            }
            try:
                answers[index] = await _ask_one(session, base_url, orjson.dumps(body))
            except StudentError as error:
                failures.append(str(error))
            bar.advance(note=f"{len(failures)} failed" if failures else None)

    workers = min(concurrency, len(prompts))
    limits = aiohttp.ClientTimeout(total=TIMEOUT_S, sock_connect=10.0)
    connections = aiohttp.TCPConnector(limit=workers)
    async with aiohttp.ClientSession(timeout=limits, connector=connections) as session:
        with Bar(label, len(prompts), show=progress) as bar:
            async with asyncio.TaskGroup() as tasks:
                for _ in range(workers):
                    tasks.create_task(worker(session, bar))
    if failures and len(failures) == len(prompts):
        raise StudentError(f"adapter {adapter} answers nothing: {failures[-1]}")
    return answers


async def _ask_one(session: aiohttp.ClientSession, base_url: str, body: bytes) -> Answer:
    url, headers = f"{base_url}/chat/completions", {"content-type": "application/json"}
    for attempt in range(ATTEMPTS):
        if attempt:
            await asyncio.sleep(BACKOFF_S * 2 ** (attempt - 1))
        try:
            async with session.post(url, data=body, headers=headers) as response:
                status, raw = response.status, await response.read()
        except (aiohttp.ClientError, TimeoutError) as error:
            reason = getattr(error, "strerror", None) or type(error).__name__
            failure = f"no answer from {base_url} ({reason})"
            continue
        if status == 200:
            try:
                return read_draft(orjson.loads(raw)).answer
            except (UpstreamError, orjson.JSONDecodeError) as error:
                raise StudentError(f"its answer cannot be read ({error})") from None
        failure = f"{base_url} answers {status}: {_reason(raw)}"
        if status < 500 and status not in (408, 409, 429):
            break
    raise StudentError(failure)


def _reason(raw: bytes) -> str:
    try:
        return str(orjson.loads(raw)["error"]["message"])[:200]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return raw.decode("utf-8", "replace").strip()[:200]


def probe(
    base_url: str, adapter: str, messages: Sequence[Messages], *, reference: str = "v0"
) -> ProbeReport:
    """Ask ``adapter`` and ``reference`` the same prompts.

    vLLM can load an adapter, answer under its name and serve the bare base model all the same
    (module names that do not match). Raises BundleError where the adapter is not loaded or
    changes nothing.
    """
    return asyncio.run(_probe(base_url, adapter, messages, reference))


async def _probe(
    base_url: str, adapter: str, messages: Sequence[Messages], reference: str
) -> ProbeReport:
    async with aiohttp.ClientSession() as session:
        names = await loaded(session, base_url)
    for name in (adapter, reference):
        if name not in names:
            raise BundleError(f"adapter {name} is not loaded on the student server")
    pairs = []
    for name in (reference, adapter):
        try:
            answers = await ask(
                messages,
                base_url=base_url,
                adapter=name,
                max_tokens=16,
                concurrency=8,
                progress=False,
            )
        except StudentError as error:
            raise BundleError(str(error)) from None
        pairs.append(answers)
    texts = differences = 0
    for before, after in zip(*pairs, strict=True):
        if before is None or after is None:
            raise BundleError(f"adapter {adapter} does not answer every probe")
        texts += before.text != after.text
        differences += before.text != after.text or _first(before, after) > NOISE
    if not differences:
        raise BundleError(
            f"adapter {adapter} is loaded but answers like {reference}: its weights have no effect"
        )
    return ProbeReport(
        adapter=adapter,
        reference=reference,
        asked=len(messages),
        changed=differences,
        changed_text=texts,
    )


def _first(before: Answer, after: Answer) -> float:
    """How far the first tokens' log-probabilities are apart."""
    if not before.tokens or not after.tokens:
        return 0.0
    return abs(before.tokens[0].logprob - after.tokens[0].logprob)
