"""Another process on the same database: `python store_process.py VERB URL SPOOL ARGUMENTS…`.

append NAME COUNT   append COUNT rows, sixteen at a time, printing each id once it is durable;
                    ids begin with NAME, and odd rows repeat the request of the row before
shared NAME COUNT   the same, but every process sends the same COUNT requests
claim OWNER LIMIT   claim until nothing is left, printing each claimed id
open                open the store, print "open"

Each prints "ready" and waits for a line before it begins, so that several begin at once.
"""

import asyncio
import sys
import time
from pathlib import Path
from typing import Any

from gateway.errors import StoreError
from gateway.storage import exchanges
from gateway.storage.store import Store
from gateway.storage.tables import Exchange, utcnow

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


def main(verb: str, url: str, spool: str, *rest: str) -> None:
    with Store.open(url, Path(spool)) as store:
        if verb in ("append", "shared"):
            asyncio.run(append(store, rest[0], int(rest[1]), verb == "shared"))
        elif verb == "claim":
            claim(store, rest[0], int(rest[1]))
        else:
            print("open", flush=True)


if __name__ == "__main__":
    print("ready", flush=True)
    sys.stdin.readline()
    try:
        main(*sys.argv[1:])
    except StoreError as error:
        sys.exit(str(error))
