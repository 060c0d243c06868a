"""A saved router comes back exactly, or not at all."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from router.artifact import ARRAYS, MANIFEST, load, save
from router.errors import BadArtifact, RouterError, VersionMismatch
from router.router import Router


@pytest.fixture
def folder(router: Router, tmp_path: Path) -> Path:
    save(router, tmp_path / "router")
    return tmp_path / "router"


def test_a_router_survives_saving_to_the_last_bit(
    router: Router, folder: Path, traffic: Any
) -> None:
    again = load(folder)
    assert (again.certificate, again.threshold) == (router.certificate, router.threshold)
    assert (again.spec, again.report) == (router.spec, router.report)
    assert len(again.start.scores) == len(again.start.losses) > 0
    assert again.start.scores.tolist() == router.start.scores.tolist()
    assert again.start.losses.tolist() == router.start.losses.tolist()
    assert again.start.share == router.start.share
    for row in traffic(5).judged(30):
        assert again.before(row.prompt) == router.before(row.prompt)
        assert again.after(row.prompt, row.student) == router.after(row.prompt, row.student)


def test_the_same_router_is_the_same_bytes(router: Router, folder: Path, tmp_path: Path) -> None:
    save(load(folder), tmp_path / "again")
    for name in (MANIFEST, ARRAYS):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()


def test_a_folder_holds_the_manifest_and_the_arrays_alone(folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == [ARRAYS, MANIFEST]


@pytest.mark.parametrize("name", [MANIFEST, ARRAYS])
def test_a_missing_or_damaged_file_is_named_in_one_line(folder: Path, name: str) -> None:
    path = folder / name
    content = path.read_bytes()
    for damaged in (content[:-3], content[:-30] + b"!" + content[-29:], b"", b"\xff\xfe"):
        path.write_bytes(damaged)
        with pytest.raises(BadArtifact, match=name) as caught:
            load(folder)
        assert "\n" not in str(caught.value)
    path.unlink()
    with pytest.raises(BadArtifact, match=f"{name}.*cannot be read"):
        load(folder)


def test_a_changed_threshold_is_noticed(folder: Path) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["threshold"] = 0.0
    (folder / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(BadArtifact, match="checksum"):
        load(folder)


def test_another_format_asks_to_calibrate_again(folder: Path) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["format"] = 99
    (folder / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(VersionMismatch, match="calibrate again"):
        load(folder)


@pytest.mark.parametrize("content", ["[]", "{}", '{"format": 1}', "null"])
def test_a_manifest_of_something_else_is_refused(folder: Path, content: str) -> None:
    (folder / MANIFEST).write_text(content)
    with pytest.raises(RouterError, match=MANIFEST):
        load(folder)


def test_arrays_that_would_need_pickle_are_refused(folder: Path) -> None:
    np.savez(folder / ARRAYS, allow_pickle=True, keys=np.array([object()], dtype=object))
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["files"][ARRAYS] = hashlib.sha256((folder / ARRAYS).read_bytes()).hexdigest()
    del manifest["sha256"]
    content = json.dumps(manifest, sort_keys=True).encode()
    manifest["sha256"] = hashlib.sha256(content).hexdigest()
    (folder / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(BadArtifact, match=ARRAYS):
        load(folder)


def test_loading_and_deciding_needs_neither_scipy_nor_sklearn(folder: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from router.artifact import load;"
        "from router.decision import Answer;"
        f"r = load(Path({str(folder)!r})); r.before('hello'); r.after('hello', Answer(text='x'));"
        "print([m for m in ('scipy', 'sklearn') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
