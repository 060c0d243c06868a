"""API keys: kept as hashes, looked up in a snapshot, scoped, rotated, revoked."""

import asyncio
from collections.abc import Callable
from datetime import timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

import openai
import pytest
from fake_openai import FakeOpenAI
from postgres import Postgres
from running_gateway import RunningGateway, wait_until
from sqlmodel import SQLModel, select
from triage import BODY, QUESTION, Start, configuration

from gateway.access import key_store
from gateway.access.keys import Caller, Keys, KnownKey
from gateway.errors import ConfigError, InvalidKey, KeysUnknown
from gateway.storage.store import Store
from gateway.storage.tables import ApiKeySecret, utcnow

UNCLAIMED: dict[str, Any] = {"model": "gpt-large", "messages": [{"role": "user", "content": "hi"}]}
CHAT = "/v1/chat/completions"
Open = Callable[..., RunningGateway]


def make(store: Store, name: str, **columns: Any) -> str:
    key = key_store.new_key(name)
    for column, value in columns.items():
        setattr(key, column, value)
    return key_store.create(store, key)


def snapshot(store: Store, **options: Any) -> Keys:
    keys = Keys(database=True, **options)
    asyncio.run(key_store.refresh(keys, store))
    return keys


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


@pytest.fixture
def open_(start: Start, database_url: str) -> Open:
    """A gateway on the test's database, which asks for a key."""

    def run(**server: Any) -> RunningGateway:
        sections = {"server": {"keys": "database"} | server, "store": {"url": database_url}}
        return start(sections=sections, mode="collect")

    return run


def test_a_key_has_256_bits_and_only_its_hash_is_kept(store: Store) -> None:
    key, other = make(store, "app"), make(store, "other")
    assert key.startswith("rk-") and len(key) == 3 + 43 and key != other
    kept = []
    with store.engine.connect() as connection:
        for table in SQLModel.metadata.tables.values():
            kept += [str(row) for row in connection.execute(select(table))]
    assert not any(key in row or key[12:] in row for row in kept)
    assert any(sha256(key.encode()).hexdigest() in row for row in kept)
    (row, (secret,)), _ = key_store.listed(store)
    assert (row.name, secret.shown) == ("app", key[:9])


