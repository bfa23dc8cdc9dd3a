"""Who may ask what: with keys, the scope's calls; without any key made, this machine alone."""

import json
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY
from typer.testing import CliRunner

from recflow import cli
from recflow.errors import RecflowError, SettingsError
from recflow.serving.http.keys import SCOPES, Keyring, create_key, keys_file, list_keys, refuse_open_doors, revoke_key
from recflow.serving.http.problems import Problem
from recflow.serving.http.routes import Route
from recflow.serving.http.table import table
from recflow.settings import Settings, load_settings
from tests.serving.http.conftest import TABLE, Door, problem


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def walk(door: Door, route: Route, headers: dict[str, str]) -> int:
    """Ask a route as its own examples do."""
    path = route.path.format(**route.example_params)
    body = next(iter(route.examples.values()), None)
    return door.ask(route.method, path, json=body, headers=headers).status_code


# -- the file


def test_a_key_is_shown_once_and_kept_hashed(settings: Settings) -> None:
    key = create_key(settings, name="web", scopes=["storefront", "ingest"])
    kept = keys_file(settings).read_text()
    _, key_id, secret = key.split("_", 2)
    assert key_id in kept
    assert secret not in kept
    assert len(secret) == 43  # 256 bits in base64
    assert stat.S_IMODE(keys_file(settings).stat().st_mode) == 0o600
    (row,) = list_keys(settings)
    assert row.row() | {"created": ""} == {
        "id": key_id, "name": "web", "scopes": "ingest, storefront", "created": ""
    }  # fmt: skip
    assert create_key(settings, name="web", scopes=["storefront"]) != key
    assert [file.name for file in settings.home.glob(".*")] == []  # nothing left aside


def test_a_revoked_key_is_gone_and_an_unknown_one_is_named(settings: Settings) -> None:
    first, second = (create_key(settings, name="web", scopes=["storefront"]) for _ in range(2))
    assert revoke_key(settings, first.split("_")[1]).name == "web"
    assert [key.id for key in list_keys(settings)] == [second.split("_")[1]]
    with pytest.raises(RecflowError, match=second.split("_")[1]):
        revoke_key(settings, "nobody")


@pytest.mark.parametrize(
    ("name", "scopes"),
    [("web", []), ("web", ["everything"]), ("", ["admin"]), ("a\nb", ["admin"]), ("x" * 65, ["admin"])],
)
def test_a_key_without_scope_or_name_is_refused(settings: Settings, name: str, scopes: list[str]) -> None:
    with pytest.raises(RecflowError, match="expected"):
        create_key(settings, name=name, scopes=scopes)
    assert list_keys(settings) is None


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", '{"keys": [{}]}',
     '{"keys": [{"id": "a", "name": "n", "scopes": ["x"], "sha256": "00", "created": ""}]}'],
)  # fmt: skip
def test_a_broken_file_is_refused_at_the_start(settings: Settings, content: str) -> None:
    keys_file(settings).parent.mkdir(parents=True, exist_ok=True)
    keys_file(settings).write_text(content)
    with pytest.raises(RecflowError, match="expected the keys"):
        Keyring(settings)


# -- while serving


def test_keys_are_followed_while_serving(settings: Settings) -> None:
    ring = Keyring(settings)
    assert ring.is_open
    key = create_key(settings, name="web", scopes=["storefront"])
    ring.follow()
    assert ring.find(f"Bearer {key}".encode()).name == "web"
    with pytest.raises(Problem):
        ring.find(None)
    revoke_key(settings, key.split("_")[1])
    ring.follow()
    assert not ring.is_open  # the last key that is revoked closes the door
    with pytest.raises(Problem):
        ring.find(f"Bearer {key}".encode())


def test_a_file_that_breaks_or_goes_changes_nothing_but_says_so(settings: Settings) -> None:
    key = f"Bearer {create_key(settings, name='web', scopes=['storefront'])}".encode()
    ring = Keyring(settings)
    whole = keys_file(settings).read_text()
    for damage in (lambda: keys_file(settings).write_text("{"), lambda: keys_file(settings).unlink()):
        damage()
        ring.follow()
        assert ring.find(key).name == "web"
        assert ring.trouble
    keys_file(settings).write_text(whole)
    ring.follow()
    assert ring.trouble is None


def test_a_broken_file_closes_a_door_that_was_open(settings: Settings) -> None:
    ring = Keyring(settings)
    settings.home.mkdir(parents=True)
    keys_file(settings).write_text("{")
    ring.follow()
    assert not ring.is_open


