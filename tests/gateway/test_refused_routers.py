"""A router that cannot be trusted does not go live: the teacher answers, and /readyz says why."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from running_gateway import wait_until
from small_bundle import contract_hash, save_parts
from triage import BODY, Start, live_bundle

from gateway.storage import bundles
from router.artifact import ARRAYS, FORMAT, MANIFEST
from router.router import Router


def rewritten(folder: Path, **changes: object) -> None:
    """The manifest with its checksum, as another version or a careless hand would write it."""
    manifest = {**json.loads((folder / MANIFEST).read_text()), **changes}
    manifest.pop("sha256", None)
    content = json.dumps(manifest, sort_keys=True).encode()
    manifest["sha256"] = hashlib.sha256(content).hexdigest()
    (folder / MANIFEST).write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda folder: rewritten(folder, format=FORMAT - 1), "calibrate again"),
        (lambda folder: rewritten(folder, threshold=float("nan")), "not a router"),
        (lambda folder: (folder / ARRAYS).write_bytes(b"PK of something else"), "checksum"),
    ],
    ids=["stale", "senseless", "foreign"],
)
def test_a_router_that_is_refused_leaves_everything_to_the_teacher(
    start: Start,
    small_router: Router,
    tmp_path: Path,
    spoil: Callable[[Path], object],
    said: str,
) -> None:
    gateway = start()
    task = gateway.config.task()
    adapter_dir, router_dir = save_parts(tmp_path / "trained", small_router)
    spoil(router_dir)  # before the bundle is made, so that its own checksums are right
    files = bundles.write_bundle(
        gateway.config.state / "bundles",
        task=task.name,
        adapter_dir=adapter_dir,
        router_dir=router_dir,
        base_model="student-base",
        prompt_hash=contract_hash(task),
        dataset_id="d1",
        detail={},
    )
    bundles.register(gateway.store, files, None, None, {})
    bundles.promote(gateway.store, files.id)
    wait_until(lambda: "task triage" in gateway.json("/readyz")[1]["problems"])
    assert said in gateway.json("/readyz")[1]["problems"]["task triage"]
    assert live_bundle(gateway) is None
    status, headers, _ = gateway.send("POST", "/v1/chat/completions", BODY)
    assert (status, headers["x-retort-reason"]) == (200, "no_bundle")
