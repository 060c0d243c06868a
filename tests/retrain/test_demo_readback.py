"""What a round cost is read from the ledger, audits included."""

from store_process import exchange

from gateway.storage.line import Line
from gateway.storage.store import Store
from retrain.demo.readback import read_back
from retrain.demo.replay import Outcome
from retrain.demo.scenario import Case
from router.output import OutputSpec


def outcome(request_id: str, route: str) -> Outcome:
    case = Case(messages=({"role": "user", "content": "x"},), teacher="a", gold=None, kind="known")
    return Outcome(
        case=case,
        answer="a",
        request_id=request_id,
        route=route,
        reason="x",
        bundle="b",
        stream=False,
        latency_s=1.0,
    )


def line(id: str, route: str, cost_usd: float | None, **more: object) -> Line:
    made = Line(
        id=id,
        task="triage",
        route=route,
        reason="x",
        status=200,
        duration_ms=1.0,
        cost_usd=cost_usd,
    )
    for name, value in more.items():
        setattr(made, name, value)
    return made


def test_audits_are_part_of_what_a_request_cost(store: Store) -> None:
    store.insert(
        [
            exchange("taught"),
            exchange("audited", route="student", student_text="a"),
            line("taught", "teacher", 1.0),
            line("audited", "student", 0.25, sampled=True),
            line("audited-audit", "teacher", 0.5, kind="audit", parent="audited"),
        ]
    )
    outcomes = [outcome("taught", "teacher"), outcome("audited", "student")]
    spec = OutputSpec(kind="label", labels=("a",))
    played = read_back(store, outcomes, teachers={}, spec=spec)
    assert [item.cost_usd for item in played] == [1.0, 0.75]
