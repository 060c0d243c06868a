import pytest
from fake_openai import Body, FakeOpenAI, Reply

from gateway.errors import BundleError
from retrain.ask import ask_student, probe
from retrain.errors import StudentError
from router.decision import Token


def prompt(text: str) -> list[dict[str, str]]:
    return [{"role": "system", "content": "Triage."}, {"role": "user", "content": text}]


def last_text(body: Body) -> str:
    text: str = body["messages"][-1]["content"]
    return text


def test_answers_come_in_the_order_of_the_prompts_with_their_tokens() -> None:
    def reply(body: Body) -> Reply:
        text = last_text(body)
        token = Token(text=text, logprob=-0.25, top=(-0.25, -2.0))
        # the first ones take longest, so that they come back last
        return Reply(text=text, tokens=[token], delay_s=0.02 * (5 - int(text)))

    with FakeOpenAI(reply, vllm=True) as student:
        answers = ask_student(
            [prompt(str(n)) for n in range(5)],
            base_url=student.url,
            adapter="triage-1",
            max_tokens=9,
            concurrency=5,
            progress=False,
        )
    assert [answer.text for answer in answers if answer] == ["0", "1", "2", "3", "4"]
    assert answers[0] is not None
    assert answers[0].tokens == (Token(text="0", logprob=-0.25, top=(-0.25, -2.0)),)
    assert answers[0].tokens[0].names == ("0", "~1")


def test_it_asks_as_the_gateway_does() -> None:
    with FakeOpenAI() as student:
        ask_student([prompt("x")], base_url=student.url, adapter="a", max_tokens=7, progress=False)
    assert student.chats == [
        {
            "model": "a",
            "messages": prompt("x"),
            "temperature": 0,
            "max_tokens": 7,
            "logprobs": True,
            "top_logprobs": 5,
        }
    ]


def test_no_more_requests_are_in_flight_than_allowed() -> None:
    with FakeOpenAI(Reply(text="ok", delay_s=0.02)) as student:
        ask_student(
            [prompt(str(n)) for n in range(12)],
            base_url=student.url,
            adapter="a",
            max_tokens=4,
            concurrency=3,
            progress=False,
        )
    assert student.max_in_flight == 3


def test_a_passing_failure_is_tried_again() -> None:
    replies = iter([Reply(status=503), Reply(text="fine")])
    with FakeOpenAI(lambda body: next(replies)) as student:
        [answer] = ask_student(
            [prompt("x")], base_url=student.url, adapter="a", max_tokens=4, progress=False
        )
    assert answer is not None and answer.text == "fine"


def test_a_refused_prompt_has_no_answer_and_is_not_repeated() -> None:
    def reply(body: Body) -> Reply:
        return Reply(status=400) if last_text(body) == "long" else Reply(text="ok")

    with FakeOpenAI(reply) as student:
        answers = ask_student(
            [prompt("long"), prompt("short")],
            base_url=student.url,
            adapter="a",
            max_tokens=4,
            progress=False,
        )
    assert answers[0] is None and answers[1] is not None
    assert len(student.chats) == 2


def test_a_student_that_answers_nothing_is_an_error_that_says_why() -> None:
    with (
        FakeOpenAI(Reply(status=404)) as student,
        pytest.raises(StudentError, match=r"adapter a answers nothing: .* answers 404: scripted"),
    ):
        ask_student(
            [prompt("x"), prompt("y")],
            base_url=student.url,
            adapter="a",
            max_tokens=4,
            progress=False,
        )


def test_no_prompts_are_no_answers() -> None:
    assert ask_student([], base_url="http://127.0.0.1:9/v1", adapter="a", max_tokens=4) == []


def by_adapter(body: Body) -> Reply:
    return Reply(text="billing" if body["model"] == "new" else "Sure, I can help with that!")


def test_the_probe_sees_an_adapter_that_changes_the_answers() -> None:
    with FakeOpenAI(by_adapter, models=("student-base", "v0", "new")) as student:
        report = probe(student.url, "new", [prompt("x"), prompt("y")])
    assert (report.asked, report.changed, report.changed_text) == (2, 2, 2)


def test_the_probe_sees_a_change_in_probability_alone() -> None:
    def reply(body: Body) -> Reply:
        return Reply(text="ok", logprob=-0.9 if body["model"] == "new" else -0.1)

    with FakeOpenAI(reply, models=("v0", "new")) as student:
        report = probe(student.url, "new", [prompt("x")])
    assert (report.changed, report.changed_text) == (1, 0)


def test_the_probe_refuses_an_adapter_without_effect() -> None:
    with (
        FakeOpenAI("the same", models=("v0", "new")) as student,
        pytest.raises(BundleError, match="answers like v0"),
    ):
        probe(student.url, "new", [prompt("x")])


def test_the_probe_refuses_an_adapter_that_is_not_loaded() -> None:
    with (
        FakeOpenAI("ok", models=("v0",)) as student,
        pytest.raises(BundleError, match="adapter new is not loaded"),
    ):
        probe(student.url, "new", [prompt("x")])


def test_the_probe_of_a_student_that_is_away_says_so() -> None:
    with pytest.raises(BundleError, match="cannot be reached"):
        probe("http://127.0.0.1:9/v1", "new", [prompt("x")])
