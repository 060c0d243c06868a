"""Adapters on a student server, and on one that is not what it should be."""

from collections.abc import AsyncIterator

import aiohttp
import pytest
from fake_openai import FakeOpenAI, Reply

from gateway.errors import BundleError
from gateway.upstreams.adapters import answers, load_adapter, loaded, unload_adapter


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as made:
        yield made


async def test_load_list_ask_unload(student: FakeOpenAI, session: aiohttp.ClientSession) -> None:
    await load_adapter(session, student.url, "a-1", "/adapters/a-1")
    # again is the same as once
    await load_adapter(session, student.url, "a-1", "/adapters/a-1")
    assert await loaded(session, student.url) == {"student-base", "a-1"}
    await answers(session, student.url, "a-1")
    for _ in range(2):
        await unload_adapter(session, student.url, "a-1")
    with pytest.raises(BundleError, match="a-1 is loaded but does not answer"):
        await answers(session, student.url, "a-1")


async def test_what_the_server_says_is_in_the_error(
    student: FakeOpenAI, session: aiohttp.ClientSession
) -> None:
    with pytest.raises(BundleError, match="must be provided"):
        await load_adapter(session, student.url, "a-1", "")
    student.api_key = "k"
    with pytest.raises(BundleError, match="401"):
        await loaded(session, student.url)


async def test_a_server_that_is_not_there(session: aiohttp.ClientSession) -> None:
    url = "http://127.0.0.1:9/v1"
    for call in (loaded(session, url), load_adapter(session, url, "a", "/a")):
        with pytest.raises(BundleError, match="cannot be reached"):
            await call


async def test_an_adapter_that_fails_to_answer(
    student: FakeOpenAI, session: aiohttp.ClientSession
) -> None:
    await load_adapter(session, student.url, "a-1", "/a")
    student.reply = Reply(status=500)
    with pytest.raises(BundleError, match="does not answer"):
        await answers(session, student.url, "a-1")
