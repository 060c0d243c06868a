"""Take a database away from everybody who uses it, and give it back."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from postgres import Postgres

from gateway.storage.store import Store


@contextmanager
def outage(store: Store, server: Postgres | None) -> Iterator[None]:
    """No connection can be made, and none that is open goes on. ``server``: of a PostgreSQL
    store."""
    if server is not None:
        url = store.engine.url.render_as_string(hide_password=False)
        server.close_to(url, closed=True)
        try:
            yield
        finally:
            server.close_to(url, closed=False)
        return
    path = Path(str(store.engine.url.database))
    # a folder in the file's place; the pool's connections would still have the old file
    store.engine.dispose()
    aside = path.rename(path.with_suffix(".aside"))
    path.mkdir()
    try:
        yield
    finally:
        path.rmdir()
        aside.rename(path)
