"""A student gets a router of its own, and the prediction counts what the gateway would do."""

import pytest
from small_bundle import LABELS, STRANGE, SURE, UNSURE, drafted, make_router, prompts
from threadpoolctl import threadpool_limits

from gateway.config import Claim, Contract, Output, Task
from gateway.lane import output_spec
from retrain.calibrate import calibrate, decide_each, predict
from router.decision import Answer, Reason, Route
from router.router import Labelled, Router

TASK = Task(
    name="desk",
    claim=Claim(model=["desk"]),
    output=Output(kind="label", labels=list(LABELS), max_tokens=16),
    contract=Contract(max_disagreement=0.05, confidence=0.95),
)


@pytest.fixture(scope="module")
def router() -> Router:
    with threadpool_limits(limits=1):
        return make_router()


def fitted(answers: list[Answer | None]) -> Router:
    rows = prompts(len(answers), seed=2)
    return calibrate(
        TASK,
        output_spec(TASK.output),
        [Labelled(prompt=prompt, answer=label) for prompt, label in prompts(150, seed=1)],
        [prompt for prompt, _ in rows],
        answers,
        [label for _, label in rows],
        seed=17,
    )


def test_a_good_student_is_certified() -> None:
    made = fitted([drafted(label, SURE) for _, label in prompts(200, seed=2)])
    assert made.certificate is not None
    assert made.certificate.upper_bound <= 0.05


def test_a_failure_of_the_student_is_a_draft_that_cannot_be_served() -> None:
    answers: list[Answer | None] = [drafted(label, SURE) for _, label in prompts(200, seed=2)]
    answers[:50] = [None] * 50
    made = fitted(answers)
    assert made.certificate is not None and made.certificate.n == 200
    assert made.certificate.coverage <= 0.75


def test_with_few_rows_nothing_is_certified() -> None:
    made = fitted([drafted(label, SURE) for _, label in prompts(20, seed=2)])
    assert made.certificate is None and made.report.evidence_needed > 0


def test_decisions_are_the_gateways(router: Router) -> None:
    (prompt, label), *_ = prompts(1, seed=5)
    answers = [
        drafted(label, SURE),
        drafted("refund!", UNSURE),
        drafted("nonsense", SURE),
        None,
        drafted(label, SURE),
    ]
    made = decide_each(router, [*[prompt] * 4, STRANGE], answers)
    assert [decision.reason for decision in made] == [
        Reason.TRUSTED,
        Reason.UNSURE,
        Reason.INVALID,
        Reason.STUDENT_ERROR,
        Reason.OOD,
    ]
    assert [decision.route is Route.STUDENT for decision in made] == [True, *[False] * 4]


def test_harm_is_counted_over_all_requests(router: Router) -> None:
    rows = prompts(40, seed=6)
    asked = [prompt for prompt, _ in rows]
    answers: list[Answer | None] = [drafted(label, SURE) for _, label in rows]
    wrong = next(label for label in LABELS if label != rows[0][1])
    answers[0] = drafted(wrong, SURE)
    answers[1] = drafted(wrong, UNSURE)  # wrong, but not served
    made = decide_each(router, asked, answers)
    found = predict(router, made, answers, [label for _, label in rows])
    assert found.served.share == 39 / 40
    assert found.harm.share == pytest.approx(1 / 40)
    assert found.harm.low <= 1 / 40 <= found.harm.high
    assert found.off_path.share == 0.0
    assert found.reasons == {"trusted": 39, "unsure": 1}
