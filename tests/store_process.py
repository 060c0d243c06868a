"""Another process on the same database: `python store_process.py VERB URL SPOOL ARGUMENTS…`.

append NAME COUNT   append COUNT rows, sixteen at a time, printing each id once it is durable;
                    ids begin with NAME, and odd rows repeat the request of the row before
shared NAME COUNT   the same, but every process sends the same COUNT requests
claim OWNER LIMIT   claim until nothing is left, printing each claimed id
knock LIMIT COUNT   send COUNT requests of one key with LIMIT a minute, eight at a time; prints how
                    many were let in, and when the first and the last was asked
spend USD COUNT     hold and settle COUNT calls of 0.10 dollars of a budget of USD; prints what was
                    spent
open                open the store, print "open"

Each prints "ready" and waits for a line before it begins, so that several begin at once.
"""

import asyncio
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from gateway import exchanges
from gateway.budgets import Budgets
from gateway.config import Price, Task
from gateway.errors import InsufficientQuota, RateLimited, StoreError
from gateway.keys import Caller
from gateway.limits import Limits
from gateway.protocol import Incoming, Sink
from gateway.store import Store
from gateway.tables import Exchange, utcnow

TASK = "triage"


def exchange(row_id: str, key: str | None = None, **columns: Any) -> Exchange:
    values: dict[str, Any] = {
        "at": utcnow(),
        "task": TASK,
        "group_key": row_id,
        "prompt": f"where is my parcel {row_id}",
        "body": {"messages": [{"role": "user", "content": f"where is my parcel {row_id}"}]},
        "teacher_text": "parcel",
        "route": "teacher",
        "reason": "collect",
    }
    return Exchange(id=row_id, dedupe_key=key or f"key of {row_id}", **(values | columns))


async def append(store: Store, name: str, rows: int, shared: bool) -> None:
    numbers = iter(range(rows))

    async def work() -> None:
        for number in numbers:
            repeats = f"key of {name}-{number - 1}" if number % 2 else None
            key = f"shared {number}" if shared else repeats
            await store.append([exchange(f"{name}-{number}", key)])
            print(f"{name}-{number}", flush=True)

    await store.start()
    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(16):
                group.create_task(work())
    finally:
        await store.stop()


def claim(store: Store, owner: str, limit: int) -> None:
    while rows := exchanges.claim(store, TASK, ["captured"], limit, owner, lease_s=600):
        print("\n".join(row.id for row in rows), flush=True)
        time.sleep(0.01)  # what it would do with them


async def knock(store: Store, limit: int, count: int) -> None:
    limits = Limits(store.engine, wait_s=60)
    caller = Caller(id="key-1", rpm=limit)
    opened = 0

    async def work() -> None:
        nonlocal opened
        for _ in range(count // 8):
            incoming = Incoming(
                id="r", method="POST", path="/", query="", headers={}, caller=caller, raw=b"{}"
            )
            with suppress(RateLimited):
                await limits.admit(incoming, Sink(_nowhere, "r"))
                opened += 1

    began = time.time()
    await asyncio.gather(*(work() for _ in range(8)))
    print(opened, began, time.time(), flush=True)
    await limits.stop()


async def spend(store: Store, usd: float, count: int) -> None:
    budgets = Budgets(store.engine, Price(input_usd=0.0, output_usd=10.0), wait_s=60)
    task = Task.model_validate(
        {"name": TASK, "claim": {"model": ["m"]}, "budget": {"daily_usd": usd}}
    )
    spent = 0.0
    for number in range(count):
        with suppress(InsufficientQuota):
            hold = await budgets.hold(b'{"max_tokens": 10000}', task=task)
            assert hold is not None
            await asyncio.sleep(0.001)
            cost = 0.1 if number % 3 else 0.05
            hold.settle(cost)
            spent += cost
    print(spent, flush=True)
    await budgets.stop()


async def _nowhere(message: Any) -> None:
    return None


def main(verb: str, url: str, spool: str, *rest: str) -> None:
    with Store.open(url, Path(spool)) as store:
        if verb in ("append", "shared"):
            asyncio.run(append(store, rest[0], int(rest[1]), verb == "shared"))
        elif verb == "claim":
            claim(store, rest[0], int(rest[1]))
        elif verb == "knock":
            asyncio.run(knock(store, int(rest[0]), int(rest[1])))
        elif verb == "spend":
            asyncio.run(spend(store, float(rest[0]), int(rest[1])))
        else:
            print("open", flush=True)


if __name__ == "__main__":
    print("ready", flush=True)
    sys.stdin.readline()
    try:
        main(*sys.argv[1:])
    except StoreError as error:
        sys.exit(str(error))
