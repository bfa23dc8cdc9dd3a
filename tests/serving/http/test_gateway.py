"""Whatever comes in, the answer is the call's, or a problem with the status that says whose fault it was."""

import json
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client import REGISTRY

from recflow.console import log
from tests.serving.http.conftest import Door, problem

ANY_DOOR = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=300)


def counted(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


def test_a_call_is_answered_with_its_own_id_and_safe_headers(door: Door) -> None:
    answer = door.ask("POST", "/v1/double", json={"number": 21})
    assert answer.status_code == 200
    assert answer.json() == {"doubled": 42, "name": "nobody", "request_id": answer.headers["x-request-id"]}
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"
    assert "access-control-allow-origin" not in answer.headers
    assert int(answer.headers["content-length"]) == len(answer.content)
    again = door.ask("POST", "/v1/double", json={"number": 21})
    assert again.headers["x-request-id"] != answer.headers["x-request-id"]


@pytest.mark.parametrize(
    ("method", "path", "content", "status", "field"),
    [
        ("POST", "/v1/double", b"{oops", 400, None),
        ("POST", "/v1/double", b"", 400, None),
        ("POST", "/v1/double", b"\xff\xfe", 400, None),
        ("POST", "/v1/double", b"[" * 10_000, 400, None),
        ("POST", "/v1/double", b'{"number": ' + b"[" * 500 + b"]" * 500 + b"}", 400, None),
        ("POST", "/v1/double", b'{"number": ' + b"9" * 5_000 + b"}", 400, None),
        ("POST", "/v1/double", b'{"number": 1, "name": "\\ud800"}', 400, None),
        ("POST", "/v1/double", b"[]", 422, ""),
        ("POST", "/v1/double", b'{"number": -1}', 422, "number"),
        ("POST", "/v1/double", b'{"number": NaN}', 422, "number"),
        ("POST", "/v1/double", b'{"number": 1e400}', 422, "number"),
        ("POST", "/v1/double", b"{}", 422, "number"),
        ("POST", "/v1/double", b'{"number": 1, "\xc3\xa9": 1}', 422, "\\xe9"),
        ("GET", "/v1/double", b"", 405, None),
        ("PATCH", "/v1/things/a", b"", 405, None),
        ("BREW", "/v1/double", b"", 405, None),
        ("POST", "/v1", b"{}", 404, None),
        ("POST", "/v1/double/", b"{}", 404, None),
        ("POST", "/V1/double", b"{}", 404, None),
        ("GET", "/v1/things", b"", 404, None),
        ("GET", "/v1/things/", b"", 404, None),
        ("GET", "/v1/things/a/b", b"", 404, None),
        ("GET", "/v1/things/%00", b"", 422, "item_id"),
        ("GET", "/v1/things/" + "x" * 129, b"", 422, "item_id"),
        ("GET", "/..%2f..%2fetc/passwd", b"", 404, None),
        ("GET", "/schema.json", b"", 404, None),
        ("GET", "/docs.json", b"", 404, None),
        ("PUT", "/metrics", b"", 405, None),
        ("POST", "/openapi.json", b"", 405, None),
        ("POST", "/v1/refuse", b'{"number": 1}', 503, None),
    ],
)
def test_errors_have_one_shape(
    door: Door, method: str, path: str, content: bytes, status: int, field: str | None
) -> None:
    answer = door.ask(method, path, content=content)
    said = problem(answer, status)
    assert [error["path"] for error in said.get("errors", [])][:1] == ([] if field is None else [field])
    assert answer.headers["cache-control"] == "no-store"
    if status == 405:
        assert answer.headers["allow"]
    if status == 503:
        assert answer.headers["retry-after"] == "7"


def test_mistakes_by_the_thousand_are_counted_and_not_named(door: Door) -> None:
    for number, named in ((99, 99), (500, 100), (5_000, 0)):
        body = {"number": 1} | {f"unknown {each}": 1 for each in range(number)}
        said = problem(door.ask("POST", "/v1/double", json=body), 422)
        assert said["detail"].startswith(f"{number} of the fields can't be taken")
        assert len(said.get("errors", [])) == named


def test_the_methods_of_a_path_are_told(door: Door) -> None:
    assert door.ask("PUT", "/v1/things/a").headers["allow"] == "DELETE, GET, HEAD, OPTIONS"
    told = door.ask("OPTIONS", "/v1/double")
    assert (told.status_code, told.headers["allow"], told.content) == (204, "OPTIONS, POST", b"")
    assert "access-control-allow-methods" not in told.headers
    problem(door.ask("OPTIONS", "/v1/nothing"), 404)


def test_head_is_get_without_the_body(door: Door) -> None:
    headers = [(b"host", b"127.0.0.1:3000")]
    scope = {"path": "/v1/things/a", "raw_path": b"/v1/things/a", "headers": headers}
    start = [door.send(scope | {"method": method}, [])[0] for method in ("GET", "HEAD")]
    assert start[0]["status"] == start[1]["status"] == 200
    lengths = [dict(each["headers"])[b"content-length"] for each in start]
    assert lengths[0] == lengths[1]  # the server leaves the body itself out
    problem(door.ask("POST", "/v1/things/a"), 405)


@pytest.mark.parametrize(
    ("raw", "item_id"), [("85123A", "85123A"), ("a%2Fb", "a/b"), ("%C3%A9", "é"), ("a%20b", "a b"), ("a+b", "a+b")]
)
def test_an_id_in_the_path_may_hold_any_character(door: Door, raw: str, item_id: str) -> None:
    assert door.ask("GET", f"/v1/things/{raw}?x=1").json()["item_id"] == item_id


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"content-type": "application/json"}, 200),
        ({"content-type": "Application/JSON; charset=utf-8"}, 200),
        ({}, 200),
        ({"content-type": "text/plain"}, 415),
        ({"content-type": "application/x-www-form-urlencoded"}, 415),
        ({"content-type": ""}, 415),
        ({"content-encoding": "identity"}, 200),
        ({"content-encoding": "gzip"}, 415),
    ],
)
def test_bodies_are_plain_json(door: Door, headers: dict[str, str], status: int) -> None:
    answer = door.ask("POST", "/v1/double", content=b'{"number": 1}', headers=headers)
    assert answer.status_code == status
    if status == 415:
        problem(answer, 415)


