from html.parser import HTMLParser

import pytest

from retrain.demo.page import Night, Story, page
from retrain.demo.replay import Outcome
from retrain.demo.scenario import Case
from retrain.demo.table import Played, Share, markdown, percentile, summarise, text
from router.output import OutputSpec

LABEL = OutputSpec(kind="label")


def played(
    *,
    route: str = "student",
    reason: str = "trusted",
    answer: str = "a",
    teacher: str | None = "a",
    gold: str | None = None,
    kind: str = "known",
    latency_s: float = 1.0,
    cost_usd: float | None = 0.001,
    error: str | None = None,
    score: float | None = 0.9,
    loss: float | None = None,
) -> Played:
    case = Case(messages=({"role": "user", "content": "x"},), teacher=teacher, gold=gold, kind=kind)
    outcome = Outcome(
        case=case,
        answer=answer,
        request_id="r",
        route=route,
        reason=reason,
        bundle="b",
        stream=False,
        latency_s=latency_s,
        error=error,
    )
    return Played(outcome=outcome, teacher=teacher, cost_usd=cost_usd, score=score, loss=loss)


def escalated(**more) -> Played:
    return played(route="teacher", reason="unsure", **more)


def test_coverage_and_agreement_are_counted_over_the_right_requests():
    items = [*(played() for _ in range(5)), played(answer="b"), *(escalated() for _ in range(4))]
    figures = summarise("round 1", items, LABEL)
    assert figures.coverage == Share(hits=6, n=10)
    assert figures.agreement == Share(hits=9, n=10)
    assert figures.agreement_served == Share(hits=5, n=6)
    assert figures.reasons == {"trusted": 6, "unsure": 4}


def test_failed_requests_are_reported_and_counted_nowhere_else():
    figures = summarise("r", [played(), played(error="boom", answer="", cost_usd=None)], LABEL)
    assert (figures.answered, figures.failed) == (1, 1)
    assert figures.coverage == Share(hits=1, n=1) and figures.usd_per_1000 == 1.0


def test_off_task_caught_and_wrong_are_about_off_task_messages_alone():
    off = {"kind": "off_task"}
    items = [escalated(**off), escalated(**off), played(**off), played(answer="b", **off), played()]
    figures = summarise("r", items, LABEL)
    assert figures.off_task_caught == Share(hits=2, n=4)
    assert figures.off_task_wrong == 1


def test_unknown_teacher_answers_are_not_compared():
    figures = summarise("r", [played(teacher=None), played(), escalated(teacher=None)], LABEL)
    assert figures.agreement_served == Share(hits=1, n=1)
    assert figures.agreement == Share(hits=2, n=2)


def test_gold_judges_system_and_teacher_on_the_same_requests():
    items = [
        played(answer="b", teacher="a", gold="b"),
        played(answer="a", teacher="a", gold="b"),
        escalated(answer="a", teacher="a", gold="a"),
        played(),
    ]
    figures = summarise("r", items, LABEL)
    assert figures.gold == Share(hits=2, n=3) and figures.gold_teacher == Share(hits=1, n=3)


def test_one_unknown_cost_makes_the_sum_unknown_not_smaller():
    assert summarise("r", [played(), played(cost_usd=None)], LABEL).usd_per_1000 is None
    assert summarise("r", [played(), played(cost_usd=0.003)], LABEL).usd_per_1000 == 2.0


def test_free_texts_agree_when_most_words_do():
    spec = OutputSpec(kind="text")
    near = played(answer="the parcel comes on Monday morning", teacher="The parcel comes on Monday")
    far = played(answer="no idea", teacher="The parcel comes on Monday")
    assert summarise("r", [near, far], spec).agreement_served == Share(hits=1, n=2)


def test_intervals_are_exact():
    low, high = Share(hits=0, n=60).interval
    assert low == 0.0 and high == pytest.approx(1 - 0.025 ** (1 / 60))
    assert str(Share(hits=0, n=0)) == "–"


def test_percentile_is_one_of_the_values():
    assert percentile([3.0, 1.0, 2.0], 0.95) == 3.0
    assert percentile(list(map(float, range(100))), 0.95) == 95.0


@pytest.fixture
def columns():
    teacher = [played(route="teacher", reason="collect", score=None) for _ in range(20)]
    first = [played(loss=0.0), played(loss=1.0, answer="b", score=0.4), escalated(loss=1.0)]
    off = [escalated(kind="off_task"), escalated(kind="unseen", gold="a")]
    parts = {"teacher only": teacher, "round 1": [*first, *off], "round 2": first}
    return parts, tuple(summarise(name, items, LABEL) for name, items in parts.items())


def test_table_claims_nothing_for_the_teacher_alone(columns):
    _, figures = columns
    lines = {line.split("  ")[0]: line for line in text(figures).splitlines()}
    assert lines["coverage: answered by the student"].split()[5] == "–"
    assert "off-task sent to the teacher" in lines
    assert len({len(line) for line in lines.values()}) == 1
    assert markdown(figures).startswith("|  | teacher only | round 1 | round 2 |\n| --- | ---: |")


class Checker(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.count: dict[str, int] = {}

    def handle_starttag(self, tag, attrs):
        self.count[tag] = self.count.get(tag, 0) + 1
        self.links += [value for name, value in attrs if name in ("src", "href")]
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_page_is_whole_well_formed_and_loads_nothing(columns):
    parts, figures = columns
    night = Night(
        title="Night 1",
        verdict="promote",
        reasons=("n = 3 <fine>",),
        certificate=("c",),
        threshold=0.5,
    )
    story = Story(
        about="tickets & more",
        columns=figures,
        played=parts,
        nights=(night, night),
        facts=("2 cores",),
        config="tasks: []",
    )
    html = page(story)
    checker = Checker()
    checker.feed(html)
    assert checker.open == [] and checker.links == []
    assert checker.count["svg"] == 6 and checker.count["table"] == 1
    assert "prefers-color-scheme: dark" in html and "<script" not in html
    assert "&lt;fine&gt;" in html
