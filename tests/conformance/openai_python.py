"""The OpenAI Python client's own tests, from its source distribution, against the gateway."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

from pytest_suites import ran, summed
from rig import Result, gateway, pinned, python, source, spec_server

PARTS = {
    "chat": ["chat/test_completions.py"],
    "stored messages": ["chat/completions"],
    "models": ["test_models.py"],
    "embeddings": ["test_embeddings.py"],
    "completions": ["test_completions.py"],
    "responses": ["test_responses.py", "responses"],
}
#: once as traffic of no task, once with every request that a task can claim claimed
TASK = {"name": "everything", "mode": "collect", "claim": {"model": ["gpt-6-astra"]}}


def suites() -> Iterator[Result]:
    with tempfile.TemporaryDirectory() as folder, spec_server() as upstream:
        with gateway(Path(folder) / "plain", upstream) as url:
            yield from against(url, "openai-python {}")
        with gateway(Path(folder) / "claimed", upstream, tasks=[TASK]) as url:
            yield from against(url, "openai-python {}, claimed", only=("chat", "responses"))


def against(url: str, name: str, only: tuple[str, ...] = tuple(PARTS)) -> Iterator[Result]:
    version = pinned("openai", "openai")
    paths = [f"tests/api_resources/{path}" for part in only for path in PARTS[part]]
    env = {"TEST_API_BASE_URL": url}
    tests = source("openai", version)
    cases = ran(python("openai"), ["-n0", "--tb=line", *paths], cwd=tests, env=env)
    for part in only:
        modules = tuple(dotted(path) for path in PARTS[part])
        mine = [case for case in cases if case.name.startswith(modules)]
        yield summed(name.format(part), version, mine)


def dotted(path: str) -> str:
    return f"tests.api_resources.{path.removesuffix('.py').replace('/', '.')}."
