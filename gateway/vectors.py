"""The vectors of prompts, where a task has an embedder that takes its time: a small model in a
thread of its own, or an OpenAI-compatible endpoint."""

import asyncio
import hashlib
import logging
import time
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any, Protocol

import aiohttp
import numpy as np
import orjson
from numpy.typing import NDArray

from gateway import metrics
from gateway.config import EmbedderSection, EndpointEmbedder, MiniLMEmbedder, StaticEmbedder
from gateway.errors import ConfigError
from gateway.secret import json_headers
from router.embedder import Embedder, Outside
from router.errors import NoEmbedder
from router.minilm import MiniLM

logger = logging.getLogger(__name__)

Floats = NDArray[np.float32]

_NAME = "embedder"


class Vectors(Protocol):
    """``embedder``: its identity; ``timeout_s``: how long a vector may be waited for."""

    @property
    def embedder(self) -> Embedder: ...
    @property
    def timeout_s(self) -> float: ...
    async def of(self, text: str) -> Floats: ...
    async def close(self) -> None: ...


def make_vectors(section: EmbedderSection) -> Vectors | None:
    """None for the static embedder, which is part of the router. Raises ConfigError."""
    match section:
        case StaticEmbedder():
            return None
        case MiniLMEmbedder():
            return Local(section)
        case EndpointEmbedder():
            return Endpoint(section)


@cache
def minilm() -> MiniLM:
    """One model for all tasks. Raises NoEmbedder."""
    return MiniLM()


class Local:
    """MiniLM in a few threads: it lets go of the interpreter while it computes."""

    def __init__(self, section: MiniLMEmbedder) -> None:
        """Raises ConfigError where the extra is not installed."""
        try:
            self.embedder = minilm()
        except NoEmbedder as error:
            raise ConfigError(f"tasks.embedder: {error}") from None
        self.timeout_s = section.timeout_s
        self._threads = ThreadPoolExecutor(section.threads, thread_name_prefix=_NAME)

    async def of(self, text: str) -> Floats:
        loop = asyncio.get_running_loop()
        vector: Floats = await loop.run_in_executor(self._threads, self.embedder, text)
        return vector

    async def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)


class Endpoint:
    """Its connections are opened with the first question. Vectors of repeated prompts come from
    memory."""

    def __init__(self, section: EndpointEmbedder) -> None:
        """Raises ConfigError where the key is missing."""
        self.embedder = Outside(name=f"endpoint:{section.model}")
        self.timeout_s = section.timeout_s
        self._section = section
        self._url = f"{section.base_url.rstrip('/')}/embeddings"
        self._session: aiohttp.ClientSession | None = None
        self._known: OrderedDict[bytes, Floats] = OrderedDict()
        self._headers = json_headers("tasks.embedder", section.api_key_env)

    async def of(self, text: str) -> Floats:
        """Raises NoEmbedder, or what the connection raises."""
        key = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
        vector = self._known.get(key)
        if vector is not None:
            self._known.move_to_end(key)
            return vector
        vector = np.asarray((await self.ask([text]))[0], np.float32)
        self._known[key] = vector
        while len(self._known) > self._section.cache_entries:
            self._known.popitem(last=False)
        return vector

    async def ask(self, texts: Sequence[str]) -> Floats:
        """One row per text, in one request and past the memory."""
        question = {
            "model": self._section.model,
            "input": [text.encode("utf-8", "replace").decode() for text in texts],
            "encoding_format": "float",
        }
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0), cookie_jar=aiohttp.DummyCookieJar()
            )
        started, code = time.perf_counter(), "cancelled"
        try:
            async with self._session.post(
                self._url,
                data=orjson.dumps(question),
                headers=self._headers,
                allow_redirects=False,
            ) as response:
                code = str(response.status)
                if response.status != 200:
                    raise NoEmbedder(f"the embeddings endpoint answered {response.status}")
                return _read(await response.read(), len(texts))
        except aiohttp.ClientError:
            code = "connect"
            raise
        finally:
            metrics.upstream_seconds.labels(_NAME).observe(time.perf_counter() - started)
            metrics.upstream_total.labels(_NAME, code).inc()

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None


def _read(data: bytes, count: int) -> Floats:
    """Raises NoEmbedder where the answer does not hold ``count`` vectors of one length."""
    try:
        items: list[Any] = orjson.loads(data)["data"]
        items = sorted(items, key=lambda item: int(item["index"]))
        rows = np.array([item["embedding"] for item in items], np.float32)
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError):
        raise NoEmbedder("the embeddings endpoint's answer cannot be read") from None
    if rows.ndim != 2 or len(rows) != count or not rows.size or not np.isfinite(rows).all():
        raise NoEmbedder("the embeddings endpoint's answer is not one vector per text")
    return rows
