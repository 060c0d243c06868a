"""Another process that folds a canary: `python canary_process.py fold URL SPOOL MOST NOW`, as
`another_process.py` starts it. Prints the challenger's counted requests after every step."""

import sys
from datetime import datetime
from pathlib import Path

from ledger_rows import TASK

from gateway.canaries.fold import fold
from gateway.config import Claim, Task
from gateway.storage.store import Store

#: too few rows to end it
PATIENT = Task(name=TASK, claim=Claim(model=["m"]))


def main(_: str, url: str, spool: str, most: str, now: str) -> None:
    with Store.open(url, Path(spool)) as store:
        print("open", flush=True)
        last, idle = -1, 0
        while idle < 3:
            canary, _more = fold(
                store, PATIENT, now=datetime.fromisoformat(now), most=int(most), settle_s=0.0
            )
            assert canary is not None
            idle = idle + 1 if canary.requests == last else 0
            last = canary.requests
            print(last, flush=True)


if __name__ == "__main__":
    print("ready", flush=True)
    sys.stdin.readline()
    main(*sys.argv[1:])