def test_keys_of_the_database_and_of_the_environment_open_the_gateway_and_no_other(
    open_: Open, store: Store, teacher: FakeOpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("APP_KEYS", "from-env")
    key, old = make(store, "app"), make(store, "old", expires_at=utcnow() - timedelta(seconds=1))
    gateway = open_(api_keys_env="APP_KEYS")
    for good in (key, "from-env"):
        assert gateway.send("POST", CHAT, BODY, bearer(good))[0] == 200
        assert "authorization" not in teacher.requests[-1].headers
    for bad in (old, "from-env2", key[:-1] + "~", sha256(key.encode()).hexdigest(), ""):
        with pytest.raises(openai.AuthenticationError) as caught:
            gateway.client(bad or "x").models.list()
        assert caught.value.code == "invalid_api_key"
    assert gateway.send("POST", CHAT, BODY)[0] == 401
    rows = gateway.ledger(2)
    assert {row.caller for row in rows} == {
        key_store.listed(store)[0][0].id,
        sha256(b"from-env").hexdigest()[:16],
    }


def test_a_running_gateway_learns_of_new_and_of_revoked_keys(open_: Open, store: Store) -> None:
    gateway = open_()
    key, other = make(store, "app"), make(store, "other")

    def status(key: str) -> int:
        return gateway.send("GET", "/v1/models", b"", bearer(key))[0]

    wait_until(lambda: status(key) == 200)
    key_store.revoke(store, "app")
    wait_until(lambda: status(key) == 401)
    assert status(other) == 200
    # the name is free again, the old key is not
    again = make(store, "app")
    wait_until(lambda: status(again) == 200)
    assert status(key) == 401


def test_the_old_value_works_until_the_grace_ends(store: Store) -> None:
    now = utcnow().timestamp()
    clock = [now]
    old = make(store, "app", rpm=7)
    before = snapshot(store, clock=lambda: clock[0]).check(f"Bearer {old}")
    keys = snapshot(store, clock=lambda: clock[0])
    _, new = key_store.rotate(store, "app", timedelta(hours=2))
    asyncio.run(key_store.refresh(keys, store))
    # one caller: its limits, budgets and stored answers stay where they are
    assert keys.check(f"Bearer {new}") == keys.check(f"Bearer {old}") == before
    clock[0] = now + 2 * 3600 + 60
    assert keys.check(f"Bearer {new}").rpm == 7
    with pytest.raises(InvalidKey):
        keys.check(f"Bearer {old}")
    # a second rotation does not lengthen the life of the first value
    key_store.rotate(store, "app", timedelta(hours=90))
    ends = {s.shown: s.expires_at for s in key_store.listed(store)[0][1]}
    assert ends[old[:9]] < utcnow() + timedelta(hours=3)  # type: ignore[operator]
    key_store.revoke(store, "app")
    asyncio.run(key_store.refresh(keys, store))
    with pytest.raises(InvalidKey):
        keys.check(f"Bearer {new}")


def test_only_what_changed_is_read_again(store: Store) -> None:
    names = ["a", "b", "c"]
    values = {name: make(store, name) for name in names}
    keys = snapshot(store)
    seen = keys.version
    assert key_store._changes(store, seen) == (seen, [])
    key_store.revoke(store, "b")
    _, new = key_store.rotate(store, "c", timedelta(0))
    _, changed = key_store._changes(store, seen)
    assert sorted(known.caller.name for known in changed) == ["b", "c", "c"]
    asyncio.run(key_store.refresh(keys, store))
    assert keys.check(f"Bearer {values['a']}").name == "a"
    assert keys.check(f"Bearer {new}").name == "c"
    for gone in (values["b"], values["c"]):
        with pytest.raises(InvalidKey):
            keys.check(f"Bearer {gone}")


def test_a_database_put_back_from_a_backup_is_believed(store: Store) -> None:
    kept = make(store, "kept")
    keys = snapshot(store)
    # made after the backup, and so not in it
    keys.apply(99, [KnownKey(sha256=sha256(b"rk-later").digest(), caller=Caller(id="later"))])
    assert keys.check("Bearer rk-later").id == "later"
    asyncio.run(key_store.refresh(keys, store))
    assert keys.check(f"Bearer {kept}").name == "kept"
    with pytest.raises(InvalidKey):
        keys.check("Bearer rk-later")


def test_changed_limits_reach_the_gateways(store: Store) -> None:
    key = make(store, "app", rpm=1)
    keys = snapshot(store)
    key_store.change(store, "app", {"rpm": 7})
    asyncio.run(key_store.refresh(keys, store))
    assert keys.check(f"Bearer {key}").rpm == 7


def test_two_keys_in_use_never_share_a_name(store: Store) -> None:
    make(store, "app")
    with pytest.raises(ConfigError, match="there is a key named 'app'"):
        make(store, "app")
    for bad in ("", "a b", "-x", "é", "x" * 65):
        with pytest.raises(ConfigError, match="a key's name"):
            make(store, bad)
    for act in (key_store.revoke, lambda s, n: key_store.rotate(s, n, timedelta(0))):
        with pytest.raises(ConfigError, match="no key named 'nobody'"):
            act(store, "nobody")
    with store.session() as session:
        assert len(session.exec(select(ApiKeySecret)).all()) == 1


def test_many_keys_are_one_lookup() -> None:
    """By structure and not by time: whichever key comes, one hash is looked up."""
    many = [
        KnownKey(sha256=sha256(b"%d" % n).digest(), caller=Caller(id=str(n))) for n in range(2_000)
    ]
    keys = Keys(database=True)
    keys.apply(1, many)
    looked_up = []

    class Watched(dict[bytes, Any]):
        def get(self, key: bytes, default: Any = None) -> Any:
            looked_up.append(key)
            return super().get(key, default)

        def __iter__(self) -> Any:
            raise AssertionError("the keys are gone through one by one")

        items = values = keys = __iter__  # type: ignore[assignment]

    keys._known = Watched(keys._known)
    assert keys.check("Bearer 1999").id == "1999"
    with pytest.raises(InvalidKey):
        keys.check("Bearer nothing")
    assert len(looked_up) == 2


def test_a_key_for_one_task_gets_403_for_all_else(
    open_: Open, store: Store, teacher: FakeOpenAI
) -> None:
    other = make(store, "other", tasks=["orders"])
    mine = make(store, "mine", tasks=["triage"])
    both = make(store, "both", tasks=["triage", "-"])
    anything = make(store, "anything")
    gateway = open_()
    for key, task, none in (
        (other, 403, 403),
        (mine, 200, 403),
        (both, 200, 200),
        (anything, 200, 200),
    ):
        assert gateway.send("POST", CHAT, BODY, bearer(key))[0] == task
        assert gateway.send("POST", CHAT, UNCLAIMED, bearer(key))[0] == none
        assert gateway.send("POST", "/v1/embeddings", {"input": "x"}, bearer(key))[0] == none
        # its own stored completions, whatever it may ask for
        assert gateway.send("GET", CHAT, b"", bearer(key))[0] == 200
        shown = {model.id for model in gateway.client(key).models.list()}
        wanted = {"triage"} if task == 200 else set()
        assert shown == wanted | ({"gpt-large", "gpt-small"} if none == 200 else set())
        assert gateway.send("GET", "/v1/models/triage", b"", bearer(key))[0] == task
    with pytest.raises(openai.PermissionDeniedError) as caught:
        gateway.client(mine).chat.completions.create(**UNCLAIMED)
    assert caught.value.code == "task_not_allowed"
    assert caught.value.response.headers["x-should-retry"] == "false"


def test_the_route_is_chosen_by_permitted_keys_only(
    open_: Open, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("APP_KEYS", "from-env")
    may, may_not = make(store, "may", may_route=True), make(store, "may-not")
    gateway = open_(api_keys_env="APP_KEYS")
    route = {"x-retort-route": "teacher"}
    assert gateway.send("POST", CHAT, BODY, bearer(may) | route)[0] == 200
    assert gateway.send("POST", CHAT, BODY, bearer("from-env") | route)[0] == 200
    status, _, data = gateway.send("POST", CHAT, BODY, bearer(may_not) | route)
    assert status == 403 and b"route_not_allowed" in data


def test_a_task_claims_by_key(start: Start, store: Store, database_url: str) -> None:
    app, other = make(store, "app"), make(store, "other")
    sections = {"server": {"keys": "database"}, "store": {"url": database_url}}
    gateway = start(sections=sections, claim={"key": ["app", "more"]}, mode="collect")
    for key, reason in ((app, "collect"), (other, "unclaimed")):
        _, headers, _ = gateway.send("POST", CHAT, UNCLAIMED, bearer(key))
        assert headers["x-retort-reason"] == reason


def test_known_keys_outlive_the_database_and_bad_ones_are_still_401(
    postgres_server: Postgres,
    fakes: tuple[FakeOpenAI, FakeOpenAI],
    teacher: FakeOpenAI,
    tmp_path: Path,
) -> None:
    with postgres_server.database() as url:
        sections = {"server": {"keys": "database"}, "store": {"url": url}}
        config = configuration(tmp_path / "state", fakes, {"mode": "collect"}, **sections)
        gateway = RunningGateway(config)
        key = make(gateway.store, "app", rpm=100, daily_usd=50.0)
        with gateway:

            def status(key: str) -> int:
                return gateway.send("POST", CHAT, BODY, bearer(key))[0]

            assert status(key) == 200
            postgres_server.close_to(url, closed=True)
            assert status(key) == 200
            assert status("rk-bad") == 401
            postgres_server.close_to(url, closed=False)
        assert teacher.chats[-1]["messages"][1]["content"] == QUESTION


def test_a_start_without_the_database_refuses_bad_keys_and_asks_others_to_wait(
    postgres_server: Postgres, fakes: tuple[FakeOpenAI, FakeOpenAI], tmp_path: Path
) -> None:
    with postgres_server.database() as url:
        sections = {"server": {"keys": "database"}, "store": {"url": url}}
        config = configuration(tmp_path / "state", fakes, {"mode": "collect"}, **sections)
        gateway = RunningGateway(config)
        key = make(gateway.store, "app")
        postgres_server.close_to(url, closed=True)
        with gateway:
            assert gateway.send("GET", "/v1/models", b"", bearer("sk-bad"))[0] == 401
            status, headers, _ = gateway.send("GET", "/v1/models", b"", bearer(key))
            assert (status, headers["x-should-retry"]) == (503, "true")
            assert "keys" in gateway.json("/readyz")[1]["problems"]
            postgres_server.close_to(url, closed=False)
            wait_until(
                lambda: gateway.send("GET", "/v1/models", b"", bearer(key))[0] == 200, timeout_s=20
            )


def test_a_key_that_cannot_be_one_is_401_before_the_first_snapshot() -> None:
    keys = Keys(("from-env",), database=True)
    assert keys.check("Bearer from-env").id
    with pytest.raises(KeysUnknown):
        keys.check("Bearer rk-" + "a" * 43)
    for bad in ("Bearer rk-short", "Bearer sk-" + "a" * 43, "Basic rk-" + "a" * 43, None):
        with pytest.raises(InvalidKey):
            keys.check(bad)
