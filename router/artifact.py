"""A router as a folder: manifest.json (what it is, thresholds, checksums) and arrays.npz.

Nothing in it is ever executed: JSON and plain arrays, no pickle. The manifest carries the SHA-256
of the arrays and of itself, so a flipped digit in a threshold is found as surely as one in a
matrix.
"""

import hashlib
import io
import json
import os
import stat
from collections.abc import Mapping
from dataclasses import asdict, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from router.arrays import unpack
from router.difficulty import Difficulty
from router.embedder import STATIC, Embedder, Outside, Space
from router.embedding import Embedding
from router.errors import BadArtifact, VersionMismatch, WrongEmbedder
from router.ood import Ood
from router.output import OutputSpec
from router.plausible import check_arrays, check_router
from router.prefix import Prefix
from router.report import Ranking, Report
from router.router import Router, Start
from router.score_arrays import read_contest, read_score, score_arrays, score_numbers
from router.threshold import NEVER, Certificate

#: Raised whenever old folders stop meaning the same: also when n-gram hashing or signals change.
FORMAT = 2
#: The arrays of a difficulty estimate, beside its n-grams' axis.
HARD = ("rows", "losses", "centres", "priors", "line", "surface", "means", "scales", "units", "mix")
MANIFEST = "manifest.json"
ARRAYS = "arrays.npz"
#: A file longer than this is none of ours.
LARGEST = 1 << 30


def save(router: Router, folder: Path) -> None:
    """Write the folder (made if missing). The manifest comes last: without it there is no router,
    and with it the router is whole. The same router gives the same bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **_arrays(router))
    content = buffer.getvalue()
    (folder / ARRAYS).write_bytes(content)
    manifest = {
        "format": FORMAT,
        "package": _package_version(),
        "files": {ARRAYS: hashlib.sha256(content).hexdigest()},
        "spec": {
            "kind": router.spec.kind,
            "labels": router.spec.labels,
            "fields": {name: tuple(values) for name, values in router.spec.fields.items()},
            "max_tokens": router.spec.max_tokens,
            "fences": router.spec.fences,
            "loss": router.spec.loss,
        },
        "ood": {
            "epsilon": router.ood_epsilon,
            "unseen": router.ood.space.words.unseen,
            "uses": router.ood.uses,
        },
        "embedder": _identity(router.ood.space),
        "hopeless": router.hopeless,
        "confidence": score_numbers(router.confidence),
        "release": {"window": router.window, "prefix": _prefix_numbers(router.prefix)},
        "threshold": router.threshold,
        "start": {"share": router.start.share},
        "certificate": None if router.certificate is None else asdict(router.certificate),
        "report": asdict(router.report),
    }
    manifest["sha256"] = _digest(manifest)
    partial = folder / (MANIFEST + ".part")
    partial.write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    partial.replace(folder / MANIFEST)


def load(folder: Path, embedder: Embedder | None = None) -> Router:
    """The router saved in ``folder``. ``embedder`` is the one whose vectors it will be given, and
    is asked for those it is not given; only an `Outside` one named STATIC stands for none. Without
    it any router loads, but one with an embedder then needs each prompt's vector. Raises
    BadArtifact, VersionMismatch or WrongEmbedder naming the file."""
    manifest = _manifest(folder / MANIFEST)
    try:
        wanted = manifest["files"][ARRAYS]
    except (KeyError, TypeError):
        raise BadArtifact(f"{folder / MANIFEST}: does not list {ARRAYS}") from None
    arrays = _read_arrays(folder / ARRAYS, wanted)
    try:
        check_arrays(arrays)
        meaning = _meaning(manifest["embedder"], embedder, folder / MANIFEST)
        router = _router(manifest, arrays, meaning)
        check_router(router)
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise BadArtifact(f"{folder / MANIFEST}: not a router ({error!r})") from None
    if more := sorted(arrays.keys() - _arrays(router).keys()):
        raise BadArtifact(f"{folder / ARRAYS}: {', '.join(more)}: no part of a router")
    return router


def _manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads(_read(path))
    except (ValueError, RecursionError):
        raise BadArtifact(f"{path}: not valid JSON") from None
    if not isinstance(manifest, dict):
        raise BadArtifact(f"{path}: not a JSON object")
    if manifest.get("format") != FORMAT:
        raise VersionMismatch(
            f"{path}: format {manifest.get('format')!r}, this version reads {FORMAT};"
            " calibrate again"
        )
    if manifest.pop("sha256", None) != _digest(manifest):
        raise BadArtifact(f"{path}: was changed after it was written (checksum differs)")
    return manifest


def _read(path: Path) -> bytes:
    """A plain file's content. Links are not followed: what they lead to is not this folder's, and
    could be changed without a trace. Nor does a pipe make the caller wait."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(handle, "rb") as file:
            about = os.fstat(handle)
            if not stat.S_ISREG(about.st_mode) or about.st_size > LARGEST:
                raise BadArtifact(f"{path}: cannot be read (no file of a router)")
            return file.read(about.st_size)
    except OSError as error:
        raise BadArtifact(f"{path}: cannot be read ({error.strerror})") from None


def _read_arrays(path: Path, wanted: str) -> Mapping[str, NDArray[Any]]:
    content = _read(path)
    if hashlib.sha256(content).hexdigest() != wanted:
        raise BadArtifact(f"{path}: checksum differs from the manifest's")
    try:
        return unpack(content)
    except ValueError as error:
        raise BadArtifact(f"{path}: not readable as arrays ({error})") from None