@pytest.mark.parametrize(
    "authorization",
    ["", "Bearer", "Bearer ", "Bearer rf_", "Bearer {id}", "Bearer rf_{id}_", "Bearer rf_{id}_{wrong}", "{key}",
     "Basic {key}", "Bearer {key}x", "Bearer {key} ", "Bearer rf_000000000000_{secret}", "Bearer {other}", "Bearer é"],
)  # fmt: skip
def test_what_is_no_key_in_force_is_a_401(settings: Settings, tmp_path: Path, authorization: str) -> None:
    key = create_key(settings, name="web", scopes=["storefront"])
    other = create_key(load_settings(home=tmp_path / "elsewhere"), name="web", scopes=["storefront"])
    _, key_id, secret = key.split("_", 2)
    wrong = secret[:-2] + ("AA" if secret[-2:] != "AA" else "BB")
    filled = authorization.format(id=key_id, key=key, secret=secret, wrong=wrong, other=other)
    with pytest.raises(Problem) as refused:
        Keyring(settings).find(filled.encode())
    assert refused.value.status == 401
    assert dict(refused.value.headers)[b"www-authenticate"].startswith(b"Bearer")


# -- calls


@pytest.mark.parametrize("name", [*(route.name for route in TABLE), *(f"real:{route.name}" for route in table())])
def test_every_call_needs_its_own_scope(open_door: Callable[..., Door], settings: Settings, name: str) -> None:
    routes = table() if name.startswith("real:") else TABLE
    route = next(route for route in routes if route.name == name.removeprefix("real:"))
    keys = {scope: create_key(settings, name=scope, scopes=[scope]) for scope in SCOPES}
    everything_else = [scope for scope in SCOPES if scope != route.scope]
    keys["others"] = create_key(settings, name="others", scopes=everything_else)
    door = open_door(settings.home, routes)
    if route.scope is None:
        assert walk(door, route, {}) == 200
        return
    assert walk(door, route, {}) == 401
    assert walk(door, route, bearer(keys["admin"][:-1])) == 401
    for scope, key in keys.items():
        is_let_in = walk(door, route, bearer(key)) not in (401, 403)
        assert is_let_in == (scope == route.scope or route.scope == "any"), scope


def test_refusals_name_the_problem_and_are_counted(open_door: Callable[..., Door], settings: Settings) -> None:
    def count(why: str) -> float:
        return REGISTRY.get_sample_value("recflow_refused_total", {"why": why}) or 0.0

    key = create_key(settings, name="web", scopes=["ingest"])
    door = open_door(settings.home)
    before = count("key"), count("scope")
    refused = door.ask("POST", "/v1/double", json={"number": 1})
    problem(refused, 401)
    assert refused.headers["www-authenticate"] == "Bearer"
    said = problem(door.ask("POST", "/v1/double", json={"number": 1}, headers=bearer(key)), 403)
    assert "storefront" in said["detail"]
    assert (count("key"), count("scope")) == (before[0] + 1, before[1] + 1)
    # Who isn't let in has nothing read: not even that the body is bad.
    problem(door.ask("POST", "/v1/double", content=b"{oops"), 401)
    problem(door.ask("POST", "/v1/nothing", content=b"{}"), 404)


def test_pages_need_no_key(open_door: Callable[..., Door], settings: Settings) -> None:
    create_key(settings, name="web", scopes=["storefront"])
    door = open_door(settings.home)
    assert door.ask("GET", "/openapi.json").status_code == 200
    assert door.ask("GET", "/readyz").status_code == 503
    assert door.ask("GET", "/metrics").status_code == 200


def test_metrics_need_a_key_where_others_can_ask(open_door: Callable[..., Door], settings: Settings) -> None:
    keys = {scope: create_key(settings, name=scope, scopes=[scope]) for scope in SCOPES}
    door = open_door(settings.home, host="0.0.0.0")
    problem(door.ask("GET", "/metrics"), 401)
    for scope, key in keys.items():
        status = door.ask("GET", "/metrics", headers=bearer(key)).status_code
        assert status == (200 if scope in ("admin", "metrics") else 403), scope
    assert door.ask("GET", "/openapi.json").status_code == 200


