"""The gateway as the demo runs it: a process of its own, as on any machine."""

import contextlib
import json
import subprocess
import sys
import time
from pathlib import Path

from gateway.errors import RetortError
from retrain import leash

START_S = 60.0


class GatewayProcess:
    """`retort serve --config …` as a context manager; its log is a file. It never outlives us."""

    def __init__(self, config: Path, state: Path, log: Path) -> None:
        self._config = config
        self._announced = state / "gateway.json"
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None
        self.url = ""

    @property
    def base_url(self) -> str:
        """What clients put in ``base_url``."""
        return f"{self.url}/v1"

    def __enter__(self) -> "GatewayProcess":
        self._start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def restart(self) -> None:
        """With whatever the configuration file says now."""
        self.stop()
        self._start()

    def _start(self) -> None:
        self._announced.unlink(missing_ok=True)
        command = [sys.executable, "-m", "retrain.cli", "serve", "--config", str(self._config)]
        with self._log.open("ab") as log:
            self._process = leash.start(command, stdout=log, stderr=log)
        try:
            self._wait_until_it_listens(self._process)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Let it finish what it is doing, and wait for that. Calling again does nothing."""
        process, self._process = self._process, None
        if process is not None:
            leash.stop(process)

    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def _wait_until_it_listens(self, process: "subprocess.Popen[bytes]") -> None:
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            if process.poll() is not None:
                raise RetortError(f"the gateway did not start: {self._last_line()}")
            with contextlib.suppress(OSError, ValueError, KeyError):
                self.url = json.loads(self._announced.read_text())["url"]
                return
            time.sleep(0.1)
        raise RetortError(f"the gateway did not listen within {START_S:.0f} s; see {self._log}")

    def _last_line(self) -> str:
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else f"see {self._log}"
