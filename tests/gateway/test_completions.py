"""A router that breaks sends everything to the teacher."""

import json
from pathlib import Path

from fake_openai import FakeOpenAI
from triage import BODY, configuration

from gateway.completions import after, before
from gateway.config import Task
from gateway.draft import Draft
from gateway.lane import Lane, Live
from gateway.storage.bundles import BundleFiles
from gateway.storage.tables import utcnow
from gateway.trip import Trip
from gateway.vectors import Floats
from gateway.wire.protocol import Incoming, read_chat
from router.decision import Answer, Decision, Reason, Route
from router.output import OutputSpec
from router.router import Start
from router.threshold import Certificate


class BrokenRouter:
    """Says what a damaged artifact might."""

    certificate: Certificate | None = None
    threshold = 0.5
    spec = OutputSpec()
    window = None
    prefix = None

    start = Start()

    def before(
        self, prompt: str, threshold: float | None = None, vector: Floats | None = None
    ) -> Decision:
        raise ZeroDivisionError

    def after(
        self,
        prompt: str,
        answer: Answer,
        p_ood: float | None = None,
        threshold: float | None = None,
        vector: Floats | None = None,
    ) -> Decision:
        raise ZeroDivisionError


def trip(task: Task, path: Path) -> Trip:
    lane = Lane(task)
    files = BundleFiles(
        id="b",
        task="triage",
        adapter="b",
        base_model="student-base",
        prompt_hash="",
        dataset_id="",
        created_at=utcnow(),
        folder=path,
    )
    lane.live = Live(bundle=files, router=BrokenRouter())
    raw = json.dumps(BODY).encode()
    incoming = Incoming(id="r", method="POST", path="/", query="", headers={}, raw=raw)
    config = configuration(path, (FakeOpenAI(), FakeOpenAI()), {})
    return Trip(incoming=incoming, chat=read_chat(incoming), lane=lane, config=config)


def test_a_broken_router_has_no_say_before_or_after(tmp_path: Path) -> None:
    config = configuration(tmp_path, (FakeOpenAI(), FakeOpenAI()), {})
    request = trip(config.task(), tmp_path)
    expected = Decision(route=Route.TEACHER, reason=Reason.STUDENT_ERROR)
    assert before(request) == expected
    request.decision = Decision(route=Route.STUDENT, reason=Reason.TRUSTED)
    request.draft = Draft(answer=Answer(text="parcel"), usage=None)
    assert after(request) == expected
