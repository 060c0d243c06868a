"""`retort savings`: the account of a period, or a calculation without any database."""

import argparse
import json
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gateway.money.savings import Account, Sums

from gateway.errors import ConfigError

DAYS = 30
_PLAN = ("teacher_tokens", "teacher_price", "student_tokens")


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--days", type=float, help=f"the last so many days (default: {DAYS})")
    parser.add_argument("--since", type=_moment, help="from this day or moment on (ISO, UTC)")
    parser.add_argument("--until", type=_moment, help="up to this day or moment (default: now)")
    parser.add_argument("--json", action="store_true", help="as JSON")
    plan = parser.add_argument_group(
        "calculator", "With --calls nothing is read, neither configuration nor database."
    )
    plan.add_argument("--calls", type=_number, help="requests")
    pair: dict[str, Any] = {"type": _pair, "metavar": "IN/OUT"}
    plan.add_argument("--teacher-tokens", help="tokens of one call, as 2200/300", **pair)
    plan.add_argument("--teacher-price", help="dollars per million, as 2.5/10", **pair)
    plan.add_argument("--student-tokens", help="with its short prompt, as 250/300", **pair)
    plan.add_argument("--student-price", help="dollars per million, as 0.10/0.30", **pair)
    share: dict[str, Any] = {"type": _share, "default": 0.0, "metavar": "SHARE"}
    plan.add_argument("--fallback", help="share that the teacher answers after all", **share)
    plan.add_argument("--audit", help="share of the student's answers it checks", **share)
    plan.add_argument(
        "--gpu-hour", type=_dollars, metavar="USD", help="in place of the student's price per token"
    )
    plan.add_argument("--gpus", type=_dollars, default=1.0, metavar="N", help="default: 1")
    plan.add_argument(
        "--hours", type=_dollars, default=730.0, metavar="H", help="default: 730, a month"
    )
    plan.add_argument("--training-usd", type=_dollars, default=0.0, metavar="USD")


def savings(args: argparse.Namespace) -> int:
    """The command."""
    if args.calls is not None:
        sums = _planned(args)
        print(json.dumps(as_json(sums), indent=2) if args.json else text(sums))
        if args.gpu_hour is not None and args.student_price is not None and not args.json:
            print("The student is paid by the hour: --student-price was not charged on top.")
        return 0
    from gateway.config import load
    from gateway.money.savings import account
    from gateway.storage.store import Store

    config = load(args.config)
    task = None if args.task is None else config.task(args.task).name
    until = args.until or datetime.now(UTC)
    since = args.since or until - timedelta(days=args.days or DAYS)
    if since >= until:
        raise ConfigError("--since must be before --until")
    with Store.open(config.database_url, config.state / "spool", config.store.commit_ms) as store:
        found = account(store, config, since, until)
    print(
        json.dumps(account_json(found, task), indent=2) if args.json else account_text(found, task)
    )
    return 0


def _planned(args: argparse.Namespace) -> "Sums":
    from gateway.money.savings import Plan

    by_hour = args.gpu_hour is not None
    needed = [*_PLAN, *([] if by_hour else ["student_price"])]
    missing = [f"--{name.replace('_', '-')}" for name in needed if getattr(args, name) is None]
    if by_hour:
        missing = [name for name in missing if name != "--student-tokens"]
    if missing:
        raise ConfigError(f"--calls needs {', '.join(missing)} as well")
    return Plan(
        calls=args.calls,
        teacher_tokens=args.teacher_tokens,
        teacher_price=args.teacher_price,
        student_tokens=args.student_tokens or (0.0, 0.0),
        student_price=args.student_price or (0.0, 0.0),
        fallback=args.fallback,
        audit=args.audit,
        gpu_hour_usd=args.gpu_hour,
        gpus=args.gpus,
        hours=args.hours,
        training_usd=args.training_usd,
    ).sums()


def as_json(sums: "Sums") -> dict[str, Any]:
    derived = (
        "coverage",
        "paid_usd",
        "saved_usd",
        "times_cheaper",
        "estimated_share",
        "usd_per_1000",
        "all_teacher_usd_per_1000",
        "break_even_coverage",
        "break_even_requests",
    )
    more = {name: getattr(sums, name) for name in derived}
    return asdict(sums) | more | {"verdict": sums.verdict()}


def account_json(found: "Account", task: str | None) -> dict[str, Any]:
    return {
        "since": found.since.isoformat(timespec="seconds"),
        "until": found.until.isoformat(timespec="seconds"),
        "hours": found.hours,
        "tasks": {
            name: as_json(sums) for name, sums in found.tasks.items() if task in (None, name)
        },
        "total": as_json(found.total if task is None else _of(found, task)),
        "free_training_h": found.free_h,
        "nights_died": found.died,
    }


