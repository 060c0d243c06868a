"""What every suite stands on: environments of pinned packages, an upstream, the real gateway.

Everything is made under ``.venv-conformance`` (ignored by git); third-party code is fetched from
PyPI and npm when it is first needed, by its pinned version, and never committed.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
HOME = ROOT / ".venv-conformance"
UV = Path(sys.executable).parent / "uv"


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """``failed`` names what did not pass; ``note`` says what a number alone does not."""

    suite: str
    version: str
    passed: int
    total: int
    failed: Sequence[str] = ()
    note: str = ""
    seconds: float = 0.0


class NotInstalled(Exception):
    """Packages of a suite could not be fetched, or the tool for it is not here; which."""


@dataclass(slots=True)
class Clock:
    started: float = field(default_factory=time.perf_counter)

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.started


# -- environments


def python(name: str) -> Path:
    """The interpreter of the environment with the packages of ``pins/NAME.txt``. Raises
    NotInstalled, as the next two."""
    pins, where = HERE / "pins" / f"{name}.txt", HOME / name
    stamp = where / ".pins"
    if not stamp.exists() or stamp.read_text() != pins.read_text():
        HOME.mkdir(exist_ok=True)
        say(f"installing {where.relative_to(ROOT)}")
        install([UV, "venv", "-q", "--clear", "--python", sys.executable, where])
        install([UV, "pip", "install", "-q", "--python", where / "bin/python", "-r", pins])
        stamp.write_text(pins.read_text())
    return where / "bin/python"


def pinned(name: str, package: str) -> str:
    """The version that ``pins/NAME.txt`` gives a package."""
    for line in (HERE / "pins" / f"{name}.txt").read_text().splitlines():
        found, _, version = line.partition("==")
        if found.partition("[")[0] == package:
            return version.strip()
    raise KeyError(package)


def source(package: str, version: str) -> Path:
    """The unpacked source distribution of a package, tests and all."""
    where = HOME / f"{package}-{version}"
    if not where.exists():
        HOME.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            fetch = ["pip", "download", "-q", "--no-deps", "--no-binary", package, "-d", folder]
            install([sys.executable, "-m", *fetch, f"{package}=={version}"])
            (archive,) = Path(folder).glob("*.tar.gz")
            with tarfile.open(archive) as packed:
                packed.extractall(HOME, filter="data")
    return where


def node_modules() -> Path:
    """The folder with the pinned npm packages."""
    where = HOME / "node"
    wanted = (HERE / "package.json").read_text()
    stamp = where / ".installed"
    if not stamp.exists() or stamp.read_text() != wanted:
        where.mkdir(parents=True, exist_ok=True)
        say(f"installing {where.relative_to(ROOT)}")
        (where / "package.json").write_text(wanted)
        install(["npm", "install", "--no-audit", "--no-fund", "--silent"], cwd=where)
        stamp.write_text(wanted)
    return where


def install(command: Sequence[object], *, cwd: Path | None = None) -> None:
    try:
        run(command, cwd=cwd, timeout_s=300)
    except (OSError, subprocess.SubprocessError) as error:
        raise NotInstalled(f"{' '.join(map(str, command[:3]))} … ({error})") from error


# -- processes


@contextlib.contextmanager
def spec_server() -> Iterator[str]:
    """Base URL of the small OpenAI behind the gateway."""
    with process([sys.executable, HERE / "spec_server.py"], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        yield child.stdout.readline().decode().strip()


@contextlib.contextmanager
def gateway(state: Path, upstream: str, **sections: Any) -> Iterator[str]:
    """Base URL of ``retort serve`` with that teacher; ``sections`` are the configuration's."""
    data: dict[str, Any] = {
        "state_dir": str(state),
        "server": {"port": 0},
        "teacher": {"base_url": upstream, "api_key_env": None, "retries": 0},
    }
    for name, section in sections.items():
        merge = isinstance(section, dict)
        data[name] = {**data.get(name, {}), **section} if merge else section
    state.mkdir(parents=True, exist_ok=True)
    path = state / "retort.yaml"
    # JSON is YAML
    path.write_text(json.dumps(data))
    announced = state / "gateway.json"
    with (state / "gateway.log").open("ab") as log:
        command = [sys.executable, "-m", "retrain.cli", "serve", "--config", path]
        with process(command, stdout=log, stderr=log, cwd=ROOT) as child:
            deadline = time.monotonic() + 60
            while not announced.exists():
                if child.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"the gateway did not start: {log.name}")
                time.sleep(0.02)
            yield json.loads(announced.read_text())["url"] + "/v1"


@contextlib.contextmanager
def process(command: Sequence[object], **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A child, ended with SIGTERM and, if it does not listen, killed."""
    with subprocess.Popen([str(word) for word in command], **options) as child:
        try:
            yield child
        finally:
            child.send_signal(signal.SIGTERM)
            try:
                child.wait(40)
            except subprocess.TimeoutExpired:
                child.kill()


def run(
    command: Sequence[object],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    check: bool = True,
    timeout_s: float = 1200,
    quiet: bool = False,
) -> subprocess.CompletedProcess[str]:
    """A command to its end. Raises CalledProcessError, with its words shown."""
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env={**os.environ, **(env or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout_s,
    )
    if check and done.returncode:
        print(done.stdout, file=sys.stderr)
        done.check_returncode()
    return done


def say(text: str) -> None:
    print(f"· {text}", file=sys.stderr, flush=True)
