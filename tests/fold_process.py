"""Another process that folds: `python fold_process.py fold URL SPOOL MOST NOW`, as
`another_process.py` starts it. Prints the frontier after every step."""

import sys
from pathlib import Path

from ledger_rows import BUNDLE, TASK, terms

from gateway.certificates.fold import Subject, fold
from gateway.storage.store import Store
from gateway.storage.tables import Certificate
from router.router import Start


def main(_: str, url: str, spool: str, most: str, now: str) -> None:
    subject = Subject(terms=terms(), bundle=BUNDLE, offline=None, start=Start())
    with Store.open(url, Path(spool)) as store:
        print("open", flush=True)
        idle = 0
        while idle < 3:
            before = frontier(store)
            fold(store, subject, now=float(now), most=int(most))
            after = frontier(store)
            idle = idle + 1 if after == before else 0
            print(after, flush=True)


def frontier(store: Store) -> str:
    with store.session() as session:
        return session.get_one(Certificate, (TASK, BUNDLE)).frontier


if __name__ == "__main__":
    print("ready", flush=True)
    sys.stdin.readline()
    main(*sys.argv[1:])
