"""A saved router comes back exactly, or not at all."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from router.artifact import ARRAYS, MANIFEST, load, save
from router.decision import Answer
from router.embedder import STATIC, Outside
from router.errors import BadArtifact, NoEmbedder, RouterError, VersionMismatch, WrongEmbedder
from router.output import OutputSpec
from router.router import Judged, Labelled, Router, fit_router


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


class Meaning:
    """An embedder that was there when the router was fitted."""

    name, size, serial = "made up", 2, False

    def __call__(self, text: str, /) -> Any:
        return np.array([len(text) % 7, 1.0], np.float32)

    def many(self, texts: Sequence[str], /) -> Any:
        return np.stack([self(text) for text in texts])


@pytest.fixture(scope="module")
def with_meaning(tmp_path_factory: pytest.TempPathFactory) -> tuple[Router, Path]:
    rows = [Labelled(prompt=f"question number {at}", answer="ab"[at % 2]) for at in range(80)]
    router = fit_router(
        spec=OutputSpec(kind="label"),
        train=rows,
        calibration=[
            Judged(prompt=row.prompt, student=Answer(text=row.answer), teacher=row.answer)
            for row in rows[:20]
        ],
        max_disagreement=0.5,
        confidence=0.9,
        ood_epsilon=0.1,
        embedder=Meaning(),
    )
    folder = tmp_path_factory.mktemp("embedder")
    save(router, folder)
    return router, folder


def test_an_embedder_is_not_saved_and_its_vectors_are_handed_in(
    with_meaning: tuple[Router, Path],
) -> None:
    router, folder = with_meaning
    alone, given = load(folder), load(folder, Meaning())
    for prompt in ("question number 5", "something else"):
        vector = Meaning()(prompt)
        assert alone.before(prompt, vector=vector) == given.before(prompt) == router.before(prompt)
    with pytest.raises(NoEmbedder):
        alone.before("question number 5")


def test_the_vectors_of_another_embedder_are_refused(
    router: Router, with_meaning: tuple[Router, Path], tmp_path: Path
) -> None:
    folder = with_meaning[1]
    for other in (Outside(name=STATIC), Outside(name="another"), Outside(name="made up", size=3)):
        with pytest.raises(WrongEmbedder, match=r"manifest\.json"):
            load(folder, other)
    save(router, tmp_path)
    assert load(tmp_path, Outside(name=STATIC)).ood.space.name == STATIC
    with pytest.raises(WrongEmbedder, match="'static'"):
        load(tmp_path, Meaning())
