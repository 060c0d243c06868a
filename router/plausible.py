"""Whether what was read from disk can be a router, before a decision hangs on it.

Checksums say that a folder is as it was written. These say that what was written makes sense, so
that nothing is found out by the first request.
"""

from collections.abc import Mapping
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from router.ood import VIEWS
from router.output import Kind
from router.router import Router
from router.threshold import NEVER

#: The dimensions of arrays: the same letter is the same number. Their floats must be finite.
SHAPES = {
    "keys": "k",
    "idf": "k",
    "axes": "kd",
    "rows": "np",
    "weights": "pc",
    "biases": "c",
    "centroids": "cp",
    "reference": "hv",
    "head_weights": "i",
    "head_means": "i",
    "head_scales": "i",
}


def check_arrays(arrays: Mapping[str, NDArray[Any]]) -> None:
    """Raises KeyError or ValueError where the arrays do not fit each other."""
    sizes: dict[str, tuple[str, int]] = {}
    for name, letters in SHAPES.items():
        array = arrays[name]
        if array.ndim != len(letters):
            raise ValueError(f"{name} has {array.ndim} dimensions")
        if not np.issubdtype(array.dtype, np.uint32 if name == "keys" else np.floating):
            raise ValueError(f"{name} is of {array.dtype}")
        if not np.isfinite(array).all():
            raise ValueError(f"{name} holds what is no number")
        for letter, size in zip(letters, array.shape, strict=True):
            other, known = sizes.setdefault(letter, (name, size))
            if size != known:
                raise ValueError(f"{name} does not fit {other}: {size} and {known}")
    if not (np.diff(arrays["keys"].astype(np.int64)) > 0).all():
        raise ValueError("keys do not ascend")


def check_router(router: Router) -> None:
    """Raises ValueError where a number cannot be meant: with a threshold of NaN every draft would
    pass."""
    found = router.certificate
    numbers = {
        "threshold": (router.threshold, 0.0, NEVER),
        "epsilon": (router.ood_epsilon, 0.0, 1.0),
        "bias": (router.confidence.bias, -1e9, 1e9),
    }
    if found is not None:
        numbers |= {
            "max_disagreement": (found.max_disagreement, 0.0, 1.0),
            "confidence": (found.confidence, 0.0, 1.0),
            "upper_bound": (found.upper_bound, 0.0, found.max_disagreement),
            "coverage": (found.coverage, 0.0, 1.0),
        }
        if found.threshold != router.threshold:
            raise ValueError("a certificate of another threshold")
    for name, (number, low, high) in numbers.items():
        if not low <= number <= high:
            raise ValueError(f"{name} {number}")
    ood = router.ood
    if router.spec.kind not in get_args(Kind):
        raise ValueError(f"kind {router.spec.kind!r}")
    if router.spec.loss not in ("exact", "fields"):
        raise ValueError(f"loss {router.spec.loss!r}")
    if not set(ood.uses) <= set(VIEWS if len(ood.centroids) else VIEWS[-1:]):
        raise ValueError(f"views {ood.uses}")
    if len(ood.reference) and ood.reference.shape[1] != len(ood.uses):
        raise ValueError("reference has other views")
    words, meaning = ood.space.words, ood.space.meaning
    beside = ood.rows.shape[1] - words.axes.shape[1]
    # an embedder elsewhere may not have said yet how long its vectors are
    known = 0 if meaning is None else meaning.size or max(beside, 1)
    if beside != known:
        raise ValueError("rows do not fit axes")
