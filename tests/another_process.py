"""Start `store_process.py`, or another script like it, once or several times at once."""

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import ModuleType

import store_process

from gateway.storage.store import Store

Child = subprocess.Popen[str]


@contextmanager
def process(verb: str, store: Store, *rest: object) -> Iterator[Child]:
    """One child on a store's own database; killed at the end where it still runs."""
    with processes(verb, address(store), [rest]) as (child,):
        yield child


@contextmanager
def processes(
    verb: str,
    where: tuple[str, Path],
    arguments: Sequence[Sequence[object]],
    module: ModuleType = store_process,
) -> Iterator[list[Child]]:
    """A child for each of ``arguments``; they begin together. ``where``: URL and spool."""
    script = Path(str(module.__file__))
    with ExitStack() as running:
        children = []
        for rest in arguments:
            words = [verb, where[0], str(where[1]), *map(str, rest)]
            child = subprocess.Popen(
                [sys.executable, str(script), *words],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env={"PYTHONPATH": str(script.parent.parent)},
            )
            running.enter_context(child)
            running.callback(child.kill)
            children.append(child)
        for child in children:
            assert child.stdout is not None
            assert child.stdout.readline() == "ready\n"
        for child in children:
            assert child.stdin is not None
            child.stdin.write("go\n")
            child.stdin.flush()
        yield children


def address(store: Store) -> tuple[str, Path]:
    return store.engine.url.render_as_string(hide_password=False), store.spool_dir
