"""Bundles: folders that never change once written, and the pointer that says which one serves.

A folder ``ROOT/TASK/ID`` holds ``adapter/``, ``router/`` and ``bundle.json`` with the SHA-256 of
every file. The id ends in the hash of all that, so one id is one content for ever.
"""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
from sqlalchemy import text
from sqlmodel import Session, col, select

from gateway.errors import BundleError
from gateway.storage.store import Store
from gateway.storage.tables import (
    Bundle,
    BundleEvent,
    BundleState,
    DatasetRow,
    Exchange,
    State,
    utcnow,
)

MANIFEST = "bundle.json"
FORMAT = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleFiles:
    """A bundle on disk, whole."""

    id: str
    task: str
    adapter: str
    """Name under which the student server knows the adapter: the bundle's id."""
    base_model: str
    prompt_hash: str
    dataset_id: str
    created_at: str
    folder: Path

    @property
    def adapter_dir(self) -> Path:
        return self.folder / "adapter"

    @property
    def router_dir(self) -> Path:
        return self.folder / "router"


def write_bundle(
    root: Path,
    *,
    task: str,
    adapter_dir: Path,
    router_dir: Path,
    base_model: str,
    prompt_hash: str,
    dataset_id: str,
    detail: Mapping[str, Any],
) -> BundleFiles:
    """Copy adapter and router into a new bundle; it appears whole or not at all.

    Raises BundleError where it cannot be written.
    """
    parent = root.expanduser().resolve() / task
    try:
        parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=parent, prefix=".new-") as name:
            draft = Path(name) / "bundle"
            shutil.copytree(adapter_dir, draft / "adapter")
            shutil.copytree(router_dir, draft / "router")
            manifest: dict[str, Any] = {
                "format": FORMAT,
                "task": task,
                "base_model": base_model,
                "prompt_hash": prompt_hash,
                "dataset_id": dataset_id,
                "files": _checksums(draft),
            }
            now = utcnow()
            name = f"{task}-{now:%Y%m%d}-{_content_hash(manifest)}"
            folder = parent / name
            if folder.exists():
                return read_bundle(folder)
            manifest |= {"id": name, "adapter": name, "created_at": now.isoformat()}
            manifest["detail"] = dict(detail)
            text_ = orjson.dumps(manifest, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS)
            (draft / MANIFEST).write_bytes(text_ + b"\n")
            _sync(draft)
            draft.rename(folder)
            _sync_one(parent)
    except (OSError, shutil.Error) as error:
        raise BundleError(f"{parent}: the bundle cannot be written ({error})") from error
    return read_bundle(folder)


def read_bundle(folder: Path | str) -> BundleFiles:
    """The bundle, every byte of it checked. Raises BundleError naming the file that is wrong."""
    folder = Path(folder)
    try:
        manifest = orjson.loads((folder / MANIFEST).read_bytes())
    except OSError as error:
        raise BundleError(f"{folder / MANIFEST}: {error.strerror}") from None
    except orjson.JSONDecodeError:
        raise BundleError(f"{folder / MANIFEST}: not valid JSON") from None
    files = _check_manifest(folder, manifest)
    try:
        found = _checksums(folder)
    except OSError as error:
        raise BundleError(f"{error.filename or folder}: {error.strerror}") from None
    found.pop(MANIFEST, None)
    for name in sorted(files.keys() | found.keys()):
        if name not in found:
            raise BundleError(f"{folder / name}: missing from the bundle")
        if name not in files:
            raise BundleError(f"{folder / name}: not part of the bundle")
        if found[name] != files[name]:
            raise BundleError(f"{folder / name}: checksum does not match; the file is corrupt")
    names = ("id", "task", "adapter", "base_model", "prompt_hash", "dataset_id", "created_at")
    return BundleFiles(**{name: manifest[name] for name in names}, folder=folder)


def _check_manifest(folder: Path, manifest: Any) -> dict[str, str]:
    path = folder / MANIFEST
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise BundleError(f"{path}: not a bundle of format {FORMAT}")
    names = ("id", "task", "adapter", "base_model", "prompt_hash", "dataset_id", "created_at")
    for name in names:
        if not isinstance(manifest.get(name), str):
            raise BundleError(f"{path}: {name} is missing")
    files = manifest.get("files")
    if not isinstance(files, dict) or not str(manifest["id"]).endswith(_content_hash(manifest)):
        raise BundleError(f"{path}: does not match its own id; the file is corrupt")
    return files


def _content_hash(manifest: Mapping[str, Any]) -> str:
    names = ("format", "task", "base_model", "prompt_hash", "dataset_id", "files")
    content = {name: manifest[name] for name in names}
    return hashlib.sha256(orjson.dumps(content, option=orjson.OPT_SORT_KEYS)).hexdigest()[:8]


def _checksums(folder: Path) -> dict[str, str]:
    sums = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            sums[path.relative_to(folder).as_posix()] = digest
    return sums


def _sync(folder: Path) -> None:
    for path in folder.rglob("*"):
        _sync_one(path)
    _sync_one(folder)


