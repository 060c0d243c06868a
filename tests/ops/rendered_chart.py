"""The chart, rendered by Helm, as documents."""

import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

CHART = Path(__file__).parents[2] / "helm"
Document = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """All documents of one rendering."""

    documents: list[Document]

    def all(self, kind: str, component: str | None = None) -> list[Document]:
        return [
            d
            for d in self.documents
            if d["kind"] == kind
            and component in (None, d["metadata"]["labels"]["app.kubernetes.io/component"])
        ]

    def one(self, kind: str, component: str | None = None) -> Document:
        (found,) = self.all(kind, component)
        return found

    def config(self) -> str:
        """The rendered retort.yaml."""
        (text,) = (
            d["data"]["retort.yaml"] for d in self.all("ConfigMap") if "retort.yaml" in d["data"]
        )
        return str(text)

    def pods(self) -> Iterator[tuple[str, Document, Document]]:
        """Name, metadata and spec of every pod that would ever run."""
        for d in self.documents:
            name = f"{d['kind']}/{d['metadata']['name']}"
            if d["kind"] == "Deployment":
                yield name, d["spec"]["template"]["metadata"], d["spec"]["template"]["spec"]
            elif d["kind"] == "CronJob":
                template = d["spec"]["jobTemplate"]["spec"]["template"]
                yield name, template["metadata"], template["spec"]
            elif d["kind"] == "Pod":
                yield name, d["metadata"], d["spec"]


Render = Callable[..., Chart]


def run(program: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [str(program), *arguments], capture_output=True, text=True, check=False, cwd=CHART
    )


def render(program: Path, values: Path | None, *arguments: str) -> Chart:
    """Raises AssertionError with Helm's message."""
    files = [] if values is None else ["--values", str(values)]
    done = run(program, "template", "night", str(CHART), "--namespace", "ml", *files, *arguments)
    assert done.returncode == 0, done.stderr
    return Chart(documents=[d for d in yaml.safe_load_all(done.stdout) if d])
