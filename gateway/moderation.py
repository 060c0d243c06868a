"""An OpenAI-compatible moderation endpoint, asked about drafts."""

import asyncio
import logging
import time
from typing import Any, Protocol

import aiohttp
import orjson

from gateway import metrics
from gateway.config import ModerationCheck
from gateway.secret import json_headers

logger = logging.getLogger(__name__)

_NAME = "moderation"


class Released(Protocol):
    @property
    def released(self) -> str: ...


class Moderation:
    """Its connections are opened with the first question."""

    def __init__(self, check: ModerationCheck) -> None:
        """Raises ConfigError where the key is missing."""
        self._check = check
        self._url = f"{check.base_url.rstrip('/')}/moderations"
        self._session: aiohttp.ClientSession | None = None
        self._headers = json_headers("tasks.checks", check.api_key_env)

    async def passes(self, seen: Released) -> bool:
        """Whether the draft may be served; where the endpoint has no word, as ``on_error`` says."""
        try:
            return not self._flags(await self._ask(seen.released))
        except (aiohttp.ClientError, TimeoutError, _Unusable) as error:
            extra = {"error": str(error) or type(error).__name__}
            logger.warning("moderation failed", extra=extra)
            return self._check.on_error == "allow"

    async def _ask(self, text: str) -> Any:
        question = {"input": text.encode("utf-8", "replace").decode()}
        if self._check.model is not None:
            question["model"] = self._check.model
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0), cookie_jar=aiohttp.DummyCookieJar()
            )
        started, code = time.perf_counter(), "cancelled"
        try:
            async with (
                asyncio.timeout(self._check.timeout_s),
                self._session.post(
                    self._url,
                    data=orjson.dumps(question),
                    headers=self._headers,
                    allow_redirects=False,
                ) as response,
            ):
                code = str(response.status)
                if response.status != 200:
                    raise _Unusable(f"status {response.status}")
                return orjson.loads(await response.read())
        except TimeoutError:
            code = "timeout"
            raise
        except aiohttp.ClientError:
            code = "connect"
            raise
        except orjson.JSONDecodeError:
            raise _Unusable("the answer is not JSON") from None
        finally:
            metrics.upstream_seconds.labels(_NAME).observe(time.perf_counter() - started)
            metrics.upstream_total.labels(_NAME, code).inc()

    def _flags(self, answer: Any) -> bool:
        try:
            results = answer["results"]
            if not results:
                raise _Unusable("no results")
            names = self._check.categories
            return any(
                any(result["categories"][name] for name in names) if names else result["flagged"]
                for result in results
            )
        except (KeyError, TypeError):
            raise _Unusable("the answer is not a moderation") from None

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None


class _Unusable(Exception):
    """The endpoint's answer says nothing."""
