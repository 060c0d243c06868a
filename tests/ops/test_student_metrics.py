"""The student dashboard asks for metrics that the vLLM we install has."""

import re
from pathlib import Path

import pytest
from ops.known_metrics import VLLM

from retrain.student_env import ensure_student_env

#: where `retort student` and the demo keep it
HOME = Path.home() / ".cache" / "retort"
#: how vLLM makes each kind
CLASSES = {"gauge": "_gauge_cls", "counter": "_counter_cls", "histogram": "_histogram_cls"}


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_names_and_kinds_are_vllms_own() -> None:
    root = ensure_student_env(HOME, progress=False).parent.parent
    (path,) = root.glob("lib/python*/site-packages/vllm/v1/metrics/loggers.py")
    made = {
        name: kind
        for kind, name in re.findall(r'self\.(\w+_cls)\(\s*name="(vllm:\w+)"', path.read_text())
    }
    for name, (kind, _) in VLLM.items():
        assert made.get(name) == CLASSES[kind], name
