"""A student that has gone bad stops answering within a few audits, and may earn its way back."""

import time
from datetime import UTC, datetime
from pathlib import Path

from fake_openai import FakeOpenAI, Reply
from ledger_rows import request_line
from running_gateway import RunningGateway, wait_until
from small_bundle import SURE, make_router
from sqlmodel import select
from triage import BODY, Start, live_bundle

from gateway.certificates import incidents
from gateway.certificates.outcomes import Row, Window, outcome
from gateway.certificates.standing import Standing
from gateway.config import Claim, Task
from gateway.lane import Lane, Live
from gateway.storage.bundles import BundleFiles
from gateway.storage.tables import Certificate, Request
from router.certificate import Outcome
from router.decision import Reason
from router.threshold import NEVER, REJECTED

CHAT = "/v1/chat/completions"
QUICK = {"certificate": {"settle_s": 0.2}}


def ask(gateway: RunningGateway, number: int) -> tuple[str, str]:
    body = BODY | {"user": str(number)}
    _, headers, _ = gateway.send("POST", CHAT, body)
    return headers["x-retort-route"], headers["x-retort-reason"]


def certificate(gateway: RunningGateway) -> Certificate:
    with gateway.store.session() as session:
        return session.exec(select(Certificate)).one()


def wait_for_audits(gateway: RunningGateway, count: int) -> None:
    """Until so many are in the ledger and the alarms have heard them."""

    def heard() -> int:
        with gateway.store.session() as session:
            rows = session.exec(select(Request).where(Request.kind == "audit")).all()
            return sum(row.heard for row in rows)

    wait_until(lambda: heard() == count)


def test_a_student_gone_bad_stops_within_one_audit_and_earns_its_way_back(
    serving: Start, teacher: FakeOpenAI, student: FakeOpenAI
) -> None:
    teacher.reply = Reply(text="refund")
    gateway = serving(audit_rate=1.0, sections=QUICK)
    bundle = live_bundle(gateway)
    served = 0
    while (said := ask(gateway, served)) == ("student", "trusted"):
        served += 1
        # the audit is made off the path: as soon as it is there, its word counts
        wait_for_audits(gateway, served)
        assert served < 20
    assert said == ("teacher", "alarm") and served >= 2
    assert gateway.metric('retort_alarm{task="triage"}') == 1
    assert gateway.metric('retort_threshold{task="triage"}') == 1.01
    known = certificate(gateway)
    assert (known.epoch, known.certified, known.alarm) == (2, False, known.alarms["raised"])
    (incident,) = incidents.history(gateway.store, "triage")
    assert incident.bundle == bundle and incident.cleared_at is None
    assert str(served) in incident.detail
    assert "alarm" in gateway.json("/readyz")[1]["problems"]["student of triage"]
    # the student drafts beside the teacher, and what it is worth is in the ledger
    row = next(one for one in gateway.ledger(2 * served + 1) if one.reason == "alarm")
    assert (row.route, row.loss, row.propensity) == ("teacher", 1.0, 1.0)
    assert row.score is not None and student.chats
    # it is mended: three hundred drafts that agree
    now = time.time()
    written = datetime.now(UTC)
    gateway.store.insert(
        [
            request_line(
                now,
                number,
                Reason.ALARM,
                bundle=bundle,
                score=0.99,
                loss=0.0,
                propensity=1.0,
                written_at=written,
            )
            for number in range(300)
        ]
    )
    teacher.reply = student.reply = Reply(text="parcel", logprob=SURE)
    wait_until(lambda: ask(gateway, 99) == ("student", "trusted"))
    assert certificate(gateway).alarm is None
    assert incidents.history(gateway.store, "triage")[0].cleared_at is not None
    assert gateway.metric('retort_alarm{task="triage"}') == 0


def test_another_gateway_hears_of_the_alarm_from_the_database(
    serving: Start, start: Start, teacher: FakeOpenAI
) -> None:
    gateway = serving(audit_rate=1.0, sections=QUICK)
    other = start(audit_rate=1.0, sections=QUICK)
    assert ask(other, 0) == ("student", "trusted")
    teacher.reply = Reply(text="refund")
    number = 1
    while ask(gateway, number) == ("student", "trusted"):
        number += 1
        wait_for_audits(gateway, number)
    wait_until(lambda: ask(other, 1000) == ("teacher", "alarm"))


def test_a_shadow_draft_that_breaks_the_rules_counts_as_never_served(
    serving: Start, student: FakeOpenAI
) -> None:
    student.reply = Reply(text="no such label", logprob=SURE)
    gateway = serving(mode="shadow", sections=QUICK)
    assert ask(gateway, 0) == ("teacher", "shadow")
    (row,) = gateway.ledger()
    assert (row.score, row.loss, row.least) == (REJECTED, 1.0, 1.0)
    seen = Row(**{name: getattr(row, name) for name in Row.__slots__})
    window = Window(settle_s=60.0, audit_wait_s=60.0)
    counted = outcome(seen, None, window, time.time())
    assert counted == Outcome(score=REJECTED, propensity=1.0, loss=0.0, least=1.0)


def test_a_gateway_never_goes_back_to_an_older_certificate(tmp_path: Path) -> None:
    lane = Lane(Task(name="triage", claim=Claim(model=["m"])))
    files = BundleFiles(
        id="b",
        task="triage",
        adapter="b",
        base_model="student-base",
        prompt_hash="",
        dataset_id="",
        created_at="",
        folder=tmp_path,
    )
    lane.live = Live(bundle=files, router=make_router())
    assert lane.live.threshold == NEVER  # until its certificate was read
    assert lane.take("b", Standing(version=3, threshold=0.5))
    assert lane.take("b", Standing(version=4, alarm="harm"))
    # a thread that read before the alarm comes back after it
    assert not lane.take("b", Standing(version=3, threshold=0.5))
    assert not lane.take("another", Standing(version=9, threshold=0.1))
    assert lane.live.threshold == NEVER and lane.live.standing.alarm == "harm"


def test_a_gateway_that_cannot_read_its_certificate_keeps_the_last_one(
    serving: Start, teacher: FakeOpenAI
) -> None:
    gateway = serving(sections=QUICK)
    with gateway.store.transaction() as session:
        session.connection().exec_driver_sql("ALTER TABLE certificate RENAME TO away")
    time.sleep(1.5)  # more than a round of the poller
    assert ask(gateway, 0) == ("student", "trusted")
    with gateway.store.transaction() as session:
        session.connection().exec_driver_sql("ALTER TABLE away RENAME TO certificate")
