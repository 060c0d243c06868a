"""What every test may ask for: a database of either kind, an open store on it, and no network."""

import ipaddress
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from postgres import Postgres, postgres

from gateway.storage.store import Store


def _only_loopback(event: str, args: tuple[Any, ...]) -> None:
    """Tests talk to this machine alone; a name or address of another one is a mistake."""
    if event == "socket.connect":
        address = args[1]
        host = address[0] if isinstance(address, tuple) else None  # a path: a Unix socket
    elif event == "socket.getaddrinfo":
        host = args[0]
    else:
        return
    if isinstance(host, bytes):
        host = host.decode()
    if not isinstance(host, str) or host in ("", "localhost"):
        return
    try:
        allowed = ipaddress.ip_address(host).is_loopback or host in ("0.0.0.0", "::")
    except ValueError:
        allowed = False
    if not allowed:
        raise RuntimeError(f"a test reached for the network: {event} {host!r}")


def pytest_configure() -> None:
    sys.addaudithook(_only_loopback)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Postgres]:
    """One server for the session. It is never skipped: where it does not start, tests fail."""
    # what the server promises when it crashes is not ours to test: fsync would only cost time
    with postgres("fsync=off") as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An empty database of each kind."""
    with ExitStack() as stack:
        if request.param == "sqlite":
            yield f"sqlite:///{tmp_path / 'retort.db'}"
        else:
            server: Postgres = request.getfixturevalue("postgres_server")
            yield stack.enter_context(server.database())


@pytest.fixture
def store(database_url: str, tmp_path: Path) -> Iterator[Store]:
    """An open store on an empty database of each kind; `append` still needs `start`."""
    with Store.open(database_url, tmp_path / "spool") as store:
        yield store
