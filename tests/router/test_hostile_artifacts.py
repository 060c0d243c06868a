"""A saved router is read as what a stranger wrote: what is wrong with it is found while loading."""

import hashlib
import io
import json
import os
import pickle
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from router.artifact import ARRAYS, FORMAT, MANIFEST, load, save
from router.errors import BadArtifact, RouterError, VersionMismatch
from router.router import Router


@pytest.fixture
def folder(router: Router, tmp_path: Path) -> Path:
    save(router, tmp_path / "router")
    return tmp_path / "router"


def forged(folder: Path, content: bytes | None = None, **changes: Any) -> None:
    """Change a saved router as somebody would who knows how its checksums are made."""
    manifest = json.loads((folder / MANIFEST).read_text())
    for path, value in changes.items():
        *way, last = path.split("__")
        place = manifest
        for step in way:
            place = place[step]
        place[last] = value
    if content is not None:
        (folder / ARRAYS).write_bytes(content)
        manifest["files"][ARRAYS] = hashlib.sha256(content).hexdigest()
    del manifest["sha256"]
    content = json.dumps(manifest, sort_keys=True).encode()
    manifest["sha256"] = hashlib.sha256(content).hexdigest()
    (folder / MANIFEST).write_text(json.dumps(manifest))


def arrays_of(folder: Path) -> dict[str, Any]:
    with np.load(folder / ARRAYS) as file:
        return {name: file[name] for name in file.files}


def packed(arrays: dict[str, Any], *, compressed: bool = False) -> bytes:
    buffer = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(buffer, **arrays)
    return buffer.getvalue()


def refused(folder: Path, match: str | None = None) -> None:
    """Refused in one line, before a decision can hang on it."""
    with pytest.raises(BadArtifact, match=match) as caught:
        load(folder)
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value)


@pytest.mark.parametrize("bit", [0x01, 0x20, 0x80])
@pytest.mark.parametrize("name", [MANIFEST, ARRAYS])
def test_a_flipped_bit_anywhere_is_noticed(
    router: Router, folder: Path, name: str, bit: int
) -> None:
    path = folder / name
    content = path.read_bytes()
    places = {*range(0, len(content), len(content) // 50), *range(40), len(content) - 1}
    for at in sorted(places - {len(content)}):
        path.write_bytes(content[:at] + bytes([content[at] ^ bit]) + content[at + 1 :])
        try:
            again = load(folder)
        except RouterError:
            continue
        # White space between the manifest's words says nothing.
        assert name == MANIFEST and chr(content[at]).isspace(), at
        assert (again.threshold, again.report) == (router.threshold, router.report)


@pytest.mark.parametrize("name", [MANIFEST, ARRAYS])
def test_something_before_or_after_a_file_is_noticed(folder: Path, name: str) -> None:
    content = (folder / name).read_bytes()
    for other in (b"x" + content, content + b"x", content + content):
        (folder / name).write_bytes(other)
        with pytest.raises(RouterError, match=name):
            load(folder)


def test_the_forgery_of_these_tests_itself_loads(router: Router, folder: Path) -> None:
    forged(folder, packed(arrays_of(folder)))
    assert load(folder).threshold == router.threshold


def _changed(name: str, change: Callable[[Any], Any]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda arrays: {**arrays, name: change(arrays[name])}


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda arrays: {}, id="none"),
        pytest.param(lambda a: {k: v for k, v in a.items() if k != "idf"}, id="one missing"),
        pytest.param(lambda a: {**a, "more": np.zeros(3)}, id="one too many"),
        pytest.param(_changed("idf", lambda a: a[:-1]), id="too short"),
        pytest.param(_changed("axes", lambda a: a[:, :-1]), id="too narrow"),
        pytest.param(_changed("axes", lambda a: a.T), id="turned"),
        pytest.param(_changed("rows", lambda a: a.ravel()), id="flat"),
        pytest.param(_changed("biases", lambda a: a[:, None]), id="one dimension too many"),
        pytest.param(_changed("weights", lambda a: a[:, :-1]), id="a class less"),
        pytest.param(_changed("reference", lambda a: a[:, :0]), id="no views"),
        pytest.param(_changed("head_means", lambda a: np.ones(3)), id="half a head"),
        pytest.param(_changed("keys", lambda a: a[::-1]), id="not sorted"),
        pytest.param(_changed("keys", lambda a: np.zeros_like(a)), id="all the same"),
        pytest.param(_changed("keys", lambda a: a.astype(np.int64)), id="signed"),
        pytest.param(_changed("rows", lambda a: a.astype(np.int32)), id="integers"),
        pytest.param(_changed("rows", lambda a: a.astype(">f4")), id="the other byte order"),
        pytest.param(_changed("rows", lambda a: a.astype("S8")), id="text"),
        pytest.param(_changed("rows", lambda a: a.astype(complex)), id="complex"),
        pytest.param(_changed("idf", lambda a: a * np.nan), id="not a number"),
        pytest.param(_changed("reference", lambda a: a + np.inf), id="infinite"),
        pytest.param(_changed("rows", lambda a: np.zeros(2, "i4,f8")), id="records"),
    ],
)
def test_arrays_that_are_not_a_routers_are_refused_while_loading(
    folder: Path, change: Callable[[dict[str, Any]], dict[str, Any]]
) -> None:
    forged(folder, packed(change(arrays_of(folder))))
    refused(folder)


