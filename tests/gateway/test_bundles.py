"""Bundles on disk and the pointer to the one that serves."""

import hashlib
import json
import threading
from pathlib import Path

import pytest

from gateway.errors import BundleError
from gateway.storage import bundles
from gateway.storage.bundles import (
    BundleFiles,
    champion,
    promote,
    read_bundle,
    register,
    reject,
    rollback,
)
from gateway.storage.store import Store
from gateway.storage.tables import BundleState

TASK = "triage"


def write(folder: Path, weights: bytes = b"weights", root: Path | None = None) -> BundleFiles:
    parts = folder / f"parts-{hashlib.sha256(weights).hexdigest()[:8]}"
    (parts / "adapter").mkdir(parents=True, exist_ok=True)
    (parts / "router" / "heads").mkdir(parents=True, exist_ok=True)
    (parts / "adapter" / "adapter_model.safetensors").write_bytes(weights)
    (parts / "adapter" / "adapter_config.json").write_text("{}")
    (parts / "router" / "heads" / "score.npz").write_bytes(b"numbers")
    return bundles.write_bundle(
        root or folder / "bundles",
        task=TASK,
        adapter_dir=parts / "adapter",
        router_dir=parts / "router",
        base_model="smollm2",
        prompt_hash="abc",
        dataset_id="d1",
        detail={"steps": 3},
    )


def known(store: Store, folder: Path, *names: str) -> list[str]:
    """Register one bundle per name; their ids."""
    return [register(store, write(folder, name.encode())).id for name in names]


def events(store: Store) -> list[tuple[str, str]]:
    return [(event.event, event.bundle_id) for event in bundles.events(store, TASK)]


def test_a_bundle_is_read_back_as_written(tmp_path: Path) -> None:
    files = write(tmp_path)
    assert files == read_bundle(files.folder)
    assert files.folder == tmp_path / "bundles" / TASK / files.id
    assert files.adapter == files.id
    assert (files.adapter_dir / "adapter_model.safetensors").read_bytes() == b"weights"
    assert (files.router_dir / "heads" / "score.npz").exists()
    assert json.loads((files.folder / "bundle.json").read_text())["detail"] == {"steps": 3}


def test_the_same_content_is_the_same_bundle(tmp_path: Path) -> None:
    assert write(tmp_path) == write(tmp_path)
    assert write(tmp_path).id != write(tmp_path, b"other weights").id
    assert len(list((tmp_path / "bundles" / TASK).iterdir())) == 2


@pytest.mark.parametrize(
    "name",
    ["adapter/adapter_model.safetensors", "router/heads/score.npz", "adapter/adapter_config.json"],
)
def test_a_changed_file_is_named(tmp_path: Path, name: str) -> None:
    folder = write(tmp_path).folder
    data = bytearray((folder / name).read_bytes())
    data[-1] ^= 1
    (folder / name).write_bytes(data)
    with pytest.raises(BundleError, match=f"{name}.*corrupt"):
        read_bundle(folder)


def test_missing_and_foreign_files_are_named(tmp_path: Path) -> None:
    folder = write(tmp_path).folder
    (folder / "router" / "extra.pkl").write_bytes(b"?")
    with pytest.raises(BundleError, match=r"router/extra\.pkl: not part"):
        read_bundle(folder)
    (folder / "router" / "extra.pkl").unlink()
    (folder / "router" / "heads" / "score.npz").unlink()
    with pytest.raises(BundleError, match=r"score.npz: missing"):
        read_bundle(folder)


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: "[]",
        lambda text: text.replace('"format": 1', '"format": 9'),
        lambda text: text.replace("smollm2", "smollm3"),
        lambda text: text.replace('"dataset_id"', '"dataset"'),
        lambda text: text.replace('"files"', '"filez"'),
        lambda text: text[: len(text) // 2],
    ],
)
def test_a_damaged_manifest_is_named(tmp_path: Path, damage: object) -> None:
    assert callable(damage)
    path = write(tmp_path).folder / "bundle.json"
    path.write_text(damage(path.read_text()))
    with pytest.raises(BundleError, match=r"bundle\.json") as caught:
        read_bundle(path.parent)
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="nowhere"):
        read_bundle(tmp_path / "nowhere")


def test_a_bundle_that_cannot_be_written_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="cannot be written"):
        bundles.write_bundle(
            tmp_path / "bundles",
            task=TASK,
            adapter_dir=tmp_path / "nowhere",
            router_dir=tmp_path,
            base_model="m",
            prompt_hash="p",
            dataset_id="d",
            detail={},
        )
    assert list((tmp_path / "bundles" / TASK).iterdir()) == []


def test_registering_twice_is_registering_once(store: Store, tmp_path: Path) -> None:
    files = write(tmp_path)
    first = register(store, files, parent="before", run_id="run-1", summary={"n": 7})
    again = register(store, files)
    assert first.state == again.state == BundleState.CANDIDATE
    assert again.summary == {"n": 7}
    assert read_bundle(again.path) == files
    assert events(store) == [("registered", files.id)]


def test_a_promotion_retires_the_champion_before(store: Store, tmp_path: Path) -> None:
    a, b = known(store, tmp_path, "a", "b")
    assert champion(store, TASK) is None
    promote(store, a, "first")
    promote(store, b)
    promote(store, b)
    current = champion(store, TASK)
    assert current is not None and current.id == b
    states = {bundle.id: bundle.state for bundle in bundles.history(store, TASK)}
    assert states == {a: "retired", b: "champion"}
    assert events(store)[2:] == [("promoted", a), ("retired", a), ("promoted", b)]


def rolled_back_to(store: Store, detail: str = "") -> str | None:
    bundle = rollback(store, TASK, detail)
    return None if bundle is None else bundle.id


def test_rolling_back_goes_down_the_history_and_ends_at_the_teacher(
    store: Store, tmp_path: Path
) -> None:
    with pytest.raises(BundleError, match="no champion to roll back from"):
        rollback(store, TASK)
    a, b, c, d = known(store, tmp_path, "a", "b", "c", "d")
    for name in (a, b, c):
        promote(store, name)
    assert rolled_back_to(store, "alarm") == b
    promote(store, d)
    assert rolled_back_to(store) == b
    assert rolled_back_to(store) == a
    assert rolled_back_to(store) is None
    assert champion(store, TASK) is None
    with pytest.raises(BundleError, match="no champion to roll back from"):
        rollback(store, TASK)
    promote(store, c)
    assert rolled_back_to(store) is None


def test_a_rollback_leaves_out_what_was_rejected_since(store: Store, tmp_path: Path) -> None:
    a, b, c = known(store, tmp_path, "a", "b", "c")
    for name in (a, b, c):
        promote(store, name)
    reject(store, b, "leaks")
    assert rolled_back_to(store) == a


def test_rejected_bundles_never_serve(store: Store, tmp_path: Path) -> None:
    (a,) = known(store, tmp_path, "a")
    reject(store, a, "worse")
    with pytest.raises(BundleError, match="rejected"):
        promote(store, a)
    (b,) = known(store, tmp_path, "b")
    promote(store, b)
    with pytest.raises(BundleError, match="roll back first"):
        reject(store, b, "too late")
    with pytest.raises(BundleError, match="no bundle 'nobody'"):
        promote(store, "nobody")


def test_promotions_at_once_leave_one_champion(store: Store, tmp_path: Path) -> None:
    names = known(store, tmp_path, *"abcdef")
    threads = [threading.Thread(target=promote, args=(store, name)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    states = [bundle.state for bundle in bundles.history(store, TASK)]
    assert sorted(states) == ["champion"] + ["retired"] * 5