def _sync_one(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def register(
    store: Store,
    files: BundleFiles,
    parent: str | None = None,
    run_id: str | None = None,
    summary: Mapping[str, Any] | None = None,
) -> Bundle:
    """Make a folder known as a candidate; again is the same as once."""
    with store.transaction() as session:
        bundle = session.get(Bundle, files.id)
        if bundle is None:
            bundle = Bundle(
                id=files.id,
                task=files.task,
                at=utcnow(),
                path=str(files.folder),
                adapter=files.adapter,
                parent=parent,
                dataset_id=files.dataset_id,
                run_id=run_id,
                tainted=_holds_erased(session, files.dataset_id),
                summary=dict(summary or {}),
            )
            session.add(bundle)
            _write_event(session, bundle, "registered", "")
    return bundle


def _holds_erased(session: Session, dataset: str | None) -> bool:
    """Rows may be erased while a student is trained on them."""
    erased = select(DatasetRow.exchange_id).join(
        Exchange, col(Exchange.id) == col(DatasetRow.exchange_id)
    )
    of_it = erased.where(DatasetRow.dataset_id == dataset, Exchange.state == State.ERASED)
    return session.exec(of_it.limit(1)).first() is not None


def champion(store: Store, task: str) -> Bundle | None:
    """The bundle that serves ``task`` now."""
    with store.session() as session:
        return _champion(session, task)


def history(store: Store, task: str) -> list[Bundle]:
    """Every bundle of the task, newest first."""
    with store.session() as session:
        statement = select(Bundle).where(Bundle.task == task)
        return list(session.exec(statement.order_by(col(Bundle.at).desc(), col(Bundle.id).desc())))


def events(store: Store, task: str) -> list[BundleEvent]:
    """What happened to the task's bundles, oldest first."""
    with store.session() as session:
        return _events(session, task)


def promote(store: Store, bundle_id: str, detail: str = "") -> Bundle:
    """Let this bundle serve its task, and retire the one that did. Raises BundleError."""
    with store.transaction() as session:
        bundle = _known(session, bundle_id)
        _lock(session, bundle.task)
        session.refresh(bundle)
        if bundle.state == BundleState.REJECTED:
            raise BundleError(f"{bundle_id} was rejected and cannot be promoted")
        if bundle.state == BundleState.CHAMPION:
            return bundle
        _replace(session, _champion(session, bundle.task), bundle, "retired", f"for {bundle_id}")
        _write_event(session, bundle, "promoted", detail)
    return bundle


def rollback(store: Store, task: str, detail: str = "") -> Bundle | None:
    """Let the champion before this one serve again, and return it; None, where there was none:
    the teacher then answers everything. Raises BundleError where no champion serves."""
    with store.transaction() as session:
        _lock(session, task)
        current = _champion(session, task)
        if current is None:
            raise BundleError(f"{task} has no champion to roll back from")
        previous = _previous(session, task)
        to = "the teacher" if previous is None else previous.id
        why = f"to {to}" + (f": {detail}" if detail else "")
        _replace(session, current, previous, "rolled_back", why)
    return previous


def reject(store: Store, bundle_id: str, detail: str) -> Bundle:
    """Bar a bundle from ever serving (again). Raises BundleError for the champion."""
    with store.transaction() as session:
        bundle = _known(session, bundle_id)
        _lock(session, bundle.task)
        session.refresh(bundle)
        if bundle.state == BundleState.CHAMPION:
            raise BundleError(f"{bundle_id} serves {bundle.task}: roll back first")
        if bundle.state != BundleState.REJECTED:
            bundle.state = BundleState.REJECTED
            _write_event(session, bundle, "rejected", detail)
    return bundle


def _replace(
    session: Session, current: Bundle | None, new: Bundle | None, event: str, detail: str
) -> None:
    if current is not None:
        current.state = BundleState.RETIRED
        _write_event(session, current, event, detail)
        # before the other: the database allows one champion per task
        session.flush()
    if new is not None:
        new.state = BundleState.CHAMPION
        session.flush()


def _previous(session: Session, task: str) -> Bundle | None:
    """Promotions form a stack; a rollback takes the top one off."""
    stack: list[str] = []
    for event in _events(session, task):
        if event.event == "promoted":
            stack.append(event.bundle_id)
        elif event.event == "rolled_back":
            stack.pop()
    for bundle_id in reversed(stack[:-1]):
        bundle = _known(session, bundle_id)
        if bundle.state == BundleState.RETIRED:
            return bundle
    return None


def _lock(session: Session, task: str) -> None:
    """One promotion of a task at a time. SQLite has locked the whole database already."""
    if session.connection().dialect.name == "postgresql":
        key = int.from_bytes(hashlib.sha256(task.encode()).digest()[:8], "big", signed=True)
        session.connection().execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": key})


def _champion(session: Session, task: str) -> Bundle | None:
    statement = select(Bundle).where(Bundle.task == task, Bundle.state == BundleState.CHAMPION)
    return session.exec(statement).one_or_none()


def _events(session: Session, task: str) -> list[BundleEvent]:
    statement = select(BundleEvent).where(BundleEvent.task == task)
    return list(session.exec(statement.order_by(col(BundleEvent.id))))


def _known(session: Session, bundle_id: str) -> Bundle:
    bundle = session.get(Bundle, bundle_id)
    if bundle is None:
        raise BundleError(f"no bundle {bundle_id!r}")
    return bundle


def _write_event(session: Session, bundle: Bundle, event: str, detail: str) -> None:
    session.add(
        BundleEvent(bundle_id=bundle.id, task=bundle.task, at=utcnow(), event=event, detail=detail)
    )
