"""`retort replay` from the command line: its words, its files, and what it says when it cannot."""

import json
import re
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, get_args

import pytest
from fake_openai import Body, FakeOpenAI, Reply
from small_bundle import LABELS, SURE, UNSURE, contract_hash, drafted, make_router, prompts
from small_bundle import save_parts as save_adapter_and_router
from sqlalchemy import text
from sqlmodel import select

from gateway.config import Config, load
from gateway.storage import bundles
from gateway.storage.bundles import BundleFiles
from gateway.storage.line import Line
from gateway.storage.store import Store
from gateway.storage.tables import Exchange, utcnow
from retrain.answers import answers_to
from retrain.cli import main
from retrain.replay_command import SIGNALS
from retrain.replay_rows import Signal
from router.kept_signals import kept_signals
from router.router import Router

CONFIG = """\
state_dir: {state}
teacher: {{base_url: "http://127.0.0.1:9/v1", api_key_env: null}}
student: {{base_url: "{student}"}}
tasks:
  - name: triage
    claim: {{model: [gpt-4.1]}}
    output: {{kind: label, labels: [parcel, refund, password, "refund!"], max_tokens: 16}}
    audit: {{rate: 0.5}}
"""
NOBODY = "http://127.0.0.1:9/v1"


class World:
    """A configuration, its store, and a champion with logged traffic."""

    def __init__(self, folder: Path, router: Router, student: str = NOBODY) -> None:
        self.path = folder / "retort.yaml"
        self.path.write_text(CONFIG.format(state=folder / "state", student=student))
        self.config: Config = load(self.path)
        self.folder = folder
        self.router = router
        self.store = Store.open(self.config.database_url, self.config.state / "spool")
        self.live = self.bundle("live")
        bundles.promote(self.store, self.live.id)

    def bundle(self, name: str, **summary: Any) -> BundleFiles:
        task = self.config.task("triage")
        adapter_dir, router_dir = save_adapter_and_router(self.folder / name, self.router)
        files = bundles.write_bundle(
            self.config.state / "bundles",
            task="triage",
            adapter_dir=adapter_dir,
            router_dir=router_dir,
            base_model="base",
            prompt_hash=contract_hash(task),
            dataset_id="d",
            detail={},
        )
        bundles.register(self.store, files, summary=summary)
        return files

    def log(self, count: int, **more: Any) -> None:
        """Every other sure draft is served and audited; one request in ten is unsure and wrong."""
        rows: list[Any] = []
        for at, (prompt, label) in enumerate(prompts(count, seed=9)):
            unsure = at % 10 == 0
            draft = drafted("refund!", UNSURE) if unsure else drafted(label, SURE)
            score = self.router.score(prompt, draft)
            served = score >= self.router.threshold
            id = f"req-{at:012x}"
            common: dict[str, Any] = {
                "at": utcnow(),
                "task": "triage",
                "bundle": self.live.id,
                "reason": "trusted" if served else "unsure",
                "score": score,
                "sampled": at % 2 == 0,
                "propensity": 0.5,
            } | {name: value for name, value in more.items() if name in ("reason", "bundle")}
            loss = float(draft.text != label)
            usd = more.get("usd", 0.01)
            line = Line(
                id=id,
                route="student" if served else "teacher",
                status=200,
                loss=None if served else loss,
                student_usd=0.001,
                teacher_cost_usd=usd,
                student_ms=50.0,
                teacher_ms=None if served else 500.0,
                duration_ms=1.0,
                **common,
            )
            rows.append(line)
            if served and at % 2 == 0:
                audit: dict[str, Any] = {"kind": "audit", "parent": id, "route": "teacher"}
                rows.append(
                    Line(
                        id=f"{id}-audit",
                        status=200,
                        loss=loss,
                        teacher_usd=usd,
                        teacher_ms=500.0,
                        duration_ms=1.0,
                        **audit,
                        **common,
                    )
                )
            if not served or at % 2 == 0:
                rows.append(
                    Exchange(
                        id=id,
                        dedupe_key=id,
                        group_key=id,
                        prompt=prompt,
                        body={"messages": [{"role": "user", "content": prompt}]},
                        teacher_text=label,
                        student_text=draft.text,
                        route="student" if served else "teacher",
                        loss=loss,
                        signals=kept_signals(self.router.spec, draft),
                        **common,
                    )
                )
        self.store.insert(rows)

    def replay(self, *more: str) -> int:
        return main(["replay", "--config", str(self.path), *more])


@pytest.fixture(scope="module")
def router() -> Router:
    return make_router()


