"""Run the gateway until it is told to stop."""

import contextlib
import json
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from math import ceil
from pathlib import Path
from threading import Event
from types import FrameType

import uvicorn

from gateway.app import create_app
from gateway.config import Config
from gateway.errors import ConfigError

logger = logging.getLogger(__name__)


def serve(config: Config) -> None:
    """Returns after SIGTERM or SIGINT, when running answers have ended (at most ``drain_s``). Until
    then it is not ready any more, but takes what still comes: whoever sends it requests needs a
    moment to notice. A second signal ends that. Raises ConfigError, StoreError where it cannot
    start.

    The port is bound first, so that 0 is known before anything is said about it; the URL stands
    in ``<state_dir>/gateway.json`` while the gateway runs.
    """
    draining = Event()
    with listening(config.server.host, config.server.port) as listener:
        settings = uvicorn.Config(
            create_app(config, draining=draining),
            loop="uvloop" if sys.platform != "win32" else "asyncio",
            http="httptools",
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=ceil(config.server.drain_s),
        )
        server = Draining(settings, config.state / "gateway.json", draining, config.server.drain_s)
        # uvicorn raises the signal again once it has stopped; nothing is left to do by then
        previous = signal.signal(signal.SIGTERM, lambda number, frame: None)
        try:
            with contextlib.suppress(KeyboardInterrupt):
                server.run(sockets=[listener])
        finally:
            server.retract()
            signal.signal(signal.SIGTERM, previous)
    if not server.started:
        raise ConfigError("the gateway could not start; the log above says why")


class Draining(uvicorn.Server):
    """Writes ``{"url", "pid"}`` to a file as soon as it takes requests. Told to stop it sets
    ``draining``, and stops as soon as nothing is being answered, at the latest after
    ``drain_s``."""

    def __init__(
        self, settings: uvicorn.Config, path: Path, draining: Event, drain_s: float
    ) -> None:
        super().__init__(settings)
        self._path = path
        self._draining = draining
        self._drain_s = drain_s
        self._drained_at = 0.0

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._draining.is_set():
            super().handle_exit(sig, frame)
            return
        self._captured_signals.append(sig)
        self._drained_at = time.monotonic() + self._drain_s
        self._draining.set()

    async def on_tick(self, counter: int) -> bool:
        if await super().on_tick(counter):
            return True
        if not self._draining.is_set():
            return False
        left_s = self._drained_at - time.monotonic()
        if self.server_state.tasks and left_s > 0:
            return False
        self.config.timeout_graceful_shutdown = max(1, ceil(left_s))
        return True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if not self.started or not sockets:
            return
        host, port = sockets[0].getsockname()[:2]
        url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        self._path.parent.mkdir(parents=True, exist_ok=True)
        fresh = self._path.with_suffix(".new")
        fresh.write_text(json.dumps({"url": url, "pid": os.getpid()}))
        fresh.replace(self._path)
        logger.info("listening", extra={"url": url, "pid": os.getpid()})

    def retract(self) -> None:
        """Remove the file, unless another gateway has written it since."""
        with contextlib.suppress(FileNotFoundError):
            if json.loads(self._path.read_text())["pid"] == os.getpid():
                self._path.unlink()


@contextlib.contextmanager
def listening(host: str, port: int) -> Iterator[socket.socket]:
    """A bound socket. Raises ConfigError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError as error:
            raise ConfigError(
                f"server.host, server.port: cannot listen on {host}:{port} ({error.strerror})"
            ) from None
        listener.set_inheritable(True)
        yield listener