# -- without keys


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "shop.example"])
def test_without_keys_other_machines_are_kept_out_at_the_start(settings: Settings, host: str) -> None:
    abroad = load_settings(home=settings.home, serving={"host": host})
    with pytest.raises(SettingsError, match="recflow keys create"):
        refuse_open_doors(abroad)
    with pytest.raises(SettingsError):
        Keyring(abroad)
    create_key(abroad, name="web", scopes=["storefront"])
    assert not Keyring(abroad).is_open


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.1.2.3"])
def test_without_keys_the_loopback_is_open(settings: Settings, host: str) -> None:
    assert Keyring(load_settings(home=settings.home, serving={"host": host})).is_open


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "127.0.0.1:3000"}, 200),
        ({"host": "localhost"}, 200),
        ({"host": "[::1]:3000"}, 200),
        ({"host": "evil.example:3000"}, 401),  # a name that somebody made to mean the loopback
        ({"host": "localhost.evil.example"}, 401),
        ({"host": "127.0.0.1.evil.example"}, 401),
        ({"host": "["}, 401),
        ({"host": ""}, 401),
        ({"host": "localhost:3000", "origin": "http://localhost:3000"}, 200),  # its own page
        ({"host": "localhost:3000", "origin": "https://evil.example"}, 403),  # a page of anybody's
        ({"host": "localhost:3000", "origin": "http://localhost:8000"}, 403),
        ({"host": "localhost:3000", "origin": "null"}, 403),
    ],
)
def test_without_keys_only_this_machine_gets_in(door: Door, headers: dict[str, str], status: int) -> None:
    answer = door.ask("POST", "/v1/double", json={"number": 1}, headers=headers)
    assert answer.status_code == status
    if status != 200:
        problem(answer, status)


def test_without_keys_an_address_that_others_reach_is_no_loopback(door: Door) -> None:
    """The address is the connection's own, whatever host BentoML was told to listen at."""
    messages = [{"type": "http.request", "body": b'{"number": 1}'}]
    for address, status in (("127.0.0.1", 200), ("192.168.1.5", 401)):
        assert door.send({"server": (address, 3000)}, messages)[0]["status"] == status


# -- pages of other sites


@pytest.mark.parametrize(
    ("allowed", "origin", "is_let"),
    [
        (["https://shop.example"], "https://shop.example", True),
        (["https://shop.example"], "https://evil.example", False),
        (["https://shop.example"], "https://shop.example.evil.example", False),
        (["*"], "https://anybody.example", True),
        ([], "https://shop.example", False),
    ],
)
def test_pages_of_other_sites_may_ask_where_settings_name_them(
    open_door: Callable[..., Door], settings: Settings, allowed: list[str], origin: str, is_let: bool
) -> None:
    key = create_key(settings, name="web", scopes=["storefront"])
    door = open_door(settings.home, cors_origins=allowed)
    ask: dict[str, Any] = {"json": {"number": 1}, "headers": bearer(key) | {"origin": origin}}
    answers = [door.ask("POST", "/v1/double", **ask), door.ask("POST", "/v1/double", json={}, headers=ask["headers"])]
    preflight = door.ask("OPTIONS", "/v1/double", headers={"origin": origin, "access-control-request-method": "POST"})
    assert [answer.status_code for answer in (*answers, preflight)] == [200, 422, 204]
    for answer in (*answers, preflight):
        assert answer.headers.get("access-control-allow-origin") == (origin if is_let else None)
        assert answer.headers.get("vary") == ("origin" if allowed else None)
        assert "access-control-allow-credentials" not in answer.headers
    assert ("access-control-allow-methods" in preflight.headers) == is_let
    if is_let:
        assert preflight.headers["access-control-allow-headers"] == "authorization, content-type"


def test_keys_are_json_that_another_program_can_read(settings: Settings) -> None:
    create_key(settings, name="web", scopes=["storefront"])
    (row,) = json.loads(keys_file(settings).read_text())["keys"]
    assert row.keys() == {"id", "name", "scopes", "sha256", "created"}


def test_the_shell_makes_lists_and_revokes_keys(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECFLOW_HOME", str(settings.home))

    def say(*arguments: str) -> str:
        result = CliRunner().invoke(cli.app, ["keys", *arguments], catch_exceptions=False)
        assert result.exit_code == 0
        return result.stdout.strip()

    assert say("list") == "None."
    key = say("create", "--name", "web", "--scope", "storefront", "--scope", "ingest")
    assert Keyring(settings).find(f"Bearer {key}".encode()).scopes == {"storefront", "ingest"}
    (row,) = json.loads(say("list", "--json"))
    assert key.split("_", 2)[2] not in say("list", "--json")
    assert say("revoke", row["id"]) == f"Key {row['id']} (web) is revoked."
    assert say("list") == "None."