@pytest.mark.parametrize("length", [b"2000", b"9" * 40, b"-1", b"1e3", b"\xb2"])
def test_a_length_beyond_the_limit_is_refused_unread(open_door: Callable[..., Door], length: bytes) -> None:
    door = open_door(max_body_bytes=1024)
    sent = door.send({"headers": [(b"host", b"localhost"), (b"content-length", length)]}, [])  # nothing to receive
    assert sent[0]["status"] == 413
    assert (b"connection", b"close") in sent[0]["headers"]


def test_a_body_that_grows_beyond_the_limit_is_cut_short(open_door: Callable[..., Door]) -> None:
    door = open_door(max_body_bytes=1024)
    taken = 0

    async def chunks() -> AsyncIterator[bytes]:
        nonlocal taken
        for _ in range(100):
            taken += 1
            yield b"x" * 512

    problem(door.ask("POST", "/v1/double", content=chunks()), 413)
    assert taken < 10
    exactly = b'{"number": 1, "name": "' + b"x" * (1024 - 25) + b'"}'
    assert len(exactly) == 1024
    assert door.ask("POST", "/v1/double", content=exactly).status_code == 200
    problem(door.ask("POST", "/v1/double", content=exactly + b" "), 413)


def test_a_body_that_never_gets_whole_is_given_up(open_door: Callable[..., Door]) -> None:
    door = open_door(body_seconds=0.05)
    sent = door.send({}, [{"type": "http.request", "body": b"{", "more_body": True}])
    assert sent[0]["status"] == 408
    assert (b"connection", b"close") in sent[0]["headers"]


def test_who_leaves_before_the_body_is_whole_gets_nothing(door: Door) -> None:
    parts = [{"type": "http.request", "body": b"{", "more_body": True}, {"type": "http.disconnect"}]
    assert door.send({}, parts) == []
    assert door.send({}, [{"type": "http.disconnect"}]) == []


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(log, "propagate", False)  # as the endpoint sets it
    log.addHandler(caplog.handler)
    caplog.set_level(logging.INFO, "recflow")
    yield caplog
    log.removeHandler(caplog.handler)


def test_a_call_that_breaks_is_a_500_that_tells_nobody_anything(door: Door, lines: Any) -> None:
    answer = door.ask("POST", "/v1/fail", json={"number": 1, "name": "a person"})
    said = problem(answer, 500)
    assert "person" not in answer.text
    assert "KeyError" not in answer.text
    (line,) = [record.getMessage() for record in lines.records]
    assert "fail failed with KeyError" in line
    assert said["request_id"] in line
    assert "conftest.py" in line  # where
    assert "person" not in line
    problem(door.ask("POST", "/v1/unwritable", json={"number": 1}), 500)


def test_the_request_log_says_how_it_went_and_not_what_was_asked(open_door: Callable[..., Door], lines: Any) -> None:
    door = open_door(request_log_share=1)
    door.ask("POST", "/v1/double?token=secret", json={"number": 1, "name": "a person"})
    door.ask("GET", "/v1/things/a-thing")
    door.ask("GET", "/a/path/of/theirs")
    said = [record.getMessage() for record in lines.records]
    assert [line.split(" ")[:2] for line in said] == [["double", "200"], ["thing", "200"], ["none", "404"]]
    assert not any(word in line for line in said for word in ("secret", "person", "a-thing", "theirs"))
    quiet = open_door()
    lines.clear()
    quiet.ask("POST", "/v1/double", json={"number": 1})
    assert not lines.records