def _of(found: "Account", task: str) -> "Sums":
    from gateway.money.savings import Sums

    return found.tasks.get(task, Sums())


def account_text(found: "Account", task: str | None) -> str:
    parts = [f"{found.since:%Y-%m-%d %H:%M} to {found.until:%Y-%m-%d %H:%M} UTC"]
    chosen = found.tasks if task is None else {task: _of(found, task)}
    for name, sums in chosen.items():
        title = f"task {name}" if name != "-" else "no task (unclaimed, all to the teacher)"
        parts.append(f"{title}\n{text(sums)}" if name != "-" else f"{title}\n{_lines(sums)}")
    if len(chosen) > 1:
        parts.append(f"all together\n{text(found.total)}")
    if not chosen:
        parts.append("The ledger has no request in this time.")
    if found.free_h:
        parts.append(f"{found.free_h:.1f} hours of nights are not charged: set training.hour_usd.")
    if found.died:
        parts.append(f"{found.died} nights died; their hours are not known and not charged.")
    return "\n\n".join(parts)


def text(sums: "Sums") -> str:
    return f"{_lines(sums)}\n{sums.verdict()}"


def _lines(sums: "Sums") -> str:
    from gateway.money.savings import usd

    def share(value: float | None) -> str:
        return "–" if value is None else f"{value:.1%}"

    lines = [
        ("requests", f"{sums.requests:,}", f"coverage {share(sums.coverage)}"),
        ("paid", usd(sums.paid_usd), ""),
        (
            "  student",
            usd(sums.student_usd),
            "drafts thrown away included" * bool(sums.student_usd),
        ),
        ("  teacher", usd(sums.teacher_usd), "what it answered"),
        ("  audits", usd(sums.audit_usd), f"{sums.audits:,} answers checked"),
        ("  judges and labels", usd(sums.judge_usd + sums.label_usd), ""),
        ("  hardware", usd(sums.hardware_usd), ""),
        (
            "  training",
            usd(sums.training_usd),
            f"{sums.training_h:.1f} h" if sums.training_h else "",
        ),
    ]
    always = ("  student", "  teacher", "requests", "paid")
    zero = usd(0.0)
    lines = [line for line in lines if line[0] in always or line[1] != zero]
    guessed = sums.estimated_share
    lines.append(
        (
            "teacher alone",
            usd(sums.all_teacher_usd),
            f"{guessed:.0%} of it estimated" if guessed else "",
        )
    )
    times = ""
    if sums.times_cheaper and sums.saved_usd > 0:
        times = f"{sums.times_cheaper:.1f} times cheaper"
    lines.append(("saved", usd(sums.saved_usd), times))
    if sums.usd_per_1000 is not None and sums.all_teacher_usd_per_1000 is not None:
        instead = f"teacher alone {usd(sums.all_teacher_usd_per_1000)}"
        lines.append(("per 1,000 requests", usd(sums.usd_per_1000), instead))
    enough, number = sums.break_even_coverage, sums.break_even_requests
    if enough is not None and sums.student_usd + sums.fixed_usd:
        lines.append(("pays from coverage", share(enough) if enough <= 1 else "never", ""))
    if number and sums.fixed_usd:
        lines.append(("pays from requests", f"{number:,.0f}", "at this coverage"))
    if sums.unknown:
        lines.append(("cost unknown", f"{sums.unknown:,}", "requests, in none of the sums"))
    if sums.audits_unknown:
        lines.append(("audits unknown", f"{sums.audits_unknown:,}", "not charged"))
    if paid_only := sums.priced - sums.compared:
        lines.append(("not compared", f"{paid_only:,}", "requests, charged but not as saved"))
    widest = max(len(value) for _, value, _ in lines)
    return "\n".join(
        f"  {name:<20} {value:>{widest}}  {note}".rstrip() for name, value, note in lines
    )


def _pair(value: str) -> tuple[float, float]:
    first, _, second = value.partition("/")
    return _dollars(first), _dollars(second)


def _number(value: str) -> int:
    number = int(value)
    if number <= 0:
        raise argparse.ArgumentTypeError(f"{value} is not above 0")
    return number


def _dollars(value: str) -> float:
    number = float(value)
    if not 0 <= number < float("inf"):
        raise argparse.ArgumentTypeError(f"{value} is below 0 or no number")
    return number


def _share(value: str) -> float:
    number = float(value)
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"{value} is no share between 0 and 1")
    return number


def _moment(value: str) -> datetime:
    found = datetime.fromisoformat(value)
    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)
