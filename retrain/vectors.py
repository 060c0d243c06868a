"""The vectors of prompts while a router is fitted, and while its decisions are computed."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

import aiohttp
import numpy as np
from numpy.typing import NDArray

from gateway.config import EndpointEmbedder, MiniLMEmbedder, StaticEmbedder, Task
from gateway.errors import ConfigError
from gateway.vectors import Endpoint, minilm
from retrain.errors import NightError
from router import artifact
from router.embedder import STATIC, Embedder, Outside
from router.errors import NoEmbedder
from router.router import Router

Floats = NDArray[np.float32]

#: Prompts in one question to an endpoint, and the longest wait for it.
BATCH = 64
PATIENCE_S = 60.0


def embedder_for(task: Task) -> Embedder | None:
    """What is asked beside the task's own n-grams; None: nothing. Raises ConfigError."""
    match task.embedder:
        case StaticEmbedder():
            return None
        case MiniLMEmbedder():
            try:
                return minilm()
            except NoEmbedder as error:
                raise ConfigError(f"tasks.{task.name}.embedder: {error}") from None
        case EndpointEmbedder():
            return Asked(task.embedder)


def load_router(folder: Path, task: Task) -> Router:
    """The router of one of the task's bundles. Raises RouterError, also where it was fitted with
    another embedder than the task has now."""
    return artifact.load(folder, embedder_for(task) or Outside(name=STATIC))


class Asked:
    """An embeddings endpoint, asked batch by batch; each prompt once."""

    serial = False

    def __init__(self, section: EndpointEmbedder) -> None:
        self._section = section
        self._known: dict[str, Floats] = {}
        self.name = Endpoint(section).embedder.name
        self.size = 0

    def __call__(self, text: str, /) -> Floats:
        """Raises NightError."""
        return np.asarray(self.many([text])[0], np.float32)

    def many(self, texts: Sequence[str], /) -> Floats:
        """One row per text. Raises NightError."""
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        if new:
            try:
                asyncio.run(self._ask(new))
            except (aiohttp.ClientError, TimeoutError, NoEmbedder) as error:
                what = str(error) or type(error).__name__
                raise NightError(f"{self.name}: no vectors ({what})") from None
        if not texts:
            return np.zeros((0, self.size), np.float32)
        return np.stack([self._known[text] for text in texts])

    async def _ask(self, texts: Sequence[str]) -> None:
        endpoint = Endpoint(self._section)
        try:
            for start in range(0, len(texts), BATCH):
                batch = texts[start : start + BATCH]
                async with asyncio.timeout(PATIENCE_S):
                    rows = await endpoint.ask(batch)
                self._known.update(zip(batch, rows, strict=True))
                self.size = rows.shape[1]
        finally:
            await endpoint.close()
