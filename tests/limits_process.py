"""A gateway's limits in another process: `python limits_process.py VERB URL SPOOL NUMBER COUNT`.

knock LIMIT COUNT   send COUNT requests of one key with LIMIT a minute, eight at a time; prints how
                    many were let in, and when the first and the last was asked
spend USD COUNT     hold and settle COUNT calls of 0.10 dollars of a budget of USD, some of which
                    cost half; prints what was spent

Each opens the store, prints "ready" and waits for a line, so that several begin at once.
"""

import asyncio
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from gateway.access.budgets import Budgets
from gateway.access.keys import Caller
from gateway.access.limits import Limits
from gateway.config import Task
from gateway.errors import InsufficientQuota, RateLimited
from gateway.storage.store import Store
from gateway.wire.protocol import Incoming, Sink

TASK = "triage"


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
    budgets = Budgets(store.engine, lambda usage, model: usage.completion * 1e-5, wait_s=60)
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


def main(verb: str, url: str, spool: str, number: str, count: str) -> None:
    with Store.open(url, Path(spool)) as store:
        print("ready", flush=True)
        sys.stdin.readline()
        if verb == "knock":
            asyncio.run(knock(store, int(number), int(count)))
        else:
            asyncio.run(spend(store, float(number), int(count)))


if __name__ == "__main__":
    main(*sys.argv[1:])
