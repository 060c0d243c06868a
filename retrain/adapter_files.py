"""The two files of a LoRA adapter, written the same everywhere: weights and a canonical config.

PEFT's own config lists the target modules in set order, holds absolute paths and some forty
fields of which vLLM reads six and ignores others silently (``rank_pattern``, ``alpha_pattern``).
What we write holds what both read, sorted, so that the same training gives the same bytes.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from retrain.errors import StudentError

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
#: the layer the identity adapter sits on: every decoder we know has one of this name
IDENTITY_MODULE = "q_proj"


def write_config(
    folder: Path, *, base_model: str, rank: int, alpha: int, target_modules: Sequence[str]
) -> None:
    config: dict[str, Any] = {
        "base_model_name_or_path": base_model,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": rank,
        "target_modules": sorted(target_modules),
        "task_type": "CAUSAL_LM",
        "use_dora": False,
        "use_rslora": False,
    }
    (folder / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def weights_sha256(folder: Path) -> str:
    """SHA-256 of the adapter's weights, in hex."""
    with (folder / WEIGHTS).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_identity(folder: Path, base_model: Path) -> None:
    """A rank-1 adapter that changes nothing (its B matrices are zero), into an existing folder.

    It serves as version 0: requests to the base model's own name are answered wrong on the CPU
    when they share a batch with an adapter's (vLLM 0.32), and an adapter's own never are.
    Raises StudentError where the base model has no layer to put it on.
    """
    import numpy as np
    from safetensors.numpy import save_file

    weights: dict[str, Any] = {}
    for name, (rows, columns) in _shapes(base_model).items():
        prefix = f"base_model.model.{name}"
        weights[f"{prefix}.lora_A.weight"] = np.full((1, columns), 1 / columns, dtype=np.float32)
        weights[f"{prefix}.lora_B.weight"] = np.zeros((rows, 1), dtype=np.float32)
    if not weights:
        raise StudentError(f"the model in {base_model} has no {IDENTITY_MODULE} layers")
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    write_config(
        folder,
        base_model=base_model.name,
        rank=1,
        alpha=1,
        target_modules=[IDENTITY_MODULE],
    )


def _shapes(base_model: Path) -> Mapping[str, tuple[int, int]]:
    """Output and input size of each ``q_proj`` layer, by the layer's name."""
    from safetensors import safe_open

    shapes: dict[str, tuple[int, int]] = {}
    for file in sorted(base_model.glob("*.safetensors")):
        with safe_open(file, framework="numpy") as tensors:
            for key in tensors.keys():  # noqa: SIM118 - not a mapping
                if key.endswith(f".{IDENTITY_MODULE}.weight"):
                    rows, columns = tensors.get_slice(key).get_shape()
                    shapes[key.removesuffix(".weight")] = (rows, columns)
    return shapes
