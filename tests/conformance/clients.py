"""Real clients through the gateway: LangChain, instructor, pydantic-ai, and two for Node."""

import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from openai_python import TASK
from pytest_suites import ran, summed
from rig import HERE, Clock, Result, gateway, node_modules, pinned, python, run, spec_server

CLAIM = {"claim": {"model": ["gpt-4o"]}}


def suites() -> Iterator[Result]:
    """Every request claimed by a task that only collects."""
    with (
        tempfile.TemporaryDirectory() as folder,
        spec_server() as upstream,
        gateway(Path(folder), upstream, tasks=[TASK | CLAIM]) as url,
    ):
        env = {"TEST_API_BASE_URL": url}
        files = {"langchain-tests": "langchain_suite.py", "Python clients": "python_clients.py"}
        for name, file in files.items():
            arguments = ["--noconftest", "-c", "/dev/null", "-o", "asyncio_mode=auto", file]
            cases = ran(python("clients"), arguments, cwd=HERE, env=env)
            version = pinned("clients", "langchain-tests")
            yield summed(name, version if name == "langchain-tests" else versions(), cases)
        yield from node(env)


def versions() -> str:
    names = ("openai", "instructor", "pydantic-ai-slim")
    return ", ".join(f"{name} {pinned('clients', name)}" for name in names)


def node(env: dict[str, str]) -> Iterator[Result]:
    home, clock = node_modules(), Clock()
    # modules are looked for beside the script
    script = home / "clients.mjs"
    script.write_text((HERE / "clients.mjs").read_text())
    done = run(["node", script], env={**os.environ, **env}, cwd=home, check=False)
    checks = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    wanted = json.loads((HERE / "package.json").read_text())["dependencies"]
    for name, package in (("node", "openai"), ("ai sdk", "ai")):
        mine = [check for check in checks if check["name"].startswith(name)]
        failed = [f"{check['name']}: {check['error']}" for check in mine if check["error"]]
        yield Result(
            suite="OpenAI Node client" if name == "node" else "Vercel AI SDK",
            version=wanted[package],
            passed=len(mine) - len(failed),
            total=len(mine),
            failed=failed,
            seconds=clock.seconds,
        )