def test_requests_are_counted_by_route_and_status(door: Door) -> None:
    def counts() -> list[float]:
        return [
            counted("recflow_requests_total", route="double", status="200"),
            counted("recflow_requests_total", route="double", status="422"),
            counted("recflow_requests_total", route="none", status="404"),
            counted("recflow_request_seconds_count", route="double"),
        ]

    before = counts()
    for number in (1, 2, -1):
        door.ask("POST", "/v1/double", json={"number": number})
    door.ask("GET", "/made/up/by/a/caller")
    assert [after - earlier for after, earlier in zip(counts(), before, strict=True)] == [2, 1, 1, 3]


def test_a_draining_worker_sends_its_callers_elsewhere(door: Door) -> None:
    assert "connection" not in door.ask("POST", "/v1/double", json={"number": 1}).headers
    door.shop.drain()
    assert door.ask("POST", "/v1/double", json={"number": 1}).headers["connection"] == "close"
    said = door.ask("GET", "/readyz")
    assert (said.status_code, said.json()["status"]) == (503, "draining")


def test_only_bentomls_health_check_is_handed_on(door: Door) -> None:
    before = len(door.passed_on)
    for path in ("/livez", "/healthz", "/readyz", "/v1/double"):
        door.send({"method": "GET", "path": path, "raw_path": path.encode()}, [])
    assert door.passed_on[before:] == ["/livez"]


def test_a_websocket_is_turned_away(door: Door) -> None:
    assert door.send({"type": "websocket"}, []) == [{"type": "websocket.close"}]


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=20,
)


@ANY_DOOR
@given(
    method=st.sampled_from(["POST", "GET", "HEAD", "OPTIONS", "DELETE", "PATCH", "\x00"]),
    path=st.sampled_from(["/v1/double", "/v1/batch", "/v1/things/", "/", "/v1/", "/metrics", "/page/", "/readyz"])
    | st.text(max_size=12),
    tail=st.text(max_size=12),
    headers=st.lists(
        st.tuples(
            st.sampled_from(
                [b"host", b"authorization", b"content-type", b"content-length", b"content-encoding", b"origin",
                 b"traceparent", b"access-control-request-method", b"accept"]
            ) | st.binary(max_size=8),
            st.binary(max_size=24) | st.sampled_from([b"127.0.0.1:3000", b"application/json", b"[", b"Bearer rf_"]),
        ),
        max_size=6,
    ),
    chunks=st.lists(st.binary(max_size=40) | VALUES.map(lambda value: json.dumps(value).encode()), max_size=3),
)  # fmt: skip
def test_no_bytes_make_it_fail(
    door: Door, method: str, path: str, tail: str, headers: list[tuple[bytes, bytes]], chunks: list[bytes]
) -> None:
    messages: list[dict[str, Any]] = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]
    messages += [{"type": "http.request", "body": b"", "more_body": False}]
    host = [(b"host", b"127.0.0.1:3000")]
    raw_path = (path + tail).encode("utf-8", "replace")
    scope = {"method": method, "path": path + tail, "raw_path": raw_path, "headers": host + headers}
    sent = door.send(scope, messages)
    if path + tail == "/livez":
        return
    assert sent[0]["status"] < 500 or path + tail == "/readyz"
    body = sent[1]["body"]
    if sent[0]["status"] >= 400 and path + tail != "/readyz":
        assert json.loads(body)["status"] == sent[0]["status"]
    assert all(b"\r" not in value and b"\n" not in value for _, value in sent[0]["headers"])


@ANY_DOOR
@given(body=VALUES)
def test_no_json_makes_it_fail(door: Door, body: Any) -> None:
    for path in ("/v1/double", "/v1/batch"):
        content = json.dumps(body).encode()
        assert door.ask("POST", path, content=content).status_code in (200, 400, 422)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"x-large": "v" * 60_000}, 200),
        ({"x-large": "v" * 70_000}, 431),
        ({f"x-{number}": "v" * 1_000 for number in range(66)}, 431),
    ],
    ids=["large", "too large", "too many"],
)
def test_absurd_headers_are_refused_wherever_they_go(door: Door, headers: dict[str, str], status: int) -> None:
    for path in ("/v1/free/a", "/openapi.json"):
        answer = door.ask("GET", path, headers=headers)
        assert answer.status_code == status, path
        if status == 431:
            problem(answer, 431)
            assert answer.headers["connection"] == "close"
