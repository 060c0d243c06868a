"""A teacher, a student and a gateway between them, each a real server."""

from collections.abc import Iterator
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from fake_openai import FakeOpenAI, Reply
from running_gateway import RunningGateway, wait_until
from small_bundle import SURE, make_router, save_parts
from triage import Promote, Start, configuration, live_bundle

from gateway.prompt import prompt_hash
from gateway.storage import bundles
from router.router import Router


@pytest.fixture(scope="session")
def fakes() -> Iterator[tuple[FakeOpenAI, FakeOpenAI]]:
    with (
        FakeOpenAI(models=("gpt-large", "gpt-small")) as teacher,
        FakeOpenAI(models=("student-base",), strict_models=True, vllm=True) as student,
    ):
        yield teacher, student


@pytest.fixture
def teacher(fakes: tuple[FakeOpenAI, FakeOpenAI]) -> FakeOpenAI:
    """Says: parcel."""
    fakes[0].reset("parcel")
    return fakes[0]


@pytest.fixture
def student(fakes: tuple[FakeOpenAI, FakeOpenAI]) -> FakeOpenAI:
    """Says: parcel, and is sure."""
    fakes[1].reset(Reply(text="parcel", logprob=SURE))
    return fakes[1]


@pytest.fixture(scope="session")
def more_fakes() -> Iterator[tuple[FakeOpenAI, FakeOpenAI]]:
    with (
        FakeOpenAI(models=("gpt-other",)) as teacher,
        FakeOpenAI(models=("student-base",), strict_models=True, vllm=True) as student,
    ):
        yield teacher, student


@pytest.fixture
def next_teacher(more_fakes: tuple[FakeOpenAI, FakeOpenAI]) -> FakeOpenAI:
    """Says: refund."""
    more_fakes[0].reset("refund")
    return more_fakes[0]


@pytest.fixture
def other_student(more_fakes: tuple[FakeOpenAI, FakeOpenAI]) -> FakeOpenAI:
    """A second replica; says: parcel, and is sure."""
    more_fakes[1].reset(Reply(text="parcel", logprob=SURE))
    return more_fakes[1]


@pytest.fixture(scope="session")
def small_router() -> Router:
    return make_router()


@pytest.fixture
def start(tmp_path: Path, teacher: FakeOpenAI, student: FakeOpenAI) -> Iterator[Start]:
    """``start(mode="collect", sections={"server": {...}})``: a gateway with that task."""
    with ExitStack() as running:

        def run(*, sections: dict[str, Any] | None = None, **task: Any) -> RunningGateway:
            config = configuration(tmp_path / "state", (teacher, student), task, **(sections or {}))
            return running.enter_context(RunningGateway(config))

        yield run


@pytest.fixture
def serving(
    tmp_path: Path, teacher: FakeOpenAI, student: FakeOpenAI, small_router: Router
) -> Iterator[Start]:
    """The same, with a student promoted before it starts; ``router=`` takes another one."""
    with ExitStack() as running:

        def run(
            *,
            sections: dict[str, Any] | None = None,
            router: Router = small_router,
            **task: Any,
        ) -> RunningGateway:
            config = configuration(tmp_path / "state", (teacher, student), task, **(sections or {}))
            gateway = RunningGateway(config)
            promote_bundle(gateway, router, tmp_path / "trained")
            running.enter_context(gateway)
            assert live_bundle(gateway) is not None
            return gateway

        yield run


@pytest.fixture
def challenger(tmp_path: Path, small_router: Router) -> Promote:
    """Register a new bundle, which nobody serves yet. Its id."""
    numbers = count()

    def run(gateway: RunningGateway, router: Router = small_router) -> str:
        return register_bundle(gateway, router, tmp_path / f"challenger-{next(numbers)}")

    return run


@pytest.fixture
def promote(tmp_path: Path, small_router: Router) -> Promote:
    """Promote a new bundle while the gateway runs, and wait until it is served. Its id."""
    numbers = count()

    def run(gateway: RunningGateway, router: Router = small_router, wait: bool = True) -> str:
        made = promote_bundle(gateway, router, tmp_path / f"trained-{next(numbers)}")
        if wait:
            wait_until(lambda: live_bundle(gateway) == made)
        return made

    return run


def promote_bundle(gateway: RunningGateway, router: Router, source: Path) -> str:
    made = register_bundle(gateway, router, source)
    bundles.promote(gateway.store, made)
    return made


def register_bundle(gateway: RunningGateway, router: Router, source: Path) -> str:
    task = gateway.config.task()
    adapter_dir, router_dir = save_parts(source, router)
    files = bundles.write_bundle(
        gateway.config.state / "bundles",
        task=task.name,
        adapter_dir=adapter_dir,
        router_dir=router_dir,
        base_model="student-base",
        prompt_hash=prompt_hash(task.prompt),
        dataset_id="d1",
        detail={},
    )
    bundles.register(gateway.store, files, None, None, {})
    return files.id
