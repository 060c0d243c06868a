"""Requests and tokens per minute of a key, over all gateways together.

Each limit is a bucket that holds a minute's worth and refills evenly (GCRA): at most N at once, and
N/60 a second after that. Its state is one number in the database, the time at which the bucket
will be full again, so that several gateways share it; keys without limits never come here.

While the database is away, each gateway goes on alone from what it saw last: limits fail open to
that, because they protect from overload, and not from costs. What was let through meanwhile is
charged when the database is back.
"""

import asyncio
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from sqlalchemy import Connection, Engine, bindparam, extract, func, literal, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import SQLAlchemyError

from gateway import metrics
from gateway.batches import Batches
from gateway.database import transaction
from gateway.errors import RateLimited
from gateway.estimate import guess
from gateway.keys import Caller
from gateway.protocol import Incoming, Sink
from gateway.tables import RateBucket

logger = logging.getLogger(__name__)

MINUTE_S = 60.0
#: how long a request waits for the database before this process decides alone
WAIT_S = 2.0
#: how often corrections are written that no request took along
FLUSH_S = 0.5
#: times are kept in the database as Unix time, whose last digit is near this
_ROUNDING_S = 1e-6
_bucket = RateBucket.metadata.tables["rate_bucket"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Want:
    """What a request takes of one limit; ``kind`` is requests or tokens."""

    kind: str
    bucket: str
    limit: int
    amount: int

    @property
    def seconds(self) -> float:
        """How long the bucket takes to refill it."""
        return seconds(self.amount, self.limit)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """``owed``: seconds by bucket that are charged whether or not there is room; negative where
    an estimate was too high."""

    wants: tuple[Want, ...] = ()
    owed: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """``refused``: the limit in the way; nothing was taken from any then. ``full_in_s``: by
    bucket, in how many seconds all of it will be free."""

    refused: Want | None
    full_in_s: Mapping[str, float]


def seconds(amount: int, limit: int) -> float:
    return amount * MINUTE_S / limit


def decide(full_at: dict[str, float], now: float, ask: Ask) -> Verdict:
    """Charge what is asked to the buckets, or say which of them has no room for it."""
    for bucket, owed in ask.owed.items():
        full_at[bucket] = max(full_at.get(bucket, 0.0), now) + owed
    after = {
        want.bucket: max(full_at.get(want.bucket, 0.0), now) + want.seconds for want in ask.wants
    }
    refused = next(
        (w for w in ask.wants if w.amount and after[w.bucket] - now > MINUTE_S + _ROUNDING_S),
        None,
    )
    if refused is None:
        full_at.update(after)
    left = {want.bucket: full_at.get(want.bucket, 0.0) - now for want in ask.wants}
    return Verdict(refused=refused, full_in_s=left)


class Limits:
    """``admit`` before the work, ``settle`` after it."""

    def __init__(
        self, engine: Engine, *, wait_s: float = WAIT_S, clock: Callable[[], float] = time.time
    ) -> None:
        self._engine = engine
        self._wait_s = wait_s
        self._clock = clock
        self._batches: Batches[Ask, Verdict] = Batches("limits", self._trip)
        #: what was seen last, by the clock of this process
        self._full_at: dict[str, float] = {}
        self._owed: dict[str, float] = {}
        self._flushing: asyncio.Task[None] | None = None
        self.away = False
        self._refused = {
            kind: metrics.limited_requests_total.labels(kind) for kind in ("requests", "tokens")
        }

    async def admit(self, incoming: Incoming, sink: Sink) -> None:
        """Raises RateLimited. Either way the answer tells where the caller stands."""
        wants = wanted(incoming.caller, incoming.raw)
        owed = {}
        if not self.away:  # then it is all charged here already, and goes to the database later
            names = [want.bucket for want in wants]
            owed = {name: self._owed.pop(name) for name in names if name in self._owed}
        verdict = await self._ask(Ask(wants=wants, owed=owed))
        sink.more += headers(wants, verdict)
        if verdict.refused is not None:
            self._refused[verdict.refused.kind].inc()
            raise refusal(verdict.refused, verdict)
        incoming.tokens_held = sum(want.amount for want in wants if want.kind == "tokens")

    def settle(self, incoming: Incoming, status: int) -> None:
        """The request is over: charge the tokens it really took. Those of an error are none; where
        nobody counted them, the estimate stands."""
        caller, held = incoming.caller, incoming.tokens_held
        if held is None or caller.tpm is None:
            return
        tokens = incoming.tokens
        if tokens is None:
            tokens = 0 if status >= 400 else held
        if tokens != held:
            change_s = seconds(tokens - held, caller.tpm)
            self._owe(_name("tokens", caller), change_s)

    def start(self) -> None:
        self._flushing = asyncio.create_task(self._flush_on())

    async def stop(self) -> None:
        if self._flushing is not None:
            self._flushing.cancel()
            await asyncio.gather(self._flushing, return_exceptions=True)
        if not self.away:
            self._post()
        await self._batches.close(self._wait_s)

    async def _ask(self, ask: Ask) -> Verdict:
        if not self.away:
            try:
                async with asyncio.timeout(self._wait_s):
                    verdict = await self._batches.send(ask)
            except (SQLAlchemyError, TimeoutError) as error:
                self._lost(error, ask.owed)
            else:
                self._note(verdict)
                return verdict
        verdict = decide(self._full_at, self._clock(), ask)
        if verdict.refused is None:
            for want in ask.wants:
                self._owed[want.bucket] = self._owed.get(want.bucket, 0.0) + want.seconds
        return verdict

    def _note(self, verdict: Verdict) -> None:
        now = self._clock()
        for bucket, left_s in verdict.full_in_s.items():
            self._full_at[bucket] = now + left_s

    def _owe(self, bucket: str, change_s: float) -> None:
        self._owed[bucket] = self._owed.get(bucket, 0.0) + change_s
        if self.away:
            self._full_at[bucket] = self._full_at.get(bucket, 0.0) + change_s

    def _lost(self, error: Exception, owed: Mapping[str, float]) -> None:
        # the database may have done it all the same: only what is to the callers' cost is repeated
        for bucket, change_s in owed.items():
            if change_s > 0:
                self._owed[bucket] = self._owed.get(bucket, 0.0) + change_s
        if not self.away:
            logger.warning("limits without database", extra={"error": type(error).__name__})
        self.away = True

    async def _flush_on(self) -> None:
        while True:
            await asyncio.sleep(FLUSH_S)
            if not self._owed and not self.away:
                continue
            sent, done = self._post()
            try:
                await done
            except SQLAlchemyError as error:
                self._lost(error, sent)
            except Exception:
                logger.exception("limits not written")
            else:
                if self.away:
                    logger.info("limits share the database again")
                self.away = False

    def _post(self) -> tuple[Mapping[str, float], asyncio.Future[Verdict]]:
        owed, self._owed = self._owed, {}
        return owed, self._batches.send(Ask(owed=owed))

    def _trip(self, asks: Sequence[Ask]) -> Sequence[Verdict]:
        """In the thread of the batches: all of them in one transaction."""
        owed = {name for ask in asks for name in ask.owed}
        names = sorted(owed.union(want.bucket for ask in asks for want in ask.wants))
        with transaction(self._engine) as connection:
            if not names:
                connection.execute(select(1))
                return [Verdict(refused=None, full_in_s={}) for _ in asks]
            if connection.dialect.name == "postgresql":
                # a crash of the server may forgive the last half second: not worth a sync each
                connection.exec_driver_sql("SET LOCAL synchronous_commit TO OFF")
            now, full_at = self._locked(connection, names)
            before = dict(full_at)
            verdicts = [decide(full_at, now, ask) for ask in asks]
            changed = [
                {"name": name, "at": at} for name, at in full_at.items() if at != before[name]
            ]
            if changed:
                connection.execute(
                    update(_bucket)
                    .where(_bucket.c.id == bindparam("name"))
                    .values(full_at=bindparam("at")),
                    changed,
                )
        return verdicts

    def _locked(
        self, connection: Connection, names: Sequence[str]
    ) -> tuple[float, dict[str, float]]:
        """The time, and the buckets, which are nobody else's until the transaction ends. They are
        locked in the order of their names: two gateways never wait for each other."""
        postgres = connection.dialect.name == "postgresql"
        clock = extract("epoch", func.clock_timestamp()) if postgres else literal(self._clock())
        statement = (
            select(_bucket.c.id, _bucket.c.full_at, clock)
            .where(_bucket.c.id.in_(names))
            .order_by(_bucket.c.id)
            .with_for_update()
        )
        rows = connection.execute(statement).all()
        if len(rows) < len(names):
            found = {row[0] for row in rows}
            insert = postgresql.insert if postgres else sqlite.insert
            connection.execute(
                insert(_bucket).on_conflict_do_nothing(),
                [{"id": name, "full_at": 0.0} for name in names if name not in found],
            )
            rows = connection.execute(statement).all()
        return max(float(row[2]) for row in rows), {row[0]: row[1] for row in rows}


def wanted(caller: Caller, raw: bytes) -> tuple[Want, ...]:
    wants = []
    if caller.rpm is not None:
        name = _name("requests", caller)
        wants.append(Want(kind="requests", bucket=name, limit=caller.rpm, amount=1))
    if caller.tpm is not None:
        used = guess(raw)
        tokens = max(1, used.prompt + used.completion) if raw else 0
        name = _name("tokens", caller)
        wants.append(Want(kind="tokens", bucket=name, limit=caller.tpm, amount=tokens))
    return tuple(wants)


def _name(kind: str, caller: Caller) -> str:
    return f"{kind}:{caller.id}"


def headers(wants: Sequence[Want], verdict: Verdict) -> list[tuple[bytes, bytes]]:
    """Where the caller stands, as OpenAI says it."""
    made = []
    for want in wants:
        full_in_s = max(0.0, verdict.full_in_s[want.bucket])
        left = max(0, math.floor((MINUTE_S - full_in_s) * want.limit / MINUTE_S + _ROUNDING_S))
        for what, value in (
            ("limit", str(want.limit)),
            ("remaining", str(left)),
            ("reset", duration(full_in_s)),
        ):
            made.append((f"x-ratelimit-{what}-{want.kind}".encode(), value.encode()))
    return made


def refusal(want: Want, verdict: Verdict) -> RateLimited:
    if want.amount > want.limit:
        error = RateLimited(
            f"The request needs about {want.amount} tokens, and this API key may use"
            f" {want.limit} a minute: shorten it, or lower max_tokens."
        )
        error.retry = False
        return error
    wait_s = max(0.0, verdict.full_in_s[want.bucket]) + want.seconds - MINUTE_S
    return RateLimited(
        f"Rate limit reached: {want.limit} {want.kind} a minute. Try again in {duration(wait_s)}.",
        headers={"retry-after": str(max(1, math.ceil(wait_s)))},
    )


def duration(value_s: float) -> str:
    """As Go writes it, and OpenAI after it: 12ms, 8.64s, 6m0s."""
    if value_s < 1:
        return f"{math.ceil(value_s * 1000)}ms" if value_s > 0 else "0s"
    minutes, rest = divmod(round(value_s, 2), 60)
    short = f"{rest:.2f}".rstrip("0").rstrip(".")
    return f"{int(minutes)}m{short}s" if minutes else f"{short}s"
