"""What a gateway does with its tasks' certificates: start them, follow them, act on an audit."""

import asyncio
import logging

from gateway.certificates.alarm import hear
from gateway.certificates.fold import Subject, ensure, fold
from gateway.certificates.standing import Standing
from gateway.certificates.state import terms_of
from gateway.config import Config
from gateway.errors import StoreError
from gateway.lane import Lane, Live
from gateway.storage.store import Store

logger = logging.getLogger(__name__)

#: steps of folding in one round: a gateway that was away catches up without stopping for it
STEPS = 5


def subject_of(config: Config, lane: Lane, live: Live) -> Subject:
    router = live.router
    return Subject(
        terms=terms_of(config, lane.task),
        bundle=live.bundle.id,
        offline=router.certificate,
        start=router.start,
    )


async def begin(store: Store, subject: Subject) -> Standing:
    """Before a bundle goes live. Raises StoreError: it then does not."""
    return await asyncio.to_thread(ensure, store, subject)


async def follow(store: Store, subject: Subject, lane: Lane) -> None:
    """Hear what was not heard yet, fold what can be folded, and use what comes of it. Where the
    database is away the lane keeps what it has: it is never laxer than what was certified."""
    try:
        lane.take(subject.bundle, await asyncio.to_thread(_round, store, subject))
    except StoreError as error:
        extra = {"task": lane.task.name, "bundle": subject.bundle, "error": str(error)}
        logger.warning("certificate not read", extra=extra)


async def audited(store: Store, subject: Subject, lane: Lane) -> None:
    """Act on audits that were just written. Raises StoreError."""
    standing = await asyncio.to_thread(hear, store, subject)
    if standing is not None:
        lane.take(subject.bundle, standing)


def _round(store: Store, subject: Subject) -> Standing:
    hear(store, subject)
    for _ in range(STEPS):
        standing, more = fold(store, subject)
        if not more:
            break
    return standing