class Payload:
    """What a pickle would run."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("payload-was-run"),)


def test_a_pickle_is_never_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    arrays = arrays_of(folder)
    objects = np.empty(1, dtype=object)
    objects[0] = Payload()
    bare = pickle.dumps(Payload())
    for content in (packed({**arrays, "rows": objects}), bare, zipped({"rows.npy": bare})):
        forged(folder, content)
        refused(folder, ARRAYS)
    assert not (folder / "payload-was-run").exists()


def zipped(members: dict[str, bytes], kind: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", kind) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return buffer.getvalue()


def header(shape: str, kind: str = "<f4") -> bytes:
    said = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}"
    padded = said.ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(padded).to_bytes(2, "little") + padded.encode()


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(zipped({"rows.npy": header("(1 << 40,)")}), id="no literal"),
        pytest.param(zipped({"rows.npy": header("(1099511627776,)")}), id="claims 4 TiB"),
        pytest.param(zipped({"rows.npy": header("(-1,)") + bytes(4)}), id="a negative size"),
        pytest.param(zipped({"rows.npy": header("(2,)") + bytes(4)}), id="too few bytes"),
        pytest.param(zipped({"rows.npy": header("(1,)") + bytes(8)}), id="too many bytes"),
        pytest.param(zipped({"rows.npy": header("(0,)", "|O")}), id="objects, but none"),
        pytest.param(zipped({"rows.npy": b"\x93NUMPY\x03\x00"}), id="a later array format"),
        pytest.param(zipped({"rows.npy": b""}), id="an empty array file"),
        pytest.param(zipped({"../rows.npy": header("(0,)")}), id="a way out"),
        pytest.param(zipped({"/etc/passwd": b"x"}), id="an absolute path"),
        pytest.param(zipped({"rows": header("(0,)")}), id="no array file"),
        pytest.param(
            zipped({"rows.npy": bytes(50_000_000)}, zipfile.ZIP_DEFLATED), id="a zip bomb"
        ),
    ],
)
def test_a_hostile_archive_is_refused_without_being_unpacked(folder: Path, content: bytes) -> None:
    forged(folder, content)
    tracemalloc.start()
    try:
        refused(folder, ARRAYS)
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()


def test_compressed_and_doubled_arrays_are_refused(folder: Path) -> None:
    arrays = arrays_of(folder)
    forged(folder, packed(arrays, compressed=True))
    refused(folder, "compressed")
    buffer = io.BytesIO(packed(arrays))
    with zipfile.ZipFile(buffer, "a") as file, pytest.warns(UserWarning, match="Duplicate"):
        file.writestr("rows.npy", header("(0,)"))
    forged(folder, buffer.getvalue())
    refused(folder, "twice")


@pytest.mark.parametrize("name", [MANIFEST, ARRAYS])
def test_only_plain_files_are_read(folder: Path, tmp_path: Path, name: str) -> None:
    elsewhere = tmp_path / "elsewhere"
    (folder / name).rename(elsewhere)
    (folder / name).symlink_to(elsewhere)  # the very content, but not this folder's
    refused(folder, name)
    for make in (Path.mkdir, os.mkfifo, lambda path: path.symlink_to("/dev/zero")):
        (folder / name).rmdir() if (folder / name).is_dir() else (folder / name).unlink()
        make(folder / name)
        refused(folder, name)


@pytest.mark.parametrize(
    "changes",
    [
        {"threshold": float("nan")},
        {"threshold": -1.0},
        {"threshold": 1e300},
        {"threshold": 0.0},
        {"threshold": None},
        {"threshold": "0"},
        {"certificate": None},
        {"certificate__threshold": 0.0},
        {"certificate__max_disagreement": 0.01},
        {"certificate__upper_bound": float("nan")},
        {"certificate__confidence": 95},
        {"certificate__more": 1},
        {"certificate": []},
        {"ood__epsilon": float("nan")},
        {"ood__epsilon": -0.1},
        {"confidence__bias": float("inf")},
        {"ood": None},
        {"spec__kind": "poem"},
        {"spec__labels": None},
        {"spec": "label"},
        {"report": {}},
        {"files": {}},
        {"files": None},
    ],
    ids=json.dumps,
)
def test_a_manifest_that_makes_no_sense_is_refused_while_loading(
    folder: Path, changes: dict[str, Any]
) -> None:
    if "threshold" in changes and changes["threshold"] == 0.0:
        changes = {**changes, "certificate": None}
    if changes == {"files": {}} or changes == {"files": None}:
        forged(folder, None, **changes)
    else:
        forged(folder, packed(arrays_of(folder)), **changes)
    refused(folder, MANIFEST)


@pytest.mark.parametrize("number", [0, FORMAT - 1, FORMAT + 1, str(FORMAT), None, [FORMAT]])
def test_every_other_format_asks_to_calibrate_again(folder: Path, number: object) -> None:
    forged(folder, None, format=number)
    with pytest.raises(VersionMismatch, match="calibrate again"):
        load(folder)


def test_json_that_is_too_deep_is_refused(folder: Path) -> None:
    (folder / MANIFEST).write_text("[" * 200_000)
    refused(folder, MANIFEST)


def test_the_arrays_of_another_router_are_refused(
    folder: Path, tmp_path: Path, fit_small: Callable[..., Router], traffic: Any
) -> None:
    save(fit_small(traffic(9).judged(200)), tmp_path / "other")
    (folder / ARRAYS).write_bytes((tmp_path / "other" / ARRAYS).read_bytes())
    refused(folder, "checksum")
