"""The pointer moves only to what can serve, and moves back whatever is broken."""

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import yaml
from night_world import StudentServer, make_config, open_store, write_adapter
from small_bundle import make_router
from threadpoolctl import threadpool_limits

from gateway.config import Config
from gateway.errors import BundleError
from gateway.prompt import prompt_hash
from gateway.storage import bundles
from gateway.storage.store import Store
from retrain.cli import main
from retrain.promote import promote_bundle, rollback_task, wait_for
from router.artifact import save
from router.router import Router


@dataclass
class World:
    folder: Path
    server: StudentServer
    config: Config
    store: Store
    router: Router

    def bundle(self, table: dict[str, str], *, contract: str | None = None) -> str:
        """A registered candidate whose student knows these words."""
        work = self.folder / f"work-{len(table)}-{contract}"
        write_adapter(work / "adapter", table)
        save(self.router, work / "router")
        files = bundles.write_bundle(
            self.config.state / "bundles",
            task="triage",
            adapter_dir=work / "adapter",
            router_dir=work / "router",
            base_model="base",
            prompt_hash=contract or prompt_hash(self.config.tasks[0].prompt),
            dataset_id="data",
            detail={},
        )
        bundles.register(self.store, files)
        return files.id

    def champion(self) -> str | None:
        found = bundles.champion(self.store, "triage")
        return None if found is None else found.id


@pytest.fixture(scope="module")
def router() -> Router:
    with threadpool_limits(limits=1):
        return make_router()


@pytest.fixture
def world(tmp_path: Path, router: Router) -> Iterator[World]:
    with StudentServer() as server:
        config = make_config(tmp_path, server.url)
        with open_store(config) as store:
            yield World(tmp_path, server, config, store, router)


TABLE = {"order": "delivery", "hello": "refund"}


def test_a_bundle_that_answers_becomes_the_champion(world: World) -> None:
    bundle = world.bundle(TABLE)
    assert promote_bundle(world.config, world.store, bundle, detail="by hand")
    assert world.champion() == bundle
    assert world.server.adapters.keys() == {bundle}
    assert bundles.events(world.store, "triage")[-1].detail == "by hand"


def test_an_adapter_that_is_loaded_already_is_not_loaded_again(world: World) -> None:
    bundle = world.bundle(TABLE)
    world.server.adapters[bundle] = str(world.folder / "work-2-None" / "adapter")
    promote_bundle(world.config, world.store, bundle)
    assert not [r for r in world.server.requests if r.path == "/v1/load_lora_adapter"]


def test_an_adapter_without_effect_is_not_promoted(world: World) -> None:
    bundle = world.bundle(TABLE)
    world.server.reply = "always the same"
    with pytest.raises(BundleError, match="answers like v0"):
        promote_bundle(world.config, world.store, bundle)
    assert world.champion() is None


def test_a_server_without_identity_adapter_is_compared_with_its_base(world: World) -> None:
    world.server.models = ("student-base",)
    bundle = world.bundle(TABLE)
    assert promote_bundle(world.config, world.store, bundle)
    assert {body["model"] for body in world.server.chats} == {bundle, "student-base"}


def test_a_damaged_bundle_is_not_promoted(world: World) -> None:
    bundle = world.bundle(TABLE)
    path = next((world.config.state / "bundles").rglob(f"{bundle}/router/manifest.json"))
    path.write_text("{}")
    with pytest.raises(BundleError, match=r"manifest.json: checksum"):
        promote_bundle(world.config, world.store, bundle)
    assert world.champion() is None


def test_a_bundle_of_another_prompt_contract_is_not_promoted(world: World) -> None:
    bundle = world.bundle(TABLE, contract="0" * 16)
    with pytest.raises(BundleError, match="another prompt contract"):
        promote_bundle(world.config, world.store, bundle)


def test_an_unknown_bundle_is_named(world: World) -> None:
    with pytest.raises(BundleError, match="no bundle triage-1"):
        promote_bundle(world.config, world.store, "triage-1")


