import pytest
from openai import APIStatusError, OpenAI

from retrain.demo.recorded_teacher import FINGERPRINT, RecordedTeacher, count_tokens, key_of
from retrain.demo.replay import Outcome, replay
from retrain.demo.scenario import Case

ANSWER = '{"category":"wrong_item","priority":"normal","needs_human":false}'
MESSAGES = [{"role": "system", "content": "Triage."}, {"role": "user", "content": "Not mine."}]


def case(text: str, answer: str = ANSWER) -> Case:
    messages = (MESSAGES[0], {"role": "user", "content": text})
    return Case(messages=messages, teacher=answer, gold=None, kind="known")


@pytest.fixture(scope="module")
def teacher():
    answers = {key_of(MESSAGES): ANSWER}
    answers |= {case(f"ticket {k}").key: f"answer {k}" for k in range(8)}
    with RecordedTeacher(answers, pace=0.01) as running:
        yield running


@pytest.fixture(scope="module")
def client(teacher):
    with OpenAI(base_url=teacher.base_url, api_key="any", max_retries=0) as client:
        yield client


def test_openai_client_gets_the_recorded_answer_with_usage(client):
    raw = client.chat.completions.with_raw_response.create(model="gpt-x", messages=MESSAGES)
    whole = raw.parse()
    assert whole.choices[0].message.content == ANSWER
    assert whole.choices[0].finish_reason == "stop"
    assert whole.usage.completion_tokens == count_tokens(ANSWER)
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens


def test_it_says_that_it_is_a_recording(client):
    raw = client.chat.completions.with_raw_response.create(model="gpt-x", messages=MESSAGES)
    assert raw.headers["x-retort-recording"] == "true"
    assert raw.parse().system_fingerprint == FINGERPRINT
    assert [model.owned_by for model in client.models.list()] == [FINGERPRINT]


def test_stream_is_the_same_answer_in_many_pieces_with_usage_on_request(client):
    chunks = list(
        client.chat.completions.create(
            model="gpt-x",
            messages=MESSAGES,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    pieces = [
        c.choices[0].delta.content for c in chunks if c.choices and c.choices[0].delta.content
    ]
    assert "".join(pieces) == ANSWER and len(pieces) > 5
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens > 0
    assert len({(c.id, c.created, c.model) for c in chunks}) == 1
    plain = list(client.chat.completions.create(model="m", messages=MESSAGES, stream=True))
    assert all(chunk.choices and chunk.usage is None for chunk in plain)


def test_system_prompt_is_no_part_of_the_key():
    other = [{"role": "developer", "content": "Other rules."}, MESSAGES[1]]
    assert key_of(other) == key_of(MESSAGES)
    assert key_of(MESSAGES[1:]) != key_of([*MESSAGES, {"role": "assistant", "content": "x"}])


def test_unknown_message_is_a_clear_error_and_no_invention(client):
    with pytest.raises(APIStatusError, match="recording and does not know") as caught:
        client.chat.completions.create(model="m", messages=[{"role": "user", "content": "new"}])
    assert caught.value.status_code == 422
    assert caught.value.code == "not_recorded"


@pytest.mark.parametrize("path", ["/embeddings", "/chat/completions"])
def test_nonsense_gets_an_openai_error(client, path):
    with pytest.raises(APIStatusError) as caught:
        client.post(path, body={"messages": 3}, cast_to=object)
    assert caught.value.status_code in (400, 404)
    assert set(caught.value.response.json()["error"]) == {"message", "type", "param", "code"}


def test_replay_keeps_order_mixes_streams_and_turns_errors_into_outcomes(teacher):
    cases = [*(case(f"ticket {k}") for k in range(8)), case("never recorded")]
    done: list[Outcome] = []
    outcomes = replay(
        cases,
        base_url=teacher.base_url,
        api_key="any",
        model="m",
        concurrency=3,
        stream_share=0.5,
        seed=1,
        done=done.append,
    )
    assert [o.answer for o in outcomes] == [*(f"answer {k}" for k in range(8)), ""]
    assert [o.case for o in outcomes] == cases and len(done) == 9
    assert {o.stream for o in outcomes} == {True, False}
    assert all((o.first_token_s is not None) == (o.stream and not o.error) for o in outcomes)
    assert "recording" in (outcomes[-1].error or "") and outcomes[0].error is None