@pytest.fixture(scope="module")
def world(router: Router, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Only to be read."""
    made = World(tmp_path_factory.mktemp("world"), router)
    made.log(400)
    yield made
    made.store.close()


@pytest.fixture
def empty(router: Router, tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path, router)
    yield made
    made.store.close()


def test_it_says_what_the_certified_threshold_does(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of 400 requests 360 are served, 160 of them audited, none of these wrong."""
    assert world.replay() == 0
    out = capsys.readouterr().out
    assert "400 requests, the draft's loss known of 200, 160 of these by audit" in out
    assert "There is no live certificate" in out
    sentence = next(line for line in out.splitlines() if line.startswith("At the certified"))
    assert re.search(r"serves 90 % \[87, 93\] of the requests at 0\.0 % \[0\.0, \d", sentence)
    # 1,000 of the teacher alone cost $10; drafts 1, deferred 1, audits of half of 900: 4.5
    assert "saves $3.50 per 1,000" in sentence
    assert sum(line.startswith("* ") for line in out.splitlines()) == 1


def test_json_has_every_number_and_only_numbers(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    assert world.replay("--json", "--signal", "score", "--signal", "min", "--threshold", "0.5") == 0
    found = json.loads(capsys.readouterr().out)
    assert [curve["signal"] for curve in found["curves"]] == ["score", "min"]
    first = found["curves"][0]
    assert first["certified"] == pytest.approx(world.router.threshold)
    assert {point["what"] for point in first["marked"]} == {"offline certificate", "asked for"}
    assert first["points"][-1]["coverage"]["value"] == pytest.approx(1.0)
    assert first["points"][-1]["disagreement"]["value"] == pytest.approx(0.1)
    assert found["curves"][1]["certified"] is None


class Reader(HTMLParser):
    """Whether every tag is closed in order, and what could be loaded."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []
        self.points: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "br"):
            self.open.append(tag)
        values = dict(attrs)
        self.loads += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag in ("script", "link", "iframe", "img"):
            self.loads.append(tag)
        if tag == "circle" and values.get("tabindex") == "0":
            self.points.append(values.get("aria-label") or "")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.mark.slow
def test_the_page_stands_alone_and_can_be_read_without_a_mouse(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert world.replay("--out", str(tmp_path / "out"), "--signal", "score") == 0
    assert "replay.html, replay.json, replay.png" in capsys.readouterr().err
    page = (tmp_path / "out/replay.html").read_text()
    reader = Reader()
    reader.feed(page)
    assert reader.open == [] and reader.loads == []
    assert "http" not in page and "@import" not in page and "url(" not in page
    assert page.count("<svg") == 4 and "prefers-color-scheme: dark" in page
    assert "nan" not in re.sub(r"<[^>]*>", " ", page).casefold().split()
    assert not re.search(r'="[^"]*\bnan\b', page)
    assert any("offline certificate" in point for point in reader.points)
    assert json.loads((tmp_path / "out/replay.json").read_text())["task"] == "triage"
    png = (tmp_path / "out/replay.png").read_bytes()
    assert png.startswith(b"\x89PNG\r\n") and len(png) > 20_000


def test_without_matplotlib_one_line_says_what_is_missing(
    world: World,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert world.replay("--out", str(tmp_path)) == 0
    assert "replay.png is not drawn" in capsys.readouterr().err
    assert (tmp_path / "replay.html").exists() and not (tmp_path / "replay.png").exists()


def one_line(capsys: pytest.CaptureFixture[str], *parts: str) -> None:
    caught = capsys.readouterr()
    assert caught.out == ""
    assert caught.err.count("\n") == 1, caught.err
    for part in parts:
        assert part in caught.err


def test_no_traffic_is_one_line(empty: World, capsys: pytest.CaptureFixture[str]) -> None:
    assert empty.replay() == 1
    one_line(capsys, "task triage", empty.live.id, "no request to replay")


def test_no_label_is_one_line(empty: World, capsys: pytest.CaptureFixture[str]) -> None:
    empty.log(20, reason="ood")
    assert empty.replay() == 1
    one_line(capsys, "no row with a draft whose answer by the teacher is known")


def test_a_bundle_of_another_task_is_one_line(
    empty: World, capsys: pytest.CaptureFixture[str]
) -> None:
    files = bundles.write_bundle(
        empty.config.state / "bundles",
        task="other",
        adapter_dir=empty.live.adapter_dir,
        router_dir=empty.live.router_dir,
        base_model="base",
        prompt_hash=empty.live.prompt_hash,
        dataset_id="d",
        detail={},
    )
    bundles.register(empty.store, files)
    assert empty.replay("--bundle", files.id) == 1
    one_line(capsys, f"{files.id} is a bundle of task 'other', not 'triage'")


def test_every_signal_that_can_be_asked_for_is_one_of_the_rows() -> None:
    assert get_args(Signal) == SIGNALS


def test_no_champion_is_one_line(empty: World, capsys: pytest.CaptureFixture[str]) -> None:
    bundles.rollback(empty.store, "triage")
    assert empty.replay() == 1
    one_line(capsys, "has no champion: name a bundle")


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--bundle", "nobody"], "there is no bundle nobody"),
        (["--task", "other"], "no task named 'other'"),
        (["--last", "7d", "--since", "2026-11-01"], "--last and --since"),
        (["--since", "2026-11-02", "--until", "2026-11-01"], "--since must be before --until"),
        (["--until", "2020-01-01"], "to 2020-01-01 00:00: no request to replay"),
    ],
)
def test_what_cannot_be_replayed_is_one_line(
    world: World, capsys: pytest.CaptureFixture[str], arguments: list[str], part: str
) -> None:
    assert world.replay(*arguments) == 1
    one_line(capsys, part)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--signal", "luck"],
        ["--threshold", "2"],
        ["--threshold", "x"],
        ["--last", "a week"],
        ["--limit", "0"],
        ["--since", "yesterday"],
    ],
)
def test_a_wrong_command_line_exits_2(world: World, arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as end:
        world.replay(*arguments)
    assert end.value.code == 2


def test_unknown_prices_are_said_and_never_zero(
    empty: World, capsys: pytest.CaptureFixture[str]
) -> None:
    empty.log(100, usd=None)
    assert empty.replay("--json") == 0
    curve = json.loads(capsys.readouterr().out)["curves"][0]
    assert curve["teacher_alone"]["usd"] is None
    assert all(point["usd"] is None and point["saved"] is None for point in curve["points"])
    assert "No dollars: the price of the student or the teacher is not known." in curve["sentences"]


def test_a_live_certificate_is_the_one_in_force(
    empty: World, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whoever keeps account of live traffic writes a table `certificate`."""
    empty.log(100)
    with empty.store.engine.begin() as connection:
        connection.execute(text("DROP TABLE IF EXISTS certificate"))
        connection.execute(
            text(
                "CREATE TABLE certificate (task TEXT, bundle TEXT, threshold FLOAT, n INTEGER,"
                " audits INTEGER, labels INTEGER, alarm TEXT)"
            )
        )
        row = {"bundle": empty.live.id}
        connection.execute(
            text("INSERT INTO certificate VALUES ('triage', :bundle, 0.5, 100, 45, 10, NULL)"), row
        )
    assert empty.replay() == 0
    out = capsys.readouterr().out
    assert "Live certificate: threshold 0.5 (100 requests, 45 audits, 10 labels)." in out
    assert "At the certified threshold 0.5 " in out
    with empty.store.engine.begin() as connection:
        connection.execute(text("UPDATE certificate SET alarm = 'harm'"))
    assert empty.replay() == 0
    out = capsys.readouterr().out
    assert "Alarm (harm): the teacher answers" in out
    assert "No threshold is certified" in out


def test_rows_from_before_signals_were_kept_are_counted_and_said_to_matter(
    empty: World, capsys: pytest.CaptureFixture[str]
) -> None:
    empty.log(100)
    with empty.store.engine.begin() as connection:
        connection.execute(text("UPDATE exchange SET signals = NULL WHERE route = 'student'"))
    assert empty.replay("--signal", "margin") == 0
    out = capsys.readouterr().out
    assert "Left out: 40 rows, no signals kept." in out
    assert "what is left is not the traffic as it is" in out


# -- another bundle


def test_another_bundle_needs_its_drafts(empty: World, capsys: pytest.CaptureFixture[str]) -> None:
    empty.log(60)
    other = empty.bundle("other")
    assert empty.replay("--bundle", other.id) == 1
    one_line(capsys, f"have no draft of {other.id}", "the student server cannot be asked")


def test_drafts_that_are_remembered_are_not_asked_for(
    empty: World, capsys: pytest.CaptureFixture[str]
) -> None:
    """A recalibrated bundle has another name for the same weights."""
    empty.log(60)
    with empty.store.session() as session:
        stored = list(session.exec(select(Exchange)))
    path = empty.config.state / "answers" / f"{empty.live.adapter}.jsonl"
    answers_to(
        path,
        [(row.id, row.body["messages"]) for row in stored],
        lambda messages: [drafted("parcel", SURE) for _ in messages],
    )
    again = empty.bundle("again", recalibrated=empty.live.id)
    assert empty.replay("--bundle", again.id, "--json") == 0
    curve = json.loads(capsys.readouterr().out)["curves"][0]
    assert curve["live"] is False
    held_out = len(stored) - curve["skipped"]["on the training side of the split"]
    assert 0 < curve["requests"] == held_out < len(stored)
    wrong = 1 - curve["points"][-1]["disagreement"]["value"]
    assert 0.1 < wrong < 0.6  # it says parcel to everything


def test_a_student_that_runs_is_asked(
    router: Router, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def reply(body: Body) -> Reply:
        said = body["messages"][-1]["content"]
        label = next(name for name in LABELS if name in said)
        return Reply(text=label, logprob=SURE)

    with FakeOpenAI(reply, vllm=True) as student:
        world = World(tmp_path, router, student.url)
        world.log(60)
        other = world.bundle("other")
        for _ in range(2):
            assert world.replay("--bundle", other.id, "--signal", "seq", "--limit", "10") == 0
            assert "10 requests, the draft's loss known of 10" in capsys.readouterr().out
        # remembered from then on
        assert len(student.chats) == 10
        world.store.close()
