"""A promoted student for a gateway that is yet to start, and a server that can pass for vLLM."""

import asyncio
import contextlib
import json
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web
from rig import ROOT

sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
from small_bundle import make_router, save_parts  # noqa: E402

from gateway.config import Config  # noqa: E402
from gateway.prompt import prompt_hash  # noqa: E402
from gateway.storage import bundles  # noqa: E402
from gateway.storage.store import Store  # noqa: E402


def promoted(state: Path, sections: dict[str, Any]) -> None:
    """The only task gets a certified student, as a night would have left it."""
    config = Config.model_validate({"state_dir": str(state), **sections})
    task = config.task()
    store = Store.open(config.database_url, config.state / "spool", config.store.commit_ms)
    adapter_dir, router_dir = save_parts(state / "trained", make_router())
    files = bundles.write_bundle(
        config.state / "bundles",
        task=task.name,
        adapter_dir=adapter_dir,
        router_dir=router_dir,
        base_model=config.student.base_model,
        prompt_hash=prompt_hash(task.prompt),
        dataset_id="d1",
        detail={},
    )
    bundles.register(store, files, None, None, {})
    bundles.promote(store, files.id)
    store.engine.dispose()


@contextlib.contextmanager
def shim(mock: str) -> Iterator[str]:
    """Base URL of a server that has vLLM's adapters and leaves every chat to ``mock``, also how
    it fails."""
    loop, started = asyncio.new_event_loop(), threading.Event()
    adapters: dict[str, str] = {}
    url = ""

    async def models(request: web.Request) -> web.Response:
        listed = [{"id": name, "object": "model"} for name in ("student-base", *adapters)]
        for entry in listed:
            entry |= {"root": adapters.get(entry["id"], entry["id"]), "parent": None}  # type: ignore
        return web.json_response({"object": "list", "data": listed})

    async def load(request: web.Request) -> web.Response:
        body = await request.json()
        adapters[body["lora_name"]] = body["lora_path"]
        return web.Response(text="loaded")

    async def chat(request: web.Request) -> web.StreamResponse:
        body = await request.json() | {"model": "gpt-4o"}
        session = request.app["session"]
        async with session.post(f"{mock}/v1/chat/completions", data=json.dumps(body)) as upstream:
            head = {k: v for k, v in upstream.headers.items() if k.lower() in PASSED}
            response = web.StreamResponse(status=upstream.status, headers=head)
            await response.prepare(request)
            try:
                async for part in upstream.content.iter_any():
                    await response.write(part)
            except aiohttp.ClientError:
                if request.transport is not None:
                    request.transport.abort()
                raise
            await response.write_eof()
            return response

    async def run() -> None:
        nonlocal url
        app = web.Application()
        headers = {"content-type": "application/json", "authorization": "Bearer x"}
        app["session"] = aiohttp.ClientSession(headers=headers)
        app.router.add_get("/v1/models", models)
        app.router.add_post("/v1/load_lora_adapter", load)
        app.router.add_post("/v1/chat/completions", chat)
        runner = web.AppRunner(app, handler_cancellation=True, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        started.set()
        await stop.wait()
        await app["session"].close()
        await runner.cleanup()

    stop = asyncio.Event()
    thread = threading.Thread(target=loop.run_until_complete, args=(run(),), daemon=True)
    thread.start()
    started.wait(20)
    yield url
    loop.call_soon_threadsafe(stop.set)
    thread.join(20)


PASSED = ("content-type", "retry-after", "content-length")
