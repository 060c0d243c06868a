"""A thousand streams at once through one gateway process: leaks, cross-talk, lost words.

    python benchmarks/soak_streams.py [--streams 1000] [--seconds 60]

The gateway is `retort serve` in a process of its own; this one is its upstream and its clients.
Every stream says its own number with every word and every word is checked; one in twenty leaves in
the middle. Half of the streams are a task's, half pass through. Ends with 1 where a stream was
wrong, or where memory after warm-up grew by more than a tenth.
"""

import argparse
import asyncio
import json
import os
import random
import resource
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "conformance"))
from rig import gateway

WORDS = 12
#: seconds between two words of a stream, about
PACE_S = 0.8
LEAVES = 0.05
GROWTH = 1.1
TASK = {"name": "soak", "mode": "collect", "claim": {"model": ["claimed"]}}


@dataclass
class Tally:
    open: int = 0
    most_open: int = 0
    whole: int = 0
    left: int = 0
    words: int = 0
    upstream_open: int = 0
    wrong: list[str] = field(default_factory=list)
    #: seconds since the start, resident kilobytes of the gateway
    memory: list[tuple[float, int]] = field(default_factory=list)


def word(name: str, k: int) -> str:
    return f"{name}.{k} "


async def upstream(tally: Tally) -> tuple[web.AppRunner, str]:
    async def chat(request: web.Request) -> web.StreamResponse:
        body = await request.json()
        name, dice = body["user"], random.Random(body["user"])
        head = {"id": name, "object": "chat.completion.chunk", "created": 1, "model": "m"}
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        tally.upstream_open += 1
        try:
            await response.prepare(request)
            for k in range(WORDS):
                choice: dict[str, Any] = {"index": 0, "delta": {"content": word(name, k)}}
                choice["finish_reason"] = None
                event = json.dumps(head | {"choices": [choice]})
                await response.write(f"data: {event}\n\n".encode())
                await asyncio.sleep(PACE_S * dice.uniform(0.7, 1.3))
            event = json.dumps(
                head | {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
            )
            await response.write(f"data: {event}\n\ndata: [DONE]\n\n".encode())
            await response.write_eof()
        finally:
            tally.upstream_open -= 1
        return response

    async def models(request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": []})

    app = web.Application()
    app.router.add_post("/v1/chat/completions", chat)
    app.router.add_get("/v1/models", models)
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, backlog=4096).start()
    return runner, f"http://127.0.0.1:{runner.addresses[0][1]}/v1"


async def client(number: int, url: str, until: float, tally: Tally, session: Any) -> None:
    """One stream after the other; the first begins at a time of its own."""
    dice = random.Random(number)
    await asyncio.sleep(dice.uniform(0, WORDS * PACE_S))
    turn = 0
    while time.monotonic() < until:
        name = f"s{number}t{turn}"
        turn += 1
        leaves_after = dice.randrange(1, WORDS) if dice.random() < LEAVES else None
        tally.open += 1
        tally.most_open = max(tally.most_open, tally.open)
        try:
            problem = await one(name, number, url, leaves_after, tally, session)
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            problem = f"{type(error).__name__} {error}"
        tally.open -= 1
        if problem:
            tally.wrong.append(f"{name}: {problem}")


async def one(
    name: str, number: int, url: str, leaves_after: int | None, tally: Tally, session: Any
) -> str:
    """What is wrong with the stream; empty where nothing is."""
    model = "claimed" if number % 2 else "unclaimed"
    body = {"model": model, "user": name, "stream": True}
    body["messages"] = [{"role": "user", "content": f"say {name}"}]
    said, finished, done = 0, False, False
    async with session.post(f"{url}/chat/completions", json=body) as response:
        if response.status != 200:
            return f"status {response.status}"
        async for line in response.content:
            if not line.startswith(b"data: "):
                continue
            if line.strip() == b"data: [DONE]":
                done = True
                continue
            event = json.loads(line.removeprefix(b"data: "))
            if "error" in event:
                return f"error event {event['error']['code']}"
            for choice in event["choices"]:
                finished = finished or choice["finish_reason"] == "stop"
                text = choice["delta"].get("content")
                if text:
                    if text != word(name, said):
                        return f"word {said} is {text!r}"
                    said += 1
                    tally.words += 1
                    if said == leaves_after:
                        tally.left += 1
                        return ""
    tally.whole += 1
    return "" if (said, finished, done) == (WORDS, True, True) else f"ended after {said} words"


def resident_kb(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    raise OSError("no VmRSS")


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def soak(streams: int, seconds: float, url: str, pid: int, tally: Tally) -> float:
    """Returns the gateway's share of a core."""
    started, cpu_before = time.monotonic(), cpu_s(pid)
    until = started + seconds

    async def watch() -> None:
        while True:
            tally.memory.append((time.monotonic() - started, resident_kb(pid)))
            await asyncio.sleep(1.0)

    watching = asyncio.create_task(watch())
    timeout = aiohttp.ClientTimeout(total=None, sock_read=60)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
        everyone = [client(n, url, until, tally, session) for n in range(streams)]
        await asyncio.gather(*everyone)
    share = (cpu_s(pid) - cpu_before) / (time.monotonic() - started)
    # those that left must be gone upstream too
    for _ in range(100):
        if tally.upstream_open == 0:
            break
        await asyncio.sleep(0.1)
    watching.cancel()
    return share


def grown(tally: Tally, seconds: float) -> float:
    """Resident memory in the last quarter of full load over that after warm-up (from 30 to 50 %
    of the time)."""
    early = [kb for at, kb in tally.memory if 0.3 * seconds <= at < 0.5 * seconds]
    late = [kb for at, kb in tally.memory if 0.75 * seconds <= at < seconds]
    return statistics.median(late) / statistics.median(early)


async def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=60)
    options = parser.parse_args()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = options.streams * 4 + 200
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise SystemExit(f"{options.streams} streams need {needed} open files; the limit is {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, needed), hard))
    tally = Tally()
    runner, base_url = await upstream(tally)
    with tempfile.TemporaryDirectory() as folder:
        state = Path(folder)
        # starting it waits, and the upstream must answer meanwhile
        running = gateway(state, base_url, tasks=[TASK])
        url = await asyncio.to_thread(running.__enter__)
        try:
            pid = json.loads((state / "gateway.json").read_text())["pid"]
            share = await soak(options.streams, options.seconds, url, pid, tally)
        finally:
            await asyncio.to_thread(running.__exit__, None, None, None)
    await runner.cleanup()
    growth = grown(tally, options.seconds)
    first = tally.memory[0][1]
    peak = max(kb for _, kb in tally.memory)
    print(f"streams open at once, at most   {tally.most_open}")
    print(f"streams whole / left            {tally.whole} / {tally.left}")
    print(f"words checked                   {tally.words}")
    print(f"streams wrong                   {len(tally.wrong)}")
    print(f"left open upstream at the end   {tally.upstream_open}")
    print(f"memory, peak over idle          {peak / first:.2f}")
    print(f"memory, end over warm           {growth:.3f}")
    print(f"gateway's share of a core       {share:.2f}")
    for problem in tally.wrong[:10]:
        print(f"  {problem}")
    return 1 if tally.wrong or tally.upstream_open or growth > GROWTH else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
