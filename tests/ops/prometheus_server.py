"""A real Prometheus on a loopback port, for tests that ask it.

It comes from the system (Debian's package `prometheus`, or RETORT_PROMETHEUS names the program): no
Python package brings it.
"""

import json
import math
import os
import shutil
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

START_S = 60.0
INTERVAL_S = 1


def program() -> str | None:
    """The Prometheus to run; None: there is none on this machine."""
    return os.environ.get("RETORT_PROMETHEUS") or shutil.which("prometheus")


class Prometheus:
    """Scrapes ``targets`` (job: addresses) once a second and evaluates ``rules``. A context
    manager; ``folder`` gets its configuration, its data and its log."""

    def __init__(
        self, folder: Path, *, targets: Mapping[str, Sequence[str]], rules: Path | None = None
    ) -> None:
        self._folder = folder
        self._config = {
            "global": {
                "scrape_interval": f"{INTERVAL_S}s",
                "scrape_timeout": f"{INTERVAL_S}s",
                "evaluation_interval": f"{INTERVAL_S}s",
            },
            "rule_files": [] if rules is None else [str(rules)],
            "scrape_configs": [
                {"job_name": job, "static_configs": [{"targets": list(addresses)}]}
                for job, addresses in targets.items()
            ],
        }

    def __enter__(self) -> "Prometheus":
        found = program()
        assert found is not None
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        self._folder.mkdir(parents=True, exist_ok=True)
        config, log = self._folder / "prometheus.yml", self._folder / "prometheus.log"
        config.write_text(yaml.safe_dump(self._config))
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [
                    found,
                    f"--config.file={config}",
                    f"--storage.tsdb.path={self._folder / 'data'}",
                    f"--web.listen-address={address}",
                    "--log.level=warn",
                ],
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        self._url = f"http://{address}"
        deadline = time.monotonic() + START_S
        while not self._ready():
            alive = self._process.poll() is None and time.monotonic() < deadline
            if not alive:
                self.__exit__()
            assert alive, f"Prometheus did not start: {log.read_text()}"
            time.sleep(0.1)
        return self

    def __exit__(self, *exc: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def query(self, expr: str) -> list[float]:
        """The values of an instant query, NaN left out. Raises AssertionError if it is refused."""
        answer = self._get("/api/v1/query", query=expr)
        assert answer["status"] == "success", answer
        data = answer["data"]
        samples = [data] if data["resultType"] == "scalar" else data["result"]
        values = [float(s["result"][1] if "result" in s else s["value"][1]) for s in samples]
        return [value for value in values if not math.isnan(value)]

    def wait_for(self, expr: str, timeout_s: float = 30.0) -> None:
        """Until the expression has a value."""
        deadline = time.monotonic() + timeout_s
        while not self.query(expr):
            assert time.monotonic() < deadline, f"still nothing for {expr}"
            time.sleep(0.25)

    def firing(self) -> set[str]:
        """Names of the alerts that fire."""
        alerts = self._get("/api/v1/alerts")["data"]["alerts"]
        return {a["labels"]["alertname"] for a in alerts if a["state"] == "firing"}

    def rule_errors(self) -> list[str]:
        """What went wrong in the last evaluation of each rule."""
        groups = self._get("/api/v1/rules")["data"]["groups"]
        return [r["lastError"] for g in groups for r in g["rules"] if r.get("lastError")]

    def _ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self._url}/-/ready", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def _get(self, path: str, **parameters: str) -> Any:
        data = urllib.parse.urlencode(parameters)
        try:
            with urllib.request.urlopen(f"{self._url}{path}?{data}", timeout=30) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                return json.load(error)
