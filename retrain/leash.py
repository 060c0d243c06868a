"""Run a command that cannot outlive the process that wanted it, however that one ends.

``start`` puts a second Python between the two (this file, run as a script; it imports nothing
heavy). It waits on its standard input, a pipe that only the parent can write to: when the parent
closes it or dies, even by ``kill -9``, the pipe ends, and the command's whole process group is
told to end (SIGTERM) and then made to (SIGKILL). Signals of the terminal reach neither, so that
Ctrl-C is the parent's alone to handle.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import IO

PIPE = subprocess.PIPE
#: between SIGTERM and SIGKILL
GRACE_S = 10.0


def start(
    command: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    stdout: int | IO[bytes] = subprocess.DEVNULL,
    stderr: int | IO[bytes] = subprocess.DEVNULL,
) -> "subprocess.Popen[bytes]":
    """The command, running. Its exit status is the process's (128 + signal where one ended it)."""
    return subprocess.Popen(
        [sys.executable, "-I", "-S", __file__, *command],
        env=env,
        stdin=subprocess.PIPE,
        stdout=stdout,
        stderr=stderr,
        start_new_session=True,
    )


def stop(process: "subprocess.Popen[bytes]") -> None:
    """End the command and all it started; returns when they are gone."""
    assert process.stdin is not None
    with contextlib.suppress(OSError):
        process.stdin.close()
    try:
        process.wait(GRACE_S + 5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _signal_group(child: "subprocess.Popen[bytes]", number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, number)


def _main(command: Sequence[str]) -> int:
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)

    def end(*_: object) -> None:
        _signal_group(child, signal.SIGTERM)
        timer = threading.Timer(GRACE_S, _signal_group, (child, signal.SIGKILL))
        timer.daemon = True
        timer.start()

    def wait_for_parent() -> None:
        while os.read(0, 4096):
            pass
        end()

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    threading.Thread(target=wait_for_parent, daemon=True).start()
    status = child.wait()
    _signal_group(child, signal.SIGKILL)  # what it started and left behind
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    # not sys.exit: it would wait for a thread that reads from a parent that may live long
    os._exit(_main(sys.argv[1:]))
