"""The real gateway on a real loopback port, in a thread of the test process.

with RunningGateway(config) as gateway:
    gateway.client().chat.completions.create(...)
    gateway.exchanges()
"""

import json
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import openai
import uvicorn
from sqlmodel import select

from gateway.app import create_app
from gateway.config import Config
from gateway.storage.store import Store
from gateway.storage.tables import Exchange, Request

Headers = dict[str, str]


class RunningGateway:
    def __init__(self, config: Config, *, store: Store | None = None) -> None:
        self.config = config
        if store is None:
            store = Store.open(config.database_url, config.state / "spool", config.store.commit_ms)
        self.store = store
        self._clients: list[openai.OpenAI] = []

    def __enter__(self) -> "RunningGateway":
        listener = socket.socket()
        listener.bind(("127.0.0.1", 0))
        self.port = listener.getsockname()[1]
        self._server = uvicorn.Server(
            uvicorn.Config(
                create_app(self.config, store=self.store),
                http="httptools",
                ws="none",
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=5,
            )
        )
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [listener]}, name="gateway", daemon=True
        )
        self._thread.start()
        wait_until(lambda: self._server.started or not self._thread.is_alive(), 20)
        assert self._server.started, "the gateway did not start"
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def stop(self) -> None:
        """As after SIGTERM; again is the same as once."""
        for client in self._clients:
            client.close()
        self._server.should_exit = True
        self._thread.join(20)
        assert not self._thread.is_alive(), "the gateway did not stop"

    @property
    def url(self) -> str:
        """The base URL, with /v1."""
        return f"http://127.0.0.1:{self.port}/v1"

    def client(self, api_key: str = "app-key") -> openai.OpenAI:
        """The unmodified official client, without its own retries."""
        client = openai.OpenAI(base_url=self.url, api_key=api_key, max_retries=0, timeout=20)
        self._clients.append(client)
        return client

    def exchanges(self) -> list[Exchange]:
        with self.store.session() as session:
            return list(session.exec(select(Exchange).order_by(Exchange.id)).all())

    def exchange(self) -> Exchange:
        """The only one there is."""
        (row,) = self.exchanges()
        return row

    def ledger(self, rows: int = 1) -> list[Request]:
        """The ledger, once it has this many rows: they are written a little later."""

        def read() -> list[Request]:
            with self.store.session() as session:
                return list(session.exec(select(Request).order_by(Request.id)).all())

        wait_until(lambda: len(read()) >= rows)
        return read()

    def send(
        self,
        method: str,
        path: str,
        body: bytes | str | dict[str, Any] = b"",
        headers: Headers | None = None,
    ) -> tuple[int, Headers, bytes]:
        """A request as raw as it gets; ``path`` from the root. Status, headers, body."""
        data = json.dumps(body).encode() if isinstance(body, dict) else body
        data = data.encode() if isinstance(data, str) else data
        lines = [f"{method} {path} HTTP/1.1", "host: gateway", "connection: close"]
        if data:
            lines += [f"content-length: {len(data)}", "content-type: application/json"]
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        with self.connect() as connection:
            connection.sendall("\r\n".join(lines).encode() + b"\r\n\r\n" + data)
            return read_response(connection)

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=20)

    def json(self, path: str) -> tuple[int, Any]:
        status, _, data = self.send("GET", path)
        return status, json.loads(data)

    def metric(self, line: str) -> float:
        """The value of one sample, such as ``retort_audits_total{result="agree",task="t"}``."""
        _, _, data = self.send("GET", "/metrics")
        for sample in data.decode().splitlines():
            name, _, value = sample.rpartition(" ")
            if name == line:
                return float(value)
        return 0.0


def read_response(connection: socket.socket) -> tuple[int, Headers, bytes]:
    """Until the server closes the connection."""
    raw = b""
    while part := connection.recv(65536):
        raw += part
    head, _, data = raw.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {}
    for line in lines:
        name, _, value = line.partition(": ")
        headers[name.lower()] = value
    if headers.get("transfer-encoding") == "chunked":
        data = _unchunk(data)
    return int(first.split(" ")[1]), headers, data


def _unchunk(data: bytes) -> bytes:
    parts = []
    while data:
        size, _, data = data.partition(b"\r\n")
        length = int(size, 16)
        parts.append(data[:length])
        data = data[length + 2 :]
    return b"".join(parts)


def wait_until(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "condition not met in time"
        time.sleep(0.01)