def test_every_replica_must_serve_the_adapter_before_the_pointer_moves(world: World) -> None:
    with StudentServer() as other:
        both = world.config.student.model_copy(update={"base_url": [world.server.url, other.url]})
        config = world.config.model_copy(update={"student": both})
        bundle = world.bundle(TABLE)
        other.reply = "always the same"
        with pytest.raises(BundleError, match="answers like v0"):
            promote_bundle(config, world.store, bundle)
        assert world.champion() is None
        other.reply = other.answer
        assert promote_bundle(config, world.store, bundle)
        assert bundle in world.server.adapters and bundle in other.adapters
        other.stop()
        with pytest.raises(BundleError, match=f"{other.port}.*cannot be reached"):
            promote_bundle(config, world.store, world.bundle(TABLE | {"please": "account"}))
        assert world.champion() == bundle


def test_without_the_student_server_nothing_is_promoted(world: World) -> None:
    bundle = world.bundle(TABLE)
    world.server.stop()
    with pytest.raises(BundleError, match="cannot be reached"):
        promote_bundle(world.config, world.store, bundle)
    assert world.champion() is None


def test_a_rollback_needs_no_student_server(world: World) -> None:
    first, second = world.bundle(TABLE), world.bundle(TABLE | {"please": "account"})
    promote_bundle(world.config, world.store, first)
    promote_bundle(world.config, world.store, second)
    world.server.stop()
    back = rollback_task(world.config, world.store, world.config.tasks[0], detail="bad answers")
    assert back is not None and back.id == first == world.champion()


def test_a_canary_is_checked_like_a_champion_and_ends_by_a_rollback(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = world.bundle(TABLE), world.bundle(TABLE | {"please": "account"})
    with pytest.raises(BundleError, match="no champion"):
        promote_bundle(world.config, world.store, first, canary=True)
    path = tmp_path / "retort.yaml"
    path.write_text(yaml.safe_dump(world.config.model_dump(mode="json")))

    def retort(*words: str) -> str:
        assert main([*words, "--config", str(path)]) == 0
        return capsys.readouterr().out

    retort("promote", first)
    assert retort("promote", second, "--canary") == f"canary: {second}\n"
    assert world.champion() == first and second in world.server.adapters
    listed = retort("bundles")
    assert f"canary     {second}  1% of the traffic, step 1" in listed
    assert f"champion   {first}\n" in listed
    world.server.stop()
    assert retort("rollback") == f"champion: {first}\n"
    assert f"candidate  {second}\n" in retort("bundles")
    assert retort("rollback") == "champion: none, the teacher answers\n"


def test_promotion_waits_for_the_gateway(world: World) -> None:
    bundle = world.bundle(TABLE)
    with Readiness() as gateway:
        gateway.shown = [None, None, bundle]
        assert promote_bundle(world.config, world.store, bundle, gateway_url=gateway.url)
        assert gateway.shown == []


def test_a_gateway_that_does_not_follow_is_reported_and_the_pointer_stays(world: World) -> None:
    bundle = world.bundle(TABLE)
    with Readiness() as gateway:
        assert not promote_bundle(
            world.config, world.store, bundle, gateway_url=gateway.url, wait_s=0.3
        )
    assert world.champion() == bundle


def test_a_gateway_that_is_away_shows_nothing(world: World) -> None:
    task = world.config.tasks[0]
    assert not wait_for("http://127.0.0.1:9/v1", task, None, 0.1)


class Readiness:
    """A gateway as /readyz shows it: one of ``shown`` a time, then no bundle."""

    def __init__(self) -> None:
        self.shown: list[str | None] = []

    def __enter__(self) -> "Readiness":
        shown = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                assert self.path == "/readyz"
                bundle = shown.shown.pop(0) if shown.shown else None
                data = json.dumps({"tasks": {"triage": {"bundle": bundle}}}).encode()
                self.send_response(200)
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = HTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"
