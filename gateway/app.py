"""The composition root: every part of the gateway is made and started here."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from importlib.metadata import PackageNotFoundError, version

from fastapi import FastAPI
from sqlalchemy.exc import SQLAlchemyError

from gateway import metrics
from gateway.api import endpoints
from gateway.audit import Auditor
from gateway.budgets import Budgets
from gateway.claims import Claims
from gateway.config import Config
from gateway.errors import ConfigError
from gateway.key_store import follow, refresh
from gateway.keys import Keys
from gateway.lane import Lane
from gateway.ledger import Ledger
from gateway.limits import Limits
from gateway.parts import Parts
from gateway.poller import Poller
from gateway.prices import PriceBook
from gateway.store import Store
from gateway.upstream import Upstream

#: how long a start waits for a student server that hangs
FIRST_ROUND_S = 10.0


def create_app(config: Config, *, store: Store | None = None) -> FastAPI:
    """The gateway as an ASGI application. A store that is not given is opened here; either is
    started and stopped with the application. Raises ConfigError, StoreError."""
    database_keys = config.server.keys == "database"
    keys = Keys.from_environment(config.server.api_keys_env, database=database_keys)
    prices = PriceBook(config)
    lanes = {task.name: Lane(task, prices) for task in config.tasks}
    teacher = Upstream(
        "teacher",
        config.teacher.base_url,
        timeout_s=config.teacher.timeout_s,
        retries=config.teacher.retries,
        api_key=_secret("teacher.api_key_env", config.teacher.api_key_env),
        # without a key of its own it takes the client's, unless that one is the gateway's
        pass_key=config.teacher.api_key_env is None and not keys,
    )
    student = Upstream(
        "student",
        config.student.base_url,
        timeout_s=config.student.timeout_s,
        stream_total_s=config.student.timeout_s,
        max_concurrency=config.student.max_concurrency,
        gated=True,
    )
    if store is None:
        store = Store.open(config.database_url, config.state / "spool", config.store.commit_ms)
    ledger = Ledger(store)
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
        auditor=Auditor(teacher, ledger, budgets),
    )
    poller = Poller(config, store, list(lanes.values()), (teacher, student))
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
        parts.auditor.start()
        try:
            yield
        finally:
            polling.cancel()
            with suppress(asyncio.CancelledError):
                await polling
            await parts.auditor.stop(config.server.drain_s)
            await ledger.drain()
            for lane in lanes.values():
                await lane.checks.close()
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


def _secret(field: str, name: str | None) -> str | None:
    if name is None:
        return None
    value = os.environ.get(name, "").strip()
    if not value:
        raise ConfigError(f"{field}: environment variable {name} is not set")
    return value


def _version() -> str:
    try:
        return version("retort")
    except PackageNotFoundError:  # run from a checkout that is not installed
        return "unknown"
