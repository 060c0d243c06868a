"""The command line of `retort demo`, and how much of everything a run does."""

import argparse
import os
from dataclasses import dataclass
from pathlib import Path

from gateway.errors import ConfigError

DEFAULT_HOME = "~/.cache/retort"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The size of a run. Requests per phase, training, and requests in flight at once."""

    collect: int
    serve: int
    #: a fifth of what is collected calibrates the router: 59 rows prove 5 % without any mistake
    max_train_rows: int
    epochs: float
    #: while students may answer; a CPU student slows down with more
    concurrency: int = 10
    #: while the teacher answers everything, which is mostly waiting
    collect_concurrency: int = 16
    #: share of the replayed requests that are asked for as a stream
    stream_share: float = 0.3
    #: share of student answers the teacher checks: high, because a demo sees little traffic
    audit_rate: float = 0.15
    max_disagreement: float = 0.05
    confidence: float = 0.95
    ood_epsilon: float = 0.02


FULL = Plan(collect=1200, serve=300, max_train_rows=640, epochs=1.5)
#: sized so that a slow pair of cores (150 tokens/s in training) needs nine minutes
QUICK = Plan(
    collect=340,
    serve=80,
    max_train_rows=130,
    epochs=1.5,
    # the smallest p-value that 70 calibration rows can give is 1/71
    ood_epsilon=0.03,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the command line asked for."""

    plan: Plan = FULL
    exit: bool = False
    traffic: Path | None = None
    port: int = 8080
    home: Path = Path(DEFAULT_HOME)
    seed: int = 17
    report: Path = Path("report.html")
    database_url: str = ""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Give ``parser`` the options of `retort demo`."""
    parser.description = (
        "Run the whole product on this machine, with a real 135M student on vLLM (CPU) and a "
        "recorded teacher, or the live one of OPENAI_API_KEY and OPENAI_BASE_URL (that costs "
        "money; the estimate is printed first). Takes under half an hour on two cores, with "
        "--quick under ten minutes, after the student's environment is installed."
    )
    parser.add_argument("--quick", action="store_true", help="fewer requests, a shorter training")
    parser.add_argument(
        "--exit", action="store_true", help="stop after the table instead of serving until Ctrl-C"
    )
    parser.add_argument(
        "--traffic",
        type=Path,
        metavar="FILE",
        help="recorded chats (OpenAI chat JSONL with the teacher's answers, .gz accepted) in "
        "place of the generated support tickets",
    )
    parser.add_argument("--port", type=int, default=8080, help="gateway's port; 0: any free one")
    parser.add_argument(
        "--home",
        type=Path,
        default=Path(os.environ.get("RETORT_HOME", DEFAULT_HOME)),
        help="where the student's environment, the model and the runs are kept (default: "
        f"$RETORT_HOME, else {DEFAULT_HOME})",
    )
    parser.add_argument("--seed", type=int, default=17, help="seed of everything random")
    parser.add_argument(
        "--report",
        type=Path,
        default=Path("report.html"),
        metavar="PATH",
        help="where to write the report (default: report.html)",
    )
    parser.add_argument(
        "--database-url",
        default="",
        metavar="URL",
        help="PostgreSQL (postgresql+psycopg://…) in place of a SQLite file of the run's own",
    )


def read_options(args: argparse.Namespace) -> Options:
    """The options of a parsed command line. Raises ConfigError for what cannot work."""
    if not 0 <= args.port <= 65535:
        raise ConfigError(f"--port: {args.port} is not a port (0 to 65535)")
    traffic: Path | None = args.traffic
    if traffic is not None and not traffic.is_file():
        raise ConfigError(f"--traffic: there is no file {traffic}")
    report: Path = args.report.expanduser().absolute()
    if report.is_dir() or not report.parent.is_dir():
        raise ConfigError(f"--report: cannot write a file at {report}")
    home: Path = args.home.expanduser().absolute()
    if home.exists() and not home.is_dir():
        raise ConfigError(f"--home: {home} is not a folder")
    return Options(
        plan=QUICK if args.quick else FULL,
        exit=args.exit,
        traffic=traffic,
        port=args.port,
        home=home,
        seed=args.seed,
        report=report,
        database_url=args.database_url,
    )
