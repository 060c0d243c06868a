"""LiteLLM's proxy put through the OpenAI client's own tests, in front of the same upstream.

For comparison only: `run.py --with-litellm`. Its configuration is the shortest that passes every
model through: one wildcard entry, no key, no database.
"""

import json
import os
import socket
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from openai_python import against
from rig import Result, pinned, process, python, spec_server

#: it starts slowly
PATIENCE_S = 300


def suites() -> Iterator[Result]:
    interpreter = python("litellm")
    with (
        tempfile.TemporaryDirectory() as folder,
        spec_server() as upstream,
        (Path(folder) / "log").open("wb") as log,
    ):
        passed = {"model": "openai/*", "api_base": upstream, "api_key": "app"}
        config = Path(folder) / "config.yaml"
        # JSON is YAML
        config.write_text(
            json.dumps({"model_list": [{"model_name": "*", "litellm_params": passed}]})
        )
        port = free_port()
        command = [interpreter.parent / "litellm", "--config", config, "--host", "127.0.0.1"]
        command += ["--port", port, "--num_workers", 1, "--telemetry", "False"]
        env = {**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True", "DO_NOT_TRACK": "1"}
        # it will not start without a key of its own unless told so; any key is then taken
        env["LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY"] = "true"
        with process(command, stdout=log, stderr=log, env=env, cwd=folder):
            url = f"http://127.0.0.1:{port}"
            alive(url)
            version = pinned("litellm", "litellm")
            for result in against(f"{url}/v1", "LiteLLM: openai-python {}"):
                yield replace(result, version=version)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def alive(url: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            with urllib.request.urlopen(f"{url}/health/liveliness", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)
