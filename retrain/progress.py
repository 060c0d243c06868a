"""One line per step: a bar on a terminal, a plain line every few seconds elsewhere."""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

#: between two lines, where standard error is not a terminal: with a count, and without
LINE_EVERY_S, TIME_EVERY_S = 5.0, 20.0
#: between two redraws of a bar that only shows that time passes
TICK_S = 0.5


class Bar:
    """The progress of one step, on standard error. A context manager.

    ``total`` is None where nobody knows how much there is to do: only the time is then shown,
    and it moves by itself. Nothing is shown with ``show`` False.
    """

    def __init__(self, label: str, total: int | None = None, *, show: bool = True) -> None:
        self.label = label
        self.total = total
        self.done = 0
        self.show = show
        self._every_s = TIME_EVERY_S if total is None else LINE_EVERY_S
        self._note = ""
        self._started = self._printed = time.monotonic()
        self._stopped = threading.Event()
        self._bar: Any = None
        self._ticker: threading.Thread | None = None

    def __enter__(self) -> "Bar":
        if not self.show:
            return self
        if sys.stderr.isatty():
            from tqdm import tqdm

            timer = "{desc}  {elapsed} {postfix}" if self.total is None else None
            self._bar = tqdm(
                total=self.total, desc=self.label, bar_format=timer, dynamic_ncols=True, leave=True
            )
        if self.total is None:
            self._ticker = threading.Thread(target=self._tick, daemon=True)
            self._ticker.start()
        return self

    def advance(self, count: int = 1, note: str | None = None) -> None:
        """``count`` more are done. ``note`` is shown beside, until the next one."""
        self.done += count
        self._note = self._note if note is None else note
        if self._bar is not None:
            self._bar.set_postfix_str(self._note, refresh=False)
            self._bar.update(count)
        elif self.show and time.monotonic() - self._printed >= self._every_s:
            self._print()

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._stopped.set()
        if self._ticker is not None:
            self._ticker.join()
        if self._bar is not None:
            self._bar.close()
        elif self.show and kind is None:
            self._print(" done")

    def _tick(self) -> None:
        while not self._stopped.wait(TICK_S):
            self.advance(0)

    def _print(self, end: str = "") -> None:
        self._printed = time.monotonic()
        count = "" if self.total is None else f" {self.done}/{self.total}"
        note = f" ({self._note})" if self._note else ""
        seconds = self._printed - self._started
        print(f"{self.label}:{count}{end}{note} {seconds:.0f} s", file=sys.stderr, flush=True)


@contextmanager
def step(label: str, *, show: bool = True) -> Iterator[Bar]:
    """A step that takes a while and has no count."""
    with Bar(label, show=show) as bar:
        yield bar