def _identity(space: Space) -> dict[str, Any]:
    if space.meaning is None:
        return {"name": STATIC, "size": 0}
    return {"name": space.name, "size": space.meaning.size}


def _meaning(known: Mapping[str, Any], embedder: Embedder | None, path: Path) -> Embedder | None:
    """What stands beside the n-grams: the embedder given, if it is the one it was fitted with."""
    name, size = str(known["name"]), int(known["size"])
    if embedder is not None and embedder.name != name:
        raise WrongEmbedder(
            f"{path}: was fitted with the embedder {name!r}, and the task has {embedder.name!r}:"
            " change it back, or calibrate again"
        )
    if name == STATIC:
        return None
    if embedder is not None and embedder.size and embedder.size != size:
        raise WrongEmbedder(
            f"{path}: was fitted on vectors of {size} numbers, and {name!r} gives {embedder.size}"
        )
    if embedder is None or isinstance(embedder, Outside):
        return Outside(name=name, size=size)
    return embedder


def _arrays(router: Router) -> dict[str, NDArray[Any]]:
    ood, prefix = router.ood, router.prefix
    words = ood.space.words
    nothing = np.zeros(0)
    return {
        "keys": words.keys,
        "idf": words.idf,
        "axes": words.axes.astype(np.float16),
        "rows": ood.rows,
        "weights": ood.weights,
        "biases": ood.biases,
        "centroids": ood.centroids,
        "reference": ood.reference,
        **score_arrays(router.confidence),
        "start_scores": router.start.scores,
        "start_losses": router.start.losses,
        "prefix_weights": nothing if prefix is None else prefix.weights,
        "prefix_biases": nothing if prefix is None else prefix.biases,
        "prefix_limits": nothing if prefix is None else prefix.limits,
        **_hard_arrays(router.difficulty),
    }


def _prefix_numbers(prefix: Prefix | None) -> dict[str, Any] | None:
    if prefix is None:
        return None
    return {"at": prefix.at, "lost": prefix.lost, "caught": prefix.caught}


def _prefix(numbers: Mapping[str, Any] | None, arrays: Mapping[str, NDArray[Any]]) -> Prefix | None:
    if numbers is None:
        return None
    return Prefix(
        at=tuple(numbers["at"]),
        weights=arrays["prefix_weights"],
        biases=arrays["prefix_biases"],
        limits=arrays["prefix_limits"],
        lost=float(numbers["lost"]),
        caught=float(numbers["caught"]),
    )


def _hard_arrays(hard: Difficulty | None) -> dict[str, NDArray[Any]]:
    if hard is None:
        return {}
    arrays = {f"hard_{name}": getattr(hard, name) for name in HARD}
    return {**arrays, "hard_words": hard.words.axes}


def _difficulty(arrays: Mapping[str, NDArray[Any]], words: Embedding) -> Difficulty | None:
    """Its n-grams are those of the OOD gate."""
    if "hard_words" not in arrays:
        return None
    own = replace(words, axes=arrays["hard_words"])
    return Difficulty(words=own, **{name: arrays[f"hard_{name}"] for name in HARD})


def _router(
    manifest: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]], meaning: Embedder | None
) -> Router:
    words = Embedding(
        keys=arrays["keys"],
        idf=arrays["idf"],
        unseen=float(manifest["ood"]["unseen"]),
        axes=arrays["axes"].astype(np.float32),
    )
    spec, certificate, report = manifest["spec"], manifest["certificate"], manifest["report"]
    threshold = float(manifest["threshold"])
    if certificate is None and threshold < NEVER:
        raise ValueError("a threshold without a certificate")
    return Router(
        spec=OutputSpec(
            kind=spec["kind"],
            labels=tuple(spec["labels"]),
            fields={name: tuple(values) for name, values in spec["fields"].items()},
            max_tokens=spec["max_tokens"],
            fences=spec["fences"],
            loss=spec["loss"],
        ),
        ood=Ood(
            space=Space(words=words, meaning=meaning),
            rows=arrays["rows"],
            weights=arrays["weights"],
            biases=arrays["biases"],
            centroids=arrays["centroids"],
            reference=arrays["reference"],
        ),
        ood_epsilon=float(manifest["ood"]["epsilon"]),
        confidence=read_score(
            spec["kind"], manifest["confidence"], arrays, views=len(manifest["ood"]["uses"])
        ),
        window=manifest["release"]["window"],
        prefix=_prefix(manifest["release"]["prefix"], arrays),
        difficulty=_difficulty(arrays, words),
        hopeless=float(manifest["hopeless"]),
        threshold=threshold,
        start=Start(
            scores=arrays["start_scores"],
            losses=arrays["start_losses"],
            share=float(manifest["start"]["share"]),
        ),
        certificate=None if certificate is None else Certificate(**certificate),
        report=Report(
            **{
                **report,
                "contest": read_contest(report["contest"]),
                "rankings": {name: Ranking(**item) for name, item in report["rankings"].items()},
            }
        ),
    )


def _digest(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _package_version() -> str:
    try:
        return version("retort")
    except PackageNotFoundError:  # run from a checkout that is not installed
        return "unknown"
