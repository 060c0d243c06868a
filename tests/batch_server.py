"""The file and batch endpoints of an OpenAI-compatible API, as a real server on loopback."""

import asyncio
import json
import threading
from collections.abc import Callable
from typing import Any

from aiohttp import web

Body = dict[str, Any]


class BatchServer:
    """A context manager. A batch is ``in_progress`` until it was looked at ``looks`` times; then
    ``answer`` says what becomes of each request: its answer, or None for an error."""

    def __init__(self, answer: Callable[[Body], Body | None], *, looks: int = 1) -> None:
        self.answer = answer
        self.looks = looks
        self.files: dict[str, bytes] = {}
        self.batches: dict[str, Body] = {}
        self.seen: dict[str, int] = {}
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}/v1"

    def __enter__(self) -> "BatchServer":
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *exc: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        app = web.Application(client_max_size=1 << 28)
        app.router.add_post("/v1/files", self._upload)
        app.router.add_get("/v1/files/{id}/content", self._content)
        app.router.add_post("/v1/batches", self._create)
        app.router.add_get("/v1/batches/{id}", self._look)
        runner = web.AppRunner(app)
        self._loop.run_until_complete(runner.setup())
        site = web.TCPSite(runner, "127.0.0.1", 0)
        self._loop.run_until_complete(site.start())
        self._port = runner.addresses[0][1]
        self._ready.set()
        self._loop.run_forever()
        self._loop.run_until_complete(runner.cleanup())
        self._loop.close()

    async def _upload(self, request: web.Request) -> web.Response:
        form = await request.post()
        sent = form["file"]
        assert form["purpose"] == "batch" and isinstance(sent, web.FileField)
        name = f"file-{len(self.files)}"
        self.files[name] = sent.file.read()
        return web.json_response({"id": name, "object": "file"})

    async def _content(self, request: web.Request) -> web.Response:
        return web.Response(body=self.files[request.match_info["id"]])

    async def _create(self, request: web.Request) -> web.Response:
        wanted = await request.json()
        assert wanted["endpoint"] == "/v1/chat/completions"
        name = f"batch-{len(self.batches)}"
        self.batches[name] = {"id": name, "status": "in_progress", **wanted}
        return web.json_response(self.batches[name])

    async def _look(self, request: web.Request) -> web.Response:
        name = request.match_info["id"]
        batch = self.batches[name]
        self.seen[name] = self.seen.get(name, 0) + 1
        if self.seen[name] > self.looks and batch["status"] == "in_progress":
            self._finish(batch)
        return web.json_response(batch)

    def _finish(self, batch: Body) -> None:
        right, wrong = [], []
        for line in self.files[batch["input_file_id"]].splitlines():
            asked = json.loads(line)
            answer = self.answer(asked["body"])
            if answer is None:
                error = {"code": "server_error", "message": "scripted"}
                wrong.append({"custom_id": asked["custom_id"], "response": None, "error": error})
            else:
                response = {"status_code": 200, "body": answer}
                right.append({"custom_id": asked["custom_id"], "response": response})
        batch["status"] = "completed"
        for key, lines in (("output_file_id", right), ("error_file_id", wrong)):
            if lines:
                batch[key] = f"file-{len(self.files)}"
                self.files[batch[key]] = "\n".join(map(json.dumps, lines)).encode()
