"""What a worker says of itself, what its watcher follows, and whom it knows by what name."""

import asyncio
import http.server
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY

from recflow.errors import PublishError
from recflow.privacy import pseudonym
from recflow.serving.confirm import confirm_served
from recflow.serving.http.calls import events
from recflow.serving.http.routes import Call
from recflow.serving.http.shop import Shop
from recflow.serving.http.watching import Watcher
from recflow.serving.requests import EventsRequest
from recflow.settings import load_settings
from tests.serving.http.conftest import TABLE, Door, named, problem, route


def gauge(name: str, **labels: str) -> float | None:
    return REGISTRY.get_sample_value(name, labels)


class Loaded:
    """Stands in for a version that answers."""

    version = "7"

    @staticmethod
    def resolve(item_id: str) -> str:
        return item_id.upper()


# -- how it is


def test_it_is_ready_with_a_version_and_says_what_it_does_without(door: Door) -> None:
    said = door.ask("GET", "/readyz")
    assert (said.status_code, said.json()["status"], said.json()["model_version"]) == (503, "not ready", None)
    door.shop.slot.current = Loaded()
    said = door.ask("GET", "/readyz")
    assert (said.status_code, said.json()["status"], said.json()["model_version"]) == (200, "ready", "7")
    assert said.json()["degraded"] == []
    troubles = {
        "registry": lambda: setattr(door.shop.slot, "_complaint", "away"),
        "model": lambda: setattr(door.shop.slot, "refusal", "version 8 is refused"),
        "keys": lambda: setattr(door.shop.keys, "trouble", "gone"),
        "events": lambda: door.shop.note_events("No space left on device"),
        "online_store": lambda: door.shop.store.leave_alone("too slow"),
    }
    for place, (part, break_it) in enumerate(troubles.items(), start=1):
        assert gauge("recflow_degraded", part=part) == 0
        break_it()
        said = door.ask("GET", "/readyz")
        assert (said.status_code, said.json()["status"]) == (200, "degraded")  # it answers all the same
        assert part in {each["part"] for each in said.json()["degraded"]}
        assert len(said.json()["degraded"]) == place
        assert gauge("recflow_degraded", part=part) == 1
    door.shop.note_events(None)
    assert "events" not in {each["part"] for each in door.ask("GET", "/readyz").json()["degraded"]}


def test_events_that_cannot_be_kept_are_a_503_until_they_can(
    open_door: Callable[..., Door], monkeypatch: pytest.MonkeyPatch
) -> None:
    door = open_door(routes=(route("events", events, scope="ingest", request=EventsRequest),))
    door.shop.slot.current = Loaded()
    body = {"events": [{"event_id": "e", "event_type": "view", "user_id": "u", "item_id": "a"}]}

    async def full(rows: Any) -> Any:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(door.shop.event_log, "append_async", full)
        refused = door.ask("POST", "/v1/events", json=body)
        problem(refused, 503)
        assert refused.headers["retry-after"] == "5"
        assert door.ask("GET", "/readyz").json()["degraded"][0]["part"] == "events"
    assert door.ask("POST", "/v1/events", json=body).json()["accepted"] == 1
    assert door.ask("GET", "/readyz").json()["degraded"] == []


# -- what it follows


def test_the_watcher_outlives_what_it_meets_and_keys_do_not_wait_for_a_version(
    open_door: Callable[..., Door], caplog: pytest.LogCaptureFixture
) -> None:
    door = open_door(poll_seconds=0.01)
    seen, loading = [], threading.Event()

    def follow() -> None:
        seen.append("keys")
        if len(seen) == 1:
            raise RuntimeError("broken")

    door.shop.keys.follow = follow
    door.shop.slot.refresh = lambda: loading.wait(10)  # a version that loads for long

    async def watch() -> None:
        task = asyncio.create_task(Watcher(door.shop).run())
        for _ in range(500):
            await asyncio.sleep(0.01)
            if len(seen) > 5:
                break
        task.cancel()
        loading.set()
        with pytest.raises(asyncio.CancelledError):
            await task

    door.runner.run(watch())
    assert len(seen) > 5
    assert sum("broken" in record.exc_text for record in caplog.records if record.exc_text) == 1


# -- names


async def echo(shop: Shop, call: Call) -> Any:
    return {"user_id": call.params.get("user_id") or call.body.name}


def test_behind_the_door_users_are_known_by_their_pseudonyms(tmp_path: Path) -> None:
    settings = load_settings(home=tmp_path / "var", privacy={"pseudonym_key": "k" * 32})
    routes = (
        route("profile", echo, method="GET", path="/v1/profile/{user_id}", request=None,
              example_params={"user_id": "u"}),
        route("events", events, scope="ingest", request=EventsRequest),
    )  # fmt: skip
    door = Door(settings, routes)
    try:
        said = door.ask("GET", "/v1/profile/17850.0").json()["user_id"]
        assert said == pseudonym("17850.0", settings) != "17850.0"
        assert door.ask("GET", f"/v1/profile/{said}").json()["user_id"] == said
        event = {"event_id": "e", "event_type": "view", "user_id": "17850.0", "item_id": "a"}
        assert door.ask("POST", "/v1/events", json={"events": [event]}).json()["accepted"] == 1
        kept = "".join(file.read_text() for file in tmp_path.rglob("*.jsonl"))
        assert said in kept
        assert "17850" not in kept
    finally:
        door.close()


# -- a promotion


@pytest.fixture
def endpoint() -> Iterator[tuple[int, list[bytes]]]:
    """Return a port at which /readyz says what is put into the list, the last one for ever."""
    answers: list[bytes] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            assert self.path == "/readyz"
            self.send_response(200)
            self.end_headers()
            self.wfile.write(answers.pop(0) if len(answers) > 1 else answers[0])

        def log_message(self, *arguments: Any) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield server.server_port, answers
    server.shutdown()
    server.server_close()


def test_a_promotion_is_done_when_all_workers_answer_from_it(
    endpoint: tuple[int, list[bytes]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("recflow.serving.confirm._ASK_AGAIN_SECONDS", 0.01)
    port, answers = endpoint
    settings = load_settings(home=tmp_path, serving={"port": port, "confirm_seconds": 30})
    answers += [json.dumps({"versions_served": served}).encode() for served in (["6"], ["6", "7"], ["7"])]
    assert confirm_served("7", settings).manifest == {"version": "7", "served": True}
    assert len(answers) == 1
    settings = load_settings(home=tmp_path, serving={"port": port, "confirm_seconds": 0.1})
    for wrong in (b'{"versions_served": ["6", "7"]}', b'{"versions_served": []}', b"not JSON", b"[]"):
        answers[:] = [wrong]
        with pytest.raises(PublishError, match="expected version 7"):
            confirm_served("7", settings)


def test_where_nothing_listens_there_is_nothing_to_confirm(tmp_path: Path) -> None:
    settings = load_settings(home=tmp_path, serving={"port": 1})
    assert confirm_served("7", settings).manifest == {"version": "7", "served": False}


def test_the_table_of_the_tests_has_calls_of_every_kind() -> None:
    assert {entry.method for entry in TABLE} == {"GET", "POST", "DELETE"}
    assert {entry.scope for entry in TABLE} == {None, "storefront", "ingest", "admin", "any"}
    assert named in {entry.handler for entry in TABLE}
