"""The teacher run over raw inputs through the Batch API: half the price, within a day.

What was handed in is remembered in a file beside the database until its answers are in the queue.
So a run that is stopped while the batch is under way finds it again, and never pays twice.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import orjson

from retrain.errors import TrafficError
from retrain.label import Labelling, Tally
from retrain.label_inputs import Body
from retrain.progress import Bar

#: The API's own bounds of one batch.
MOST_REQUESTS, MOST_BYTES = 50_000, 190_000_000
POLL_S = 30.0
TIMEOUT_S = 600.0
ENDED = frozenset({"completed", "failed", "expired", "cancelled"})


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchApi:
    """The teacher's. ``key`` None: the server wants none."""

    base_url: str
    key: str | None
    poll_s: float = POLL_S

    @asynccontextmanager
    async def session(self) -> AsyncIterator[aiohttp.ClientSession]:
        headers = {} if self.key is None else {"authorization": f"Bearer {self.key}"}
        limits = aiohttp.ClientTimeout(total=TIMEOUT_S, sock_connect=10.0)
        async with aiohttp.ClientSession(headers=headers, timeout=limits) as session:
            yield session


def label_in_batches(
    labelling: Labelling, api: BatchApi, inputs: Sequence[Body], state: Path, *, show: bool
) -> Tally:
    """As `retrain.label.label`, and waits until the batches have ended. Raises TrafficError where
    the API refuses."""
    return asyncio.run(_label(labelling, api, inputs, state, show))


async def _label(
    labelling: Labelling, api: BatchApi, inputs: Sequence[Body], state: Path, show: bool
) -> Tally:
    by_key = {labelling.key(body): body for body in inputs}
    tally = Tally()
    try:
        async with api.session() as session:
            # what is under way may hold inputs that would else be handed in again
            pending = _remembered(state)
            handed_in = {key for keys in pending.values() for key in keys}
            asked = [
                body for body in labelling.unknown(inputs) if labelling.key(body) not in handed_in
            ]
            tally.known = len(inputs) - len(asked) - len(handed_in & by_key.keys())
            for chunk in _chunks([(labelling.key(body), body) for body in asked]):
                batch = await _hand_in(session, api, labelling.task.name, chunk)
                pending[batch] = [key for key, _ in chunk]
                _remember(state, pending)
            with Bar("label", sum(map(len, pending.values())), show=show) as bar:
                for batch, keys in list(pending.items()):
                    await _collect(session, api, labelling, tally, batch, by_key, bar)
                    bar.advance(len(keys), note=f"{tally.failed} failed" if tally.failed else None)
                    del pending[batch]
                    _remember(state, pending)
    except (aiohttp.ClientError, TimeoutError) as error:
        raise TrafficError(f"{api.base_url}: {error or type(error).__name__}") from None
    return tally


async def _hand_in(
    session: aiohttp.ClientSession, api: BatchApi, task: str, rows: Sequence[tuple[str, Body]]
) -> str:
    """The id of the batch."""
    url = "/v1/chat/completions"
    lines = [
        orjson.dumps({"custom_id": key, "method": "POST", "url": url, "body": body})
        for key, body in rows
    ]
    form = aiohttp.FormData()
    form.add_field("purpose", "batch")
    form.add_field("file", b"\n".join(lines) + b"\n", filename="retort.jsonl")
    uploaded = await _json(session.post(f"{api.base_url}/files", data=form))
    wanted = {
        "input_file_id": uploaded["id"],
        "endpoint": url,
        "completion_window": "24h",
        "metadata": {"task": task},
    }
    return str((await _json(session.post(f"{api.base_url}/batches", json=wanted)))["id"])


async def _collect(
    session: aiohttp.ClientSession,
    api: BatchApi,
    labelling: Labelling,
    tally: Tally,
    batch: str,
    by_key: Mapping[str, Body],
    bar: Bar,
) -> None:
    """Wait for the end of a batch and write its answers down; those of an expired one count too."""
    while True:
        found = await _json(session.get(f"{api.base_url}/batches/{batch}"))
        if found["status"] in ENDED:
            break
        done = (found.get("request_counts") or {}).get("completed", 0)
        bar.advance(0, note=f"{batch}: {found['status']}, {done} answered")
        await asyncio.sleep(api.poll_s)
    if found["status"] != "completed":
        tally.why = f"batch {batch} {found['status']}"
    for name in ("output_file_id", "error_file_id"):
        if not found.get(name):
            continue
        async with session.get(f"{api.base_url}/files/{found[name]}/content") as response:
            content = await response.read()
        for line in content.splitlines():
            await asyncio.to_thread(_take, labelling, tally, orjson.loads(line), by_key)


def _take(labelling: Labelling, tally: Tally, line: Body, by_key: Mapping[str, Body]) -> None:
    body = by_key.get(line.get("custom_id", ""))
    response = line.get("response") or {}
    if body is None:
        # handed in from a file that has changed since
        tally.left += 1
    elif response.get("status_code") == 200 and isinstance(response.get("body"), dict):
        labelling.take(tally, body, response["body"], 0.0)
    else:
        tally.failed += 1
        tally.failures.append(json.dumps(line.get("error") or response.get("body"))[:200])


async def _json(asked: Any) -> Body:
    async with asked as response:
        data = await response.read()
        if response.status >= 400:
            raise TrafficError(f"{response.url} answers {response.status}: {data[:300]!r}")
    try:
        found = orjson.loads(data)
    except orjson.JSONDecodeError:
        found = None
    if not isinstance(found, dict):
        raise TrafficError(f"{response.url}: not a JSON object")
    return found


def _chunks(rows: Sequence[tuple[str, Body]]) -> list[list[tuple[str, Body]]]:
    chunks: list[list[tuple[str, Body]]] = []
    size = 0
    for row in rows:
        length = len(orjson.dumps(row[1])) + 200
        if not chunks or len(chunks[-1]) >= MOST_REQUESTS or size + length > MOST_BYTES:
            chunks.append([])
            size = 0
        chunks[-1].append(row)
        size += length
    return chunks


def _remembered(state: Path) -> dict[str, list[str]]:
    if not state.exists():
        return {}
    try:
        return dict(json.loads(state.read_text()))
    except ValueError:
        raise TrafficError(f"{state}: not JSON; it says which batches are under way") from None


def _remember(state: Path, pending: Mapping[str, Sequence[str]]) -> None:
    state.parent.mkdir(parents=True, exist_ok=True)
    partial = state.with_suffix(".part")
    partial.write_text(json.dumps(pending))
    partial.replace(state)
