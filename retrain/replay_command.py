"""`retort replay`: what another threshold, signal or bundle would have done with logged traffic."""

import argparse
import json
import re
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from gateway.errors import ConfigError

if TYPE_CHECKING:
    from retrain.replay_report import Replay

SIGNALS = ("score", "seq", "mean", "min", "first", "margin", "field_min", "length", "random")
_SPANS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--bundle",
        action="append",
        default=[],
        metavar="ID",
        help="default: the champion; may be repeated. Drafts of one that is not live are looked up,"
        " or asked of the student server",
    )
    parser.add_argument(
        "--signal",
        action="append",
        choices=SIGNALS,
        help="what the threshold is put on (default: score, the router's own); may be repeated",
    )
    parser.add_argument(
        "--threshold",
        action="append",
        type=_share,
        default=[],
        metavar="X",
        help="show this one too; may be repeated",
    )
    parser.add_argument("--since", type=_moment, help="from this day or moment on (ISO, UTC)")
    parser.add_argument("--until", type=_moment, help="up to this day or moment (default: now)")
    parser.add_argument("--last", type=_span, metavar="SPAN", help="such as 12h, 7d or 4w")
    parser.add_argument("--limit", type=_count, metavar="N", help="only the newest N requests")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write replay.html, .png and .json")
    parser.add_argument("--json", action="store_true", help="as JSON")


def replay(args: argparse.Namespace) -> int:
    """The command. Raises ReplayError, BundleError, ConfigError or StoreError in one line."""
    from gateway.config import load
    from gateway.storage.store import Store
    from retrain.replay_rows import Period
    from retrain.replay_subjects import replayed

    if args.last is not None and args.since is not None:
        raise ConfigError("--last and --since say the same: give one of both")
    since = args.since if args.last is None else datetime.now(UTC) - args.last
    if since is not None and args.until is not None and since >= args.until:
        raise ConfigError("--since must be before --until")
    config = load(args.config)
    with Store.open(config.database_url, config.state / "spool", config.store.commit_ms) as store:
        found = replayed(
            config,
            config.task(args.task),
            store,
            bundle_ids=args.bundle,
            signals=args.signal or ["score"],
            thresholds=args.threshold,
            period=Period(since=since, until=args.until, limit=args.limit),
            say=_say,
        )
    print(json.dumps(found.as_json(), indent=1) if args.json else found.text())
    if args.out is not None:
        _write(args.out, found)
    return 0


def _write(folder: Path, found: "Replay") -> None:
    """Raises ReplayError where the folder cannot be written."""
    from retrain.errors import ReplayError
    from retrain.replay_png import draw

    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "replay.html").write_text(found.html(), encoding="utf-8")
        text = json.dumps(found.as_json(), indent=1)
        (folder / "replay.json").write_text(text + "\n", encoding="utf-8")
        written = ["replay.html", "replay.json"]
        try:
            draw(folder / "replay.png", found.title, found.charts())
            written.append("replay.png")
        except ModuleNotFoundError as error:
            _say(f"replay.png is not drawn: it needs {error.name}: pip install 'retort[train]'")
    except OSError as error:
        raise ReplayError(f"{folder}: cannot be written ({error.strerror or error})") from None
    _say(f"{folder}: {', '.join(written)}")


def _say(line: str) -> None:
    print(line, file=sys.stderr)


def _share(value: str) -> float:
    number = float(value)
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"{value} is no score between 0 and 1")
    return number


def _count(value: str) -> int:
    number = int(value)
    if number <= 0:
        raise argparse.ArgumentTypeError(f"{value} is not above 0")
    return number


def _moment(value: str) -> datetime:
    found = datetime.fromisoformat(value)
    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)


def _span(value: str) -> timedelta:
    found = re.fullmatch(r"([0-9]{1,6})([mhdw])", value)
    if found is None or not int(found[1]):
        raise argparse.ArgumentTypeError(f"{value} is no time such as 90m, 12h, 7d or 4w")
    return timedelta(**{_SPANS[found[2]]: int(found[1])})
