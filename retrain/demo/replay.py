"""Send messages through the gateway with the unmodified openai client, and note what came back."""

import asyncio
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from openai import APIError, AsyncOpenAI
from openai.types.chat import ChatCompletionMessageParam

from retrain.demo.scenario import Case

TIMEOUT_S = 180.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What one request got. ``route``, ``reason`` and ``bundle`` are the gateway's headers, empty
    where another server answered; ``first_token_s`` is known for streams; ``error`` is the message
    of the API error, and ``answer`` then empty."""

    case: Case
    answer: str
    request_id: str
    route: str
    reason: str
    bundle: str
    stream: bool
    latency_s: float
    first_token_s: float | None = None
    error: str | None = None


def replay(
    cases: Sequence[Case],
    *,
    base_url: str,
    api_key: str,
    model: str,
    concurrency: int,
    stream_share: float,
    seed: int,
    done: Callable[[Outcome], None],
) -> list[Outcome]:
    """Ask for every case, at most ``concurrency`` at once; the outcomes are in the cases' order.

    ``done`` is called after each. Which requests are streams is drawn by ``seed``. API errors
    become outcomes; anything else is raised.
    """
    draw = random.Random(seed)
    streams = [draw.random() < stream_share for _ in cases]

    async def all_of_them() -> list[Outcome]:
        gate = asyncio.Semaphore(concurrency)
        async with AsyncOpenAI(
            base_url=base_url, api_key=api_key, timeout=TIMEOUT_S, max_retries=2
        ) as client:

            async def one(case: Case, stream: bool) -> Outcome:
                async with gate:
                    outcome = await _ask(client, case, model, stream)
                done(outcome)
                return outcome

            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(one(case, stream))
                    for case, stream in zip(cases, streams, strict=True)
                ]
            return [task.result() for task in tasks]

    return asyncio.run(all_of_them())


async def _ask(client: AsyncOpenAI, case: Case, model: str, stream: bool) -> Outcome:
    messages = cast("list[ChatCompletionMessageParam]", list(case.messages))
    start = time.perf_counter()
    headers: Mapping[str, str] = {}
    first: float | None = None
    answer, error = "", None
    create = client.chat.completions.with_raw_response.create
    try:
        if stream:
            streamed = await create(model=model, messages=messages, temperature=0, stream=True)
            headers = streamed.headers
            async for chunk in streamed.parse():
                text = chunk.choices[0].delta.content if chunk.choices else None
                if text:
                    first = first or time.perf_counter() - start
                    answer += text
        else:
            whole = await create(model=model, messages=messages, temperature=0)
            headers = whole.headers
            answer = whole.parse().choices[0].message.content or ""
    except APIError as caught:
        error = caught.message
        response: Any = getattr(caught, "response", None)
        headers = response.headers if response is not None else headers
    return Outcome(
        case=case,
        answer=answer,
        request_id=headers.get("x-request-id", ""),
        route=headers.get("x-retort-route", ""),
        reason=headers.get("x-retort-reason", ""),
        bundle=headers.get("x-retort-bundle", ""),
        stream=stream,
        latency_s=time.perf_counter() - start,
        first_token_s=first,
        error=error,
    )
