"""The composition root: every part of the gateway is made and started here."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from threading import Event

from fastapi import FastAPI
from sqlalchemy.exc import SQLAlchemyError

from gateway import metrics
from gateway.access.budgets import Budgets
from gateway.access.key_store import follow, refresh
from gateway.access.keys import Keys
from gateway.access.limits import Limits
from gateway.api import endpoints
from gateway.audits.auditor import Auditor
from gateway.audits.checking import Checker
from gateway.claims import Claims
from gateway.config import Config, NextTeacher, Student, Teacher
from gateway.lane import Lane
from gateway.ledger import Ledger
from gateway.money.prices import PriceBook
from gateway.parts import Parts
from gateway.poller import Poller
from gateway.secret import secret
from gateway.storage.store import Store
from gateway.upstreams.admission import Gate
from gateway.upstreams.chain import Chain
from gateway.upstreams.hedge import Hedge
from gateway.upstreams.pool import Pool
from gateway.upstreams.upstream import Patience, Upstream

#: how long a start waits for a student server that hangs
FIRST_ROUND_S = 10.0


def create_app(
    config: Config, *, store: Store | None = None, draining: Event | None = None
) -> FastAPI:
    """The gateway as an ASGI application. A store that is not given is opened here; either is
    started and stopped with the application. Once ``draining`` is set the gateway is not ready any
    more and goes on answering. Raises ConfigError, StoreError."""
    database_keys = config.server.keys == "database"
    keys = Keys.from_environment(config.server.api_keys_env, database=database_keys)
    prices = PriceBook(config)
    lanes = {task.name: Lane(task, prices) for task in config.tasks}
    # without a key of its own the teacher takes the client's, unless that one is the gateway's
    teacher = make_chain(config.teacher, pass_key=not keys)
    student = make_pool(config.student)
    if store is None:
        store = Store.open(config.database_url, config.state / "spool", config.store.commit_ms)
    ledger = Ledger(store, config)
    budgets = Budgets(
        store.engine,
        lambda usage, model: prices.teacher_usd(usage, model or config.teacher.model),
        config.tasks,
    )
    parts = Parts(
        config=config,
        keys=keys,
        prices=prices,
        limits=Limits(store.engine),
        budgets=budgets,
        claims=Claims(config.tasks, config.teacher.model),
        lanes=lanes,
        store=store,
        teacher=teacher,
        student=student,
        ledger=ledger,
        auditor=Auditor(lanes, Checker(config, teacher, prices, lanes), ledger, store, budgets),
        draining=Event() if draining is None else draining,
    )
    poller = Poller(config, store, list(lanes.values()), teacher, student)
    metrics.build_info.labels(_version()).set(1)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await asyncio.to_thread(prices.open)
        await parts.store.start()
        await teacher.open()
        await student.open()
        if database_keys:
            with suppress(SQLAlchemyError):  # `follow` tries again
                await refresh(keys, parts.store)
        # so that a restart does not send the first requests to the teacher
        with suppress(TimeoutError):
            async with asyncio.timeout(FIRST_ROUND_S):
                await poller.round()
        polling = asyncio.create_task(poller.run())
        following = asyncio.create_task(follow(keys, parts.store)) if database_keys else None
        parts.limits.start()
        # without a model or a price in the configuration, each call's own model has to be looked up
        listed = config.teacher.model is None and prices.lists(config.teacher.base_url)
        budgets.start(check=not listed)
        await parts.auditor.start()
        try:
            yield
        finally:
            polling.cancel()
            with suppress(asyncio.CancelledError):
                await polling
            await poller.close()
            await parts.auditor.stop(config.server.drain_s)
            await ledger.drain()
            for lane in lanes.values():
                await lane.checks.close()
                if lane.vectors is not None:
                    await lane.vectors.close()
            if following is not None:
                following.cancel()
                await asyncio.gather(following, return_exceptions=True)
            await parts.limits.stop()
            await budgets.stop()
            await teacher.close()
            await student.close()
            await parts.store.stop()

    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.router.routes[:] = endpoints(parts)
    return app


def make_chain(section: Teacher, *, pass_key: bool) -> Chain:
    """Raises ConfigError."""
    first = Upstream(
        "teacher",
        section.base_url,
        patience=_patience(section),
        api_key=secret("teacher.api_key_env", section.api_key_env),
        pass_key=section.api_key_env is None and pass_key,
        price=section.price,
        trainable=section.trainable,
    )
    others = [
        Upstream(
            "teacher",
            one.base_url,
            patience=_patience(one),
            replica=place,
            api_key=secret(f"teacher.fallbacks.{place - 1}.api_key_env", one.api_key_env),
            stranger=True,
            model=one.model,
            price=one.price,
            trainable=one.trainable,
        )
        for place, one in enumerate(section.fallbacks, start=1)
    ]
    gate, hedge = None, None
    if section.max_concurrency is not None:
        gate = Gate("teacher", section.max_concurrency, section.max_queue, section.queue_timeout_s)
    if section.hedge.after_s is not None:
        hedge = Hedge(section.hedge.after_s, section.hedge.share)
    return Chain([first, *others], retries=section.retries, gate=gate, hedge=hedge)


def make_pool(section: Student) -> Pool:
    limit_s = section.timeout_s
    patience = Patience(
        connect_s=5.0, whole_s=limit_s, first_s=limit_s, idle_s=limit_s, stream_s=limit_s
    )
    servers = [
        Upstream(
            "student",
            url,
            patience=patience,
            replica=place,
            max_concurrency=section.max_concurrency,
            price=section.price,
        )
        for place, url in enumerate(section.base_urls)
    ]
    return Pool(servers, limit_s)


def _patience(section: Teacher | NextTeacher) -> Patience:
    return Patience(
        connect_s=section.connect_timeout_s,
        whole_s=section.timeout_s,
        first_s=section.first_token_timeout_s or section.timeout_s,
        idle_s=section.idle_timeout_s or section.timeout_s,
        stream_s=section.stream_timeout_s,
    )


def _version() -> str:
    try:
        return version("retort")
    except PackageNotFoundError:  # run from a checkout that is not installed
        return "unknown"
