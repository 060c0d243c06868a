"""`retort calibrate` says what live traffic has certified, and that the stored state is right."""

import io
import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from ledger_rows import audit_of, request_line
from small_bundle import make_router, save_parts

from gateway.certificates.alarm import hear
from gateway.certificates.fold import Subject, ensure, fold
from gateway.certificates.state import terms_of
from gateway.config import Config, parse
from gateway.prompt import prompt_hash
from gateway.storage import bundles
from gateway.storage.store import Store
from gateway.storage.tables import Certificate
from retrain.cli import main
from router.decision import Reason
from router.router import Router, Start

CONFIG = {
    "tasks": [
        {
            "name": "triage",
            "claim": {"model": ["triage"]},
            "output": {"kind": "label", "labels": ["parcel", "refund"], "max_tokens": 8},
            "audit": {"rate": 0.5},
        }
    ],
    "certificate": {"settle_s": 10.0},
}


@pytest.fixture(scope="module")
def router() -> Router:
    return make_router()


@pytest.fixture
def config(tmp_path: Path) -> Config:
    path = tmp_path / "retort.yaml"
    path.write_text(yaml.safe_dump(CONFIG | {"state_dir": str(tmp_path / "state")}))
    return parse(path.read_text())


def run(config: Config, *arguments: str) -> int:
    path = config.state.parent / "retort.yaml"
    return main(["calibrate", *arguments, "--config", str(path)])


def promoted(config: Config, store: Store, router: Router) -> Subject:
    task = config.task()
    adapter_dir, router_dir = save_parts(config.state / "trained", router)
    files = bundles.write_bundle(
        config.state / "bundles",
        task=task.name,
        adapter_dir=adapter_dir,
        router_dir=router_dir,
        base_model="student-base",
        prompt_hash=prompt_hash(task.prompt),
        dataset_id="d1",
        detail={},
    )
    bundles.register(store, files, None, None, {})
    bundles.promote(store, files.id)
    return Subject(
        terms=terms_of(config, task),
        bundle=files.id,
        offline=router.certificate,
        start=router.start,
    )


def test_what_live_traffic_certified_is_printed_and_checked_to_the_bit(
    config: Config, router: Router, capsys: pytest.CaptureFixture[str]
) -> None:
    with Store.open(config.database_url, config.state / "spool") as store:
        subject = promoted(config, store, router)
        assert run(config) == 1
        assert "no live certificate yet" in capsys.readouterr().err
        ensure(store, subject)
        now = time.time() - 1000
        for number in range(120):
            line = request_line(
                now + number,
                number,
                Reason.TRUSTED,
                bundle=subject.bundle,
                score=0.99,
                sampled=number % 2 == 0,
                p_ood=0.5,
            )
            store.insert([line, *([audit_of(line, float(number == 4))] if line.sampled else [])])
        store.insert([request_line(now + 200, 200, Reason.FORCED, bundle=subject.bundle)])
        hear(store, subject)
        fold(store, subject)
        assert run(config, "--check") == 0
        said = capsys.readouterr().out
        assert "60 audits, 200 free labels" in said
        assert "320 requests, 200 of them calibration rows" in said
        assert "120 counted, 1 outside" in said
        assert "agreement chat/completions: 98.3%" in said
        assert "is what the ledger says" in said
        assert run(config, "--json") == 0
        found = json.loads(capsys.readouterr().out)
        with store.session() as session:
            known = session.get_one(Certificate, ("triage", subject.bundle))
        assert found["threshold"] == known.threshold and found["agrees"]
        assert found["next_threshold"] < found["online_threshold"]
        # a state that somebody changed is found
        with store.transaction() as session:
            row = session.get_one(Certificate, ("triage", subject.bundle))
            with np.load(io.BytesIO(row.state)) as file:
                arrays = {name: file[name] for name in file.files}
            arrays["logs"][3, 2] += 2.0**-40
            buffer = io.BytesIO()
            np.savez(buffer, **arrays)
            row.state = buffer.getvalue()
        assert run(config, "--check") == 1
        assert "is not what the ledger says" in capsys.readouterr().err


def test_too_little_evidence_is_said_and_fails(
    config: Config, router: Router, capsys: pytest.CaptureFixture[str]
) -> None:
    unproven = replace(router, certificate=None, threshold=1.01, start=Start())
    with Store.open(config.database_url, config.state / "spool") as store:
        ensure(store, promoted(config, store, unproven))
        assert run(config) == 1
    said = capsys.readouterr().out
    assert "no threshold is certified" in said and "0 requests" in said
