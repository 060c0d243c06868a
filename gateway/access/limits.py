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
import time
from collections.abc import Callable, Mapping, Sequence

from sqlalchemy import Connection, Engine, bindparam, extract, func, literal, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import SQLAlchemyError

from gateway import metrics
from gateway.access.batches import Batches
from gateway.access.buckets import (
    Ask,
    Verdict,
    bucket_name,
    decide,
    headers,
    refusal,
    seconds,
    wanted,
)
from gateway.storage.database import transaction
from gateway.storage.tables import RateBucket
from gateway.wire.protocol import Incoming, Sink

logger = logging.getLogger(__name__)

#: how long a request waits for the database before this process decides alone
WAIT_S = 2.0
#: how often corrections are written that no request took along
FLUSH_S = 0.5
_bucket = RateBucket.metadata.tables["rate_bucket"]


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
            self._owe(bucket_name("tokens", caller), change_s)

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
