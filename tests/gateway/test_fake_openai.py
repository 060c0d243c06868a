"""The fake the other tests lean on speaks the protocol as the official client understands it."""

import openai
import pytest
from fake_openai import FakeOpenAI, Reply


def client(fake: FakeOpenAI) -> openai.OpenAI:
    return openai.OpenAI(base_url=fake.url, api_key="x", max_retries=0)


def test_official_client_reads_answer_and_logprobs() -> None:
    with (
        FakeOpenAI(lambda body: f"you said {body['messages'][0]['content']}") as fake,
        client(fake) as api,
    ):
        answer = api.chat.completions.create(
            model="m",
            messages=[{"role": "user", "content": "hi there"}],
            logprobs=True,
            top_logprobs=2,
        )
        assert answer.choices[0].message.content == "you said hi there"
        assert answer.choices[0].logprobs is not None
        assert answer.choices[0].logprobs.content is not None
        assert len(answer.choices[0].logprobs.content) == 4
        assert fake.chats[0]["model"] == "m"


def test_official_client_reads_a_stream() -> None:
    with FakeOpenAI("one two three") as fake, client(fake) as api:
        stream = api.chat.completions.create(
            model="m",
            messages=[{"role": "user", "content": "hi"}],
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = list(stream)
        text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
        assert text == "one two three"
        assert chunks[-1].choices == []
        assert chunks[-1].usage is not None


def test_cut_answers_and_errors_reach_the_client_as_such() -> None:
    with FakeOpenAI(Reply(text="one two", cut_after=1)) as fake, client(fake) as api:
        with pytest.raises(openai.APIConnectionError):
            api.chat.completions.create(model="m", messages=[])
        fake.reply = Reply(status=429, headers={"retry-after": "3"})
        with pytest.raises(openai.RateLimitError) as caught:
            api.chat.completions.create(model="m", messages=[])
        assert caught.value.response.headers["retry-after"] == "3"


def test_an_outage_ends_on_the_same_port() -> None:
    with FakeOpenAI("ok") as fake, client(fake) as api:
        assert api.models.list().data
        fake.stop()
        with pytest.raises(openai.APIConnectionError):
            api.models.list()
        fake.start()
        assert api.models.list().data
