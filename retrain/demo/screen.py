"""What the demo prints on standard output: numbered headings and plain lines."""

import sys
import time

STEPS = 8


class Screen:
    """Counts the steps and the time since the demo began."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._step = 0
        self._bold, self._plain = ("\x1b[1m", "\x1b[0m") if sys.stdout.isatty() else ("", "")

    def heading(self, name: str, title: str) -> None:
        self._step += 1
        head = f"[{self._step}/{STEPS}] {name}: {title}"
        print(f"\n{self._bold}{head}{self._plain}  (at {clock(self.seconds())})", flush=True)

    def say(self, line: str) -> None:
        print(f"  {line}", flush=True)

    def seconds(self) -> float:
        return time.monotonic() - self._started


def clock(seconds: float) -> str:
    """Minutes and seconds, as 12:05."""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}:{rest:02d}"
