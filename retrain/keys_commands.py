"""`retort keys`: create, list, rotate and revoke the API keys that the database holds."""

import argparse
import math
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gateway.storage.store import Store
    from gateway.storage.tables import ApiKey, ApiKeySecret

#: columns of the key
LIMITS = ("rpm", "tpm", "daily_usd", "monthly_usd")


def add_keys(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
    add_config: Callable[[argparse.ArgumentParser], None],
) -> None:
    keys = commands.add_parser(
        "keys",
        help="create, list, rotate and revoke API keys",
        description="API keys in the database, for gateways with `server.keys: database`.",
    )
    actions = keys.add_subparsers(title="actions", metavar="ACTION", required=True)

    def add(
        name: str, command: Callable[[argparse.Namespace], int], help: str
    ) -> argparse.ArgumentParser:
        sub = actions.add_parser(name, help=help, description=help[0].upper() + help[1:] + ".")
        sub.set_defaults(command=command, name=f"keys {name}")
        add_config(sub)
        return sub

    create = add("create", _create, "make a key and print it, this once")
    create.add_argument("key", metavar="NAME", help="whose key it is, or what it is for")
    create.add_argument(
        "--task",
        action="append",
        metavar="TASK",
        help="a task it may use, may be repeated (default: everything)",
    )
    create.add_argument(
        "--unclaimed", action="store_true", help="with --task: traffic of no task is allowed too"
    )
    create.add_argument(
        "--may-route", action="store_true", help="it may choose the route (x-retort-route)"
    )
    create.add_argument("--admin", action="store_true", help="it may use /admin/")
    _add_limits(create)
    create.add_argument("--expires", type=_span, metavar="DAYS", help="when it ends by itself")
    change = add("change", _change, "give a key other limits, within two seconds")
    change.add_argument("key", metavar="NAME", help="name of the key")
    _add_limits(change)
    show = add("list", _list, "list the keys, their scopes and limits")
    show.add_argument("--revoked", action="store_true", help="also those that were revoked")
    rotate = add("rotate", _rotate, "give a key a new value and print it, this once")
    rotate.add_argument("key", metavar="NAME", help="name of the key")
    rotate.add_argument(
        "--grace",
        type=_span,
        default=24.0,
        metavar="HOURS",
        help="how long the old value still works (default: 24)",
    )
    rotate.add_argument("--expires", type=_span, metavar="DAYS", help="when it ends, in place of")
    revoke = add("revoke", _revoke, "end a key, within two seconds at every gateway")
    revoke.add_argument("key", metavar="NAME", help="name of the key")


def _add_limits(parser: argparse.ArgumentParser) -> None:
    for name, kind, metavar, help in (
        ("--rpm", _count, "N", "requests per minute"),
        ("--tpm", _count, "N", "tokens per minute"),
        ("--daily-usd", _dollars, "X", "what the teacher may cost in a day of UTC"),
        ("--monthly-usd", _dollars, "X", "what the teacher may cost in a month of UTC"),
    ):
        parser.add_argument(
            name, type=kind, metavar=metavar, help=f"{help}, or none", default=argparse.SUPPRESS
        )


def _limits(args: argparse.Namespace) -> dict[str, float | None]:
    """Those that were given."""
    return {name: value for name, value in vars(args).items() if name in LIMITS}


def _create(args: argparse.Namespace) -> int:
    from gateway.access import key_store
    from gateway.access.keys import UNCLAIMED
    from gateway.config import load
    from gateway.errors import ConfigError

    config = load(args.config)
    if args.unclaimed and not args.task:
        raise ConfigError("--unclaimed says nothing without --task: the key may use everything")
    key = key_store.new_key(args.key)
    if args.task:
        names = [config.task(name).name for name in args.task]
        key.tasks = sorted({*names, UNCLAIMED} if args.unclaimed else set(names))
    key.may_route, key.admin = args.may_route, args.admin
    for name, value in _limits(args).items():
        setattr(key, name, value)
    key.expires_at = _in_days(args.expires)
    with _store(args) as store:
        secret = key_store.create(store, key)
    print(secret)
    _hint(config.server.keys)
    return 0


