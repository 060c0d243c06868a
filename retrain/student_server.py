"""vLLM on this machine's CPU as the student: start it, wait until it answers, end it surely."""

import asyncio
import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path

import aiohttp

from gateway.errors import BundleError
from gateway.upstreams.adapters import load_adapter
from retrain import leash
from retrain.errors import StudentError
from retrain.progress import step
from retrain.student_log import last_error
from retrain.student_model import ensure_identity_adapter

#: name of the identity adapter: version 0 of every task
IDENTITY = "v0"
#: name under which the bare base model is served; nothing ever asks for it
BASE = "student-base"
#: longest start: about 35 s on two idle cores, several times that on busy ones
START_S = 600.0
POLL_S = 0.25
KV_CACHE_BYTES = 512 * 1024 * 1024

ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
    # otherwise the first request that wants log-probabilities compiles for some 20 s
    "TORCHDYNAMO_DISABLE": "1",
    "PYTHONUNBUFFERED": "1",
}
#: of the caller's: an empty one crashes the engine, or they would undo what is set by flags
DROPPED = ("VLLM_CPU_KVCACHE_SPACE", "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "OMP_NUM_THREADS")


class StudentServer:
    """A running vLLM on loopback with the identity adapter loaded as ``v0``. A context manager.

    ``python`` is the interpreter of the student's environment, ``model`` a Hugging Face folder,
    ``identity`` the adapter for version 0 (default: one made beside the model). ``port`` 0 takes
    any free one. What vLLM says goes to the file ``log``. ``target_modules`` are the layers that
    adapters may change: fewer are faster, and an adapter's weights for others would be ignored.
    """

    def __init__(
        self,
        python: Path,
        model: Path,
        *,
        log: Path,
        port: int = 0,
        identity: Path | None = None,
        target_modules: Sequence[str] = ("q_proj", "v_proj"),
        max_rank: int = 8,
        max_length: int = 2048,
        max_concurrency: int = 32,
        progress: bool = True,
    ) -> None:
        self.python = python
        self.model = model
        self.identity = identity or ensure_identity_adapter(model.parent, model)
        self.log = log
        self.port = port or _bound()
        self.target_modules = tuple(target_modules)
        self.max_rank = max_rank
        self.max_length = max_length
        self.max_concurrency = max_concurrency
        self.progress = progress
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def base_url(self) -> str:
        """With /v1."""
        return f"http://127.0.0.1:{self.port}/v1"

    def __enter__(self) -> "StudentServer":
        self.start()
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self.stop()

    def start(self) -> None:
        """Returns when it answers. Raises StudentError with vLLM's own last error."""
        try:
            _bound(self.port)  # another server there would be taken for ours
        except OSError:
            raise StudentError(f"port {self.port} is in use") from None
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("wb") as log:
            self._process = leash.start(
                self._command(), env=_environment(os.environ), stdout=log, stderr=log
            )
        try:
            with step("start the student (vLLM)", show=self.progress):
                self._wait()
                asyncio.run(self._load_identity())
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End it and all its processes. Twice is fine."""
        if self._process is not None:
            leash.stop(self._process)
            self._process = None

    def check(self) -> None:
        """Raises StudentError where it is not running any more."""
        if self._process is None or self._process.poll() is not None:
            raise StudentError(f"the student server ended: {last_error(self.log)} (see {self.log})")

    def _command(self) -> list[str]:
        flags: dict[str, object] = {
            "--model": self.model,
            "--served-model-name": BASE,
            "--host": "127.0.0.1",
            "--port": self.port,
            "--dtype": "bfloat16",
            "--max-model-len": self.max_length,
            "--max-num-seqs": self.max_concurrency,
            "--kv-cache-memory-bytes": KV_CACHE_BYTES,
            "--max-loras": 4,
            "--max-lora-rank": self.max_rank,
        }
        # `vllm serve` of vllm-cpu 0.32 ends with PackageNotFoundError (it looks for "vllm")
        command = [str(self.python), "-m", "vllm.entrypoints.openai.api_server"]
        for flag, value in flags.items():
            command += [flag, str(value)]
        command += ["--enforce-eager", "--enable-lora", "--disable-uvicorn-access-log"]
        return [*command, "--lora-target-modules", *self.target_modules]

    def _wait(self) -> None:
        deadline = time.monotonic() + START_S
        url = f"http://127.0.0.1:{self.port}/health"
        while True:
            self.check()
            try:
                with urllib.request.urlopen(url, timeout=5):
                    return
            except (urllib.error.URLError, OSError):
                pass
            if time.monotonic() > deadline:
                raise StudentError(
                    f"the student server does not answer after {START_S:.0f} s (see {self.log})"
                )
            time.sleep(POLL_S)

    async def _load_identity(self) -> None:
        async with aiohttp.ClientSession() as session:
            try:
                await load_adapter(session, self.base_url, IDENTITY, str(self.identity))
            except BundleError as error:
                raise StudentError(f"{error} (see {self.log})") from None


def _environment(own: Mapping[str, str]) -> dict[str, str]:
    return {key: value for key, value in own.items() if key not in DROPPED} | ENVIRONMENT


def _bound(port: int = 0) -> int:
    """The port, or any free one for 0, after binding to it. Raises OSError where it is taken."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", port))
        found: int = probe.getsockname()[1]
        return found
