"""A score as the plain numbers and arrays of a saved router, and back."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from router.confidence import Confidence
from router.contest import Contest, Lead
from router.isotonic import Curve
from router.linear import Linear
from router.output import Kind
from router.trees import Trees

Arrays = Mapping[str, NDArray[Any]]


def score_arrays(confidence: Confidence) -> dict[str, NDArray[Any]]:
    """The arrays, by names that begin with head, reader, trees or curve."""
    return {
        "head_weights": confidence.weights,
        "head_means": confidence.means,
        "head_scales": confidence.scales,
        **_parts("reader", confidence.reader),
        **_parts("trees", confidence.trees),
        **_parts("curve", confidence.curve),
    }


def score_numbers(confidence: Confidence) -> dict[str, Any]:
    """What goes into the manifest."""
    parts = {"reader": confidence.reader, "trees": confidence.trees, "curve": confidence.curve}
    return {
        "bias": confidence.bias,
        "form": confidence.form,
        "lengths": confidence.lengths,
        "parts": [name for name, part in parts.items() if part is not None],
    }


def read_score(kind: Kind, numbers: Mapping[str, Any], arrays: Arrays, *, views: int) -> Confidence:
    """The score of a router with so many views of strangeness. Raises KeyError, TypeError or
    ValueError where the numbers are none of a score."""
    mean, spread = (float(value) for value in numbers["lengths"])
    parts = set(numbers["parts"])
    confidence = Confidence(
        kind=kind,
        weights=arrays["head_weights"],
        means=arrays["head_means"],
        scales=arrays["head_scales"],
        bias=float(numbers["bias"]),
        form=bool(numbers["form"]),
        reader=Linear(**_part("reader", arrays)) if "reader" in parts else None,
        trees=Trees(**_part("trees", arrays)) if "trees" in parts else None,
        curve=Curve(**_part("curve", arrays)) if "curve" in parts else None,
        lengths=(mean, spread),
    )
    confidence.check(views)
    return confidence


def read_contest(data: Mapping[str, Any]) -> Contest:
    """The contest of a saved report."""
    leads = {name: Lead(**lead) for name, lead in data["leads"].items()}
    return Contest(**{**data, "leads": leads})


def _parts(name: str, part: Linear | Trees | Curve | None) -> dict[str, NDArray[Any]]:
    if part is None:
        return {}
    values = {entry.name: getattr(part, entry.name) for entry in dataclasses.fields(part)}
    return {f"{name}_{key}": np.asarray(value) for key, value in values.items()}


def _part(name: str, arrays: Arrays) -> dict[str, Any]:
    found = {key: array for key, array in arrays.items() if key.startswith(f"{name}_")}
    return {
        key.removeprefix(f"{name}_"): array if array.ndim else array.item()
        for key, array in found.items()
    }
