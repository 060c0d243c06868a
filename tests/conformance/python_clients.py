"""instructor, pydantic-ai and the OpenAI client as an application uses them, through the gateway.

Run in the environment of pins/clients.txt with TEST_API_BASE_URL set.
"""

import asyncio
import os

import instructor
import openai
import pytest
from pydantic import BaseModel, Field
from pydantic_ai import Agent, ModelHTTPError
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

URL = os.environ["TEST_API_BASE_URL"]
MODEL = "gpt-4o"


class Person(BaseModel):
    name: str
    age: int = Field(ge=0)


class Weather(BaseModel):
    city: str
    degrees: float


# -- the OpenAI client


@pytest.fixture
def client():
    with openai.OpenAI(base_url=URL, api_key="app", max_retries=0) as made:
        yield made


def test_openai_parse_returns_the_model(client):
    person = client.chat.completions.parse(
        model=MODEL,
        messages=[{"role": "user", "content": "Make a user 'Ada' of 36 years"}],
        response_format=Person,
    )
    assert person.choices[0].message.parsed == Person(name="Ada", age=36)


def test_openai_stream_helper_assembles_tool_calls(client):
    schema = {"type": "object", "properties": {"city": {"type": "string"}}}
    tool = {"type": "function", "function": {"name": "get_weather", "parameters": schema}}
    with client.chat.completions.stream(
        model=MODEL,
        messages=[{"role": "user", "content": "Weather in 'Paris'?"}],
        tools=[tool],
        stream_options={"include_usage": True},
    ) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    (call,) = final.choices[0].message.tool_calls
    assert (call.function.name, call.function.arguments) == ("get_weather", '{"city": "Paris"}')
    assert final.usage.total_tokens > 0
    assert "tool_calls.function.arguments.delta" in kinds


def test_openai_errors_are_of_their_class(client):
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(
            model="missing-model", messages=[{"role": "user", "content": "x"}]
        )
    assert caught.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model=MODEL, messages=[])
    assert refused.value.param == "messages"


def test_openai_request_id_and_raw_headers(client):
    made = client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "x"}])
    assert made._request_id


def test_openai_embeddings_decode_from_base64(client):
    packed = client.embeddings.create(model="text-embedding-3-large", input=["one", "two"])
    plain = client.embeddings.create(
        model="text-embedding-3-large", input=["one", "two"], encoding_format="float"
    )
    for one, other in zip(packed.data, plain.data, strict=True):
        assert one.embedding == pytest.approx(other.embedding, abs=1e-6)


async def test_openai_leaving_a_stream_does_no_harm():
    async with openai.AsyncOpenAI(base_url=URL, api_key="app") as client:
        stream = await client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": "be slow with these many words please"}],
            stream=True,
        )
        async for chunk in stream:
            if chunk.choices[0].delta.content:
                break
        await stream.close()
        asking = asyncio.create_task(
            client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "x"}])
        )
        await asyncio.sleep(0)
        asking.cancel()
        again = await client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "still there?"}]
        )
    assert again.choices[0].message.content == "You said: still there?"


# -- instructor


@pytest.mark.parametrize(
    "mode",
    [instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA, instructor.Mode.PARALLEL_TOOLS],
    ids=["tools", "json_schema", "parallel_tools"],
)
def test_instructor_returns_the_model(client, mode):
    maker = instructor.from_openai(client, mode=mode)
    wanted = list[Person] if mode is instructor.Mode.PARALLEL_TOOLS else Person
    if mode is instructor.Mode.PARALLEL_TOOLS:
        from collections.abc import Iterable

        wanted = Iterable[Person]
    made = maker.chat.completions.create(
        model=MODEL,
        response_model=wanted,
        messages=[{"role": "user", "content": "Make a person with the tool: 'Ada', 36"}],
    )
    found = next(iter(made)) if mode is instructor.Mode.PARALLEL_TOOLS else made
    assert (found.name, found.age) == ("Ada", 36)


def test_instructor_streams_a_partial_model(client):
    maker = instructor.from_openai(client, mode=instructor.Mode.TOOLS)
    parts = list(
        maker.chat.completions.create_partial(
            model=MODEL,
            response_model=Person,
            messages=[{"role": "user", "content": "Make a person: 'Ada', 36"}],
        )
    )
    assert (parts[-1].name, parts[-1].age) == ("Ada", 36)


def test_instructor_passes_errors_on(client):
    maker = instructor.from_openai(client, mode=instructor.Mode.TOOLS)
    with pytest.raises(Exception) as caught:
        maker.chat.completions.create(
            model="missing-model",
            response_model=Person,
            max_retries=0,
            messages=[{"role": "user", "content": "x"}],
        )
    assert "missing-model" in str(caught.value)


# -- pydantic-ai


def agent(model: str = MODEL, **options) -> Agent:
    provider = OpenAIProvider(base_url=URL, api_key="app")
    return Agent(OpenAIChatModel(model, provider=provider), **options)


async def test_pydantic_ai_chats():
    made = await agent().run("hello there")
    assert made.output == "You said: hello there"
    assert made.usage.input_tokens > 0


async def test_pydantic_ai_streams():
    async with agent().run_stream("hello there, my friend") as stream:
        parts = [part async for part in stream.stream_text(delta=True, debounce_by=None)]
    assert "".join(parts) == "You said: hello there, my friend"
    assert len(parts) > 1


async def test_pydantic_ai_runs_tools_to_the_end():
    desk, seen = agent(), []

    @desk.tool_plain
    def get_weather(city: str) -> str:
        seen.append(city)
        return "sunny"

    made = await desk.run("What is the weather in 'Paris'?")
    assert seen == ["Paris"]
    assert "sunny" in made.output


async def test_pydantic_ai_returns_structured_output():
    made = await agent(output_type=Weather).run("It is 21.5 degrees in 'Paris', use the tool")
    assert made.output == Weather(city="Paris", degrees=21.5)


async def test_pydantic_ai_tells_of_errors():
    with pytest.raises(ModelHTTPError) as caught:
        await agent("missing-model").run("x")
    assert caught.value.status_code == 404