def _change(args: argparse.Namespace) -> int:
    from gateway.access import key_store
    from gateway.errors import ConfigError

    given = _limits(args)
    if not given:
        raise ConfigError("nothing to change: give a limit, such as --rpm 60 or --rpm none")
    with _store(args) as store:
        key = key_store.change(store, args.key, given)
    print(f"changed: {key.name} ({key.id})")
    return 0


def _list(args: argparse.Namespace) -> int:
    from gateway.access import key_store
    from gateway.storage.tables import utcnow

    now = utcnow()
    with _store(args) as store:
        spent = key_store.spent_usd(store, now)
        for key, secrets in key_store.listed(store, revoked=args.revoked):
            print(_line(key, secrets, spent, now))
    return 0


def _rotate(args: argparse.Namespace) -> int:
    from gateway.access import key_store

    with _store(args) as store:
        grace = timedelta(hours=args.grace)
        _, secret = key_store.rotate(store, args.key, grace, _in_days(args.expires))
    print(secret)
    return 0


def _revoke(args: argparse.Namespace) -> int:
    from gateway.access import key_store

    with _store(args) as store:
        key = key_store.revoke(store, args.key)
    print(f"revoked: {key.name} ({key.id})")
    return 0


def _line(
    key: "ApiKey",
    secrets: "list[ApiKeySecret]",
    spent: Mapping[tuple[str, str], float],
    now: datetime,
) -> str:
    words = [f"{key.name:<20}", f"{key.id}"]
    for secret in secrets:
        if secret.expires_at is None:
            words.append(f"{secret.shown}…")
        elif secret.expires_at > now:
            words.append(f"{secret.shown}… until {secret.expires_at:%Y-%m-%d %H:%M}")
    words.append(f"tasks={','.join(key.tasks)}" if key.tasks is not None else "tasks=all")
    words += [name for name, given in (("may-route", key.may_route), ("admin", key.admin)) if given]
    words += [f"{name}={value}" for name in ("rpm", "tpm") if (value := getattr(key, name))]
    for name, period in (("daily_usd", "day"), ("monthly_usd", "month")):
        if (value := getattr(key, name)) is not None:
            words.append(f"{name}={spent.get((key.id, period), 0.0):.4g}/{value:g}")
    if key.revoked_at is not None:
        words.append(f"revoked {key.revoked_at:%Y-%m-%d %H:%M}")
    elif key.expires_at is not None:
        verb = "expires" if key.expires_at > now else "expired"
        words.append(f"{verb} {key.expires_at:%Y-%m-%d %H:%M}")
    return "  ".join(words)


def _store(args: argparse.Namespace) -> "Store":
    from gateway.config import load
    from gateway.storage.store import Store

    config = load(args.config)
    return Store.open(config.database_url, config.state / "spool", config.store.commit_ms)


def _hint(keys: str) -> None:
    import sys

    if keys != "database":
        print("no gateway knows it before server.keys is database", file=sys.stderr)


def _in_days(days: float | None) -> datetime | None:
    from gateway.storage.tables import utcnow

    return None if days is None else utcnow() + timedelta(days=days)


def _count(text: str) -> int | None:
    if text == "none":
        return None
    value = int(text)
    if not 0 < value < 2**31:
        raise argparse.ArgumentTypeError("must be a whole number above 0")
    return value


def _dollars(text: str) -> float | None:
    if text == "none":
        return None
    value = float(text)
    if not (math.isfinite(value) and value >= 0):
        raise argparse.ArgumentTypeError("must be a number of dollars, 0 or more")
    return value


def _span(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 36500:
        raise argparse.ArgumentTypeError("must be a number from 0 to 36500")
    return value
