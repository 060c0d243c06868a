"""Move the champion's pointer: check the bundle, see it answer, flip, wait for the gateway.

Nothing here touches what serves before the new bundle has proven that it can: its checksums hold,
its router loads, every replica of the student answers under its adapter's name and not as the base
model.
"""

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path

import aiohttp
import orjson

from gateway.canaries import table
from gateway.config import Config, Task
from gateway.errors import BundleError
from gateway.prompt import prompt_hash
from gateway.storage import bundles
from gateway.storage.bundles import BundleFiles
from gateway.storage.store import Store
from gateway.storage.tables import Bundle
from gateway.upstreams.adapters import load_adapter, loaded, unload_adapter
from retrain.ask import Messages, ProbeReport, probe
from retrain.vectors import load_router
from router.errors import RouterError

#: Name of the adapter that changes nothing: what the bare base model answers.
IDENTITY = "v0"
#: How long a gateway may take to follow.
WAIT_S = 60.0
#: Asked where nothing better is at hand.
PROBES: Sequence[Messages] = (
    [{"role": "user", "content": "hello"}],
    [{"role": "user", "content": "Where is my order? It has not arrived yet."}],
    [{"role": "user", "content": "Please answer in one word: yes or no?"}],
)


def promote_bundle(
    config: Config,
    store: Store,
    bundle_id: str,
    *,
    detail: str = "",
    gateway_url: str | None = None,
    probes: Sequence[Messages] = PROBES,
    wait_s: float = WAIT_S,
    canary: bool = False,
) -> bool:
    """Make the bundle its task's champion, or with ``canary`` let it answer a share of the traffic
    first (docs/canary.md). Raises BundleError, and nothing is changed then.

    With ``gateway_url``: whether that gateway serves it now; without: True.
    """
    files = read_registered(store, bundle_id)
    task = config.task(files.task)
    if files.prompt_hash != prompt_hash(task.prompt):
        raise BundleError(
            f"{bundle_id} was trained for another prompt contract than tasks.{task.name}.prompt"
        )
    try:
        load_router(files.router_dir, task)
    except RouterError as error:
        raise BundleError(f"{bundle_id}: {error}") from None
    for url in config.student.base_urls:
        ensure_loaded(url, files.adapter, files.adapter_dir)
        probe_adapter(config, files.adapter, probes, url)
    if canary:
        table.start(store, bundle_id, task.canary, detail)
        return True
    bundles.promote(store, bundle_id, detail)
    return gateway_url is None or wait_for(gateway_url, task, bundle_id, wait_s)


def rollback_task(
    config: Config,
    store: Store,
    task: Task,
    *,
    detail: str = "",
    gateway_url: str | None = None,
    wait_s: float = WAIT_S,
) -> Bundle | None:
    """Back to the champion before, or to the teacher (None). Never waits for the student: a
    rollback must work when everything else does not. While a canary runs, it is what ends."""
    if table.stop(store, task.name, detail) is not None:
        return bundles.champion(store, task.name)
    champion = bundles.rollback(store, task.name, detail)
    if gateway_url is not None:
        wait_for(gateway_url, task, None if champion is None else champion.id, wait_s)
    return champion


def read_registered(store: Store, bundle_id: str) -> BundleFiles:
    """The files of a registered bundle, every checksum verified. Raises BundleError."""
    with store.session() as session:
        row = session.get(Bundle, bundle_id)
    if row is None:
        raise BundleError(f"there is no bundle {bundle_id}")
    return bundles.read_bundle(Path(row.path))


def probe_adapter(
    config: Config, adapter: str, probes: Sequence[Messages], url: str | None = None
) -> ProbeReport:
    """See the adapter answer otherwise than the base model, on the replica at ``url`` (default:
    the first). Raises BundleError.

    The reference is the identity adapter; a server that has none is asked under the base model's
    name, which is safe here: nothing else is asked in the same batch of a probe.
    """
    url = config.student.base_urls[0] if url is None else url
    names = _names(url)
    reference = IDENTITY if IDENTITY in names else config.student.base_model
    return probe(url, adapter, probes, reference=reference)


def ensure_loaded(base_url: str, adapter: str, folder: Path) -> None:
    """Raises BundleError."""

    async def load() -> None:
        async with aiohttp.ClientSession() as session:
            if adapter not in await loaded(session, base_url):
                await load_adapter(session, base_url, adapter, str(folder.resolve()))

    asyncio.run(load())


def unload(base_url: str, adapter: str) -> None:
    """Raises BundleError; one that is not there is fine."""

    async def drop() -> None:
        async with aiohttp.ClientSession() as session:
            await unload_adapter(session, base_url, adapter)

    asyncio.run(drop())


def wait_for(gateway_url: str, task: Task, bundle_id: str | None, wait_s: float) -> bool:
    """Whether the gateway's /readyz shows the bundle for the task within ``wait_s``."""
    url = f"{gateway_url.rstrip('/').removesuffix('/v1')}/readyz"
    deadline = time.monotonic() + wait_s

    async def wait() -> bool:
        limits = aiohttp.ClientTimeout(total=5.0)
        async with aiohttp.ClientSession(timeout=limits) as session:
            while True:
                if await _shown(session, url, task.name) == (True, bundle_id):
                    return True
                if time.monotonic() > deadline:
                    return False
                await asyncio.sleep(0.25)

    return asyncio.run(wait())


async def _shown(session: aiohttp.ClientSession, url: str, task: str) -> tuple[bool, str | None]:
    """(whether the gateway said anything of the task, the bundle it serves)."""
    try:
        async with session.get(url) as response:
            state = orjson.loads(await response.read())
        bundle = state["tasks"][task]["bundle"]
    except (aiohttp.ClientError, TimeoutError, ValueError, KeyError, TypeError):
        return False, None
    return True, bundle if isinstance(bundle, str) else None


def _names(base_url: str) -> set[str]:
    async def ask() -> set[str]:
        async with aiohttp.ClientSession() as session:
            return await loaded(session, base_url)

    return asyncio.run(ask())
