"""The real server over real HTTP: BentoML, keys, MLflow's alias, the online store, files of events."""

import contextlib
import json
import math
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import psutil
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given
from hypothesis import settings as hypothesis_settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from recflow.schema import Days
from recflow.serving.confirm import confirm_served
from recflow.serving.http.keys import SCOPES, create_key, revoke_key
from recflow.serving.http.table import table
from recflow.serving.server import Server, running, start, wait_until_up
from recflow.settings import Settings, load_settings
from tests.services.asking import USER, ask, on_disk, post, problem, status_of, view, wait_for, whole_lines
from tests.serving import line_shop

pytestmark = [
    pytest.mark.servers,
    # mlflow 3 asks SQLAlchemy for a loader that is deprecated.
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated"),
]
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
CASES = 2_000  # of the description's calls, all together


@dataclass(frozen=True)
class Shop:
    settings: Settings
    days: Days
    headers: dict[str, str]  # with a key of all scopes


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    settings = load_settings(
        home=tmp_path_factory.mktemp("storefront") / "var",
        serving={"drain_seconds": 0.5, "poll_seconds": 0.2, "max_body_bytes": 500_000},
    )
    key = create_key(settings, name="tests", scopes=list(SCOPES))
    return Shop(settings, line_shop.prepare(settings), {"authorization": f"Bearer {key}"})


@pytest.fixture(scope="module")
def server(shop: Shop) -> Iterator[Server]:
    with running(shop.settings, port=0, wait_ready=False) as up:
        yield up


@pytest.fixture(scope="module")
def client(server: Server, shop: Shop) -> Iterator[httpx.Client]:
    with connect(server, shop) as client:
        yield client


def connect(server: Server, shop: Shop) -> httpx.Client:
    """Return a client with connections of its own."""
    return httpx.Client(base_url=server.url, timeout=20, headers=shop.headers)


@pytest.fixture(scope="module")
def champion(shop: Shop, server: Server, client: httpx.Client) -> str:
    """Publish the first version: what answers is not ready before."""
    wait_for(lambda: client.get("/readyz").status_code == 503)
    version = line_shop.publish(shop.days, shop.settings)
    wait_until_up(server, ready=True)
    return version


def test_before_the_first_version_it_lives_but_is_not_ready(client: httpx.Client) -> None:
    assert client.get("/livez").status_code == 200
    wait_for(lambda: client.get("/readyz").status_code == 503)
    for answer in (client.post("/v1/recommend", json={}), client.get("/v1/model")):
        assert problem(answer)["status"] == 503
        assert answer.headers["retry-after"] == "1"
    # Feedback is kept all the same.
    assert post(client, view(0, event_id="early"))["accepted"] == 1


def test_a_known_customer_gets_items_with_titles_and_reasons(client: httpx.Client, champion: str) -> None:
    answer = ask(client, user_id=USER, k=10)
    assert answer["model_version"] == champion
    assert answer["fallback"] is None
    assert len(answer["items"]) == 10
    assert all(item["title"] and item["reason"]["text"] for item in answer["items"])
    assert {item["reason"]["kind"] for item in answer["items"]} & {"bought_before", "bought_together"}
    assert client.get("/readyz").status_code == 200
    said = client.get("/v1/model").json()
    assert (said["model_version"], said["until"], said["model_class"]) == (champion, "2011-02-11", "EASE")
    assert said["trained_at"] == line_shop.TRAINED_AT
    assert said["trained_at"] < said["published_at"] <= said["promoted_at"]
    assert said["snapshot_hash"]
    assert said["counts"]["items"] == said["n_items"]
    assert said["counts"]["events"] > 0
    assert said["verdict"]["sentences"] == ["Passed."]


def test_an_event_posted_changes_the_next_answer(client: httpx.Client, champion: str) -> None:
    before = ask(client, user_id=USER, k=39)
    new = next(item["item_id"] for item in before["items"] if item["reason"]["kind"] != "bought_before")
    purchase = {"event_id": "buy", "event_type": "purchase", "user_id": USER, "item_id": new.lower(),
                "event_timestamp": "2011-02-12T10:00:00Z", "request_id": before["request_id"]}  # fmt: skip
    assert post(client, purchase) | {"request_id": ""} == {
        "request_id": "", "accepted": 1, "duplicates": 0, "rejected": []
    }  # fmt: skip
    assert post(client, purchase)["duplicates"] == 1
    after = ask(client, user_id=USER, k=39)
    assert [item["score"] for item in after["items"]] != [item["score"] for item in before["items"]]
    assert after["as_of"] == "2011-02-12T10:00:00Z"
    unseen = ask(client, user_id=USER, k=39, filters={"new_only": True})
    assert new not in [item["item_id"] for item in unseen["items"]]


def test_strangers_and_sessions_are_answered_and_say_so(client: httpx.Client, champion: str) -> None:
    assert ask(client, user_id="nobody", context={"country": "Germany"})["fallback"]["kind"] == "popularity"
    assert ask(client, session=[{"item_id": "20000"}])["fallback"]["kind"] == "session_only"
    similar = client.post("/v1/similar", json={"item_id": "20000", "k": 5}).json()
    assert len(similar["items"]) == 5


def test_each_event_is_judged_by_itself(client: httpx.Client, champion: str) -> None:
    answer = post(client, view(1), {"event_type": "lost"}, view(2, user_id=""))
    assert answer["accepted"] == 1
    assert [event["index"] for event in answer["rejected"]] == [1, 2]
    assert answer["rejected"][1]["errors"][0]["path"] == "user_id"
    refused = client.post("/v1/events", json={"events": [{"event_type": "lost"}]})
    assert problem(refused)["errors"][0]["path"] == "events.0.event_type"
    assert refused.status_code == 422


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "field"),
    [
        ("POST", "/v1/recommend", b"{oops", 400, None),
        ("POST", "/v1/recommend", b"", 400, None),
        ("POST", "/v1/recommend", b"\xff\xfe", 400, None),
        ("POST", "/v1/recommend", b"[" * 10_000, 400, None),
        ("POST", "/v1/recommend", b"[]", 422, ""),
        ("POST", "/v1/recommend", b'{"k": 201}', 422, "k"),
        ("POST", "/v1/recommend", b'{"k": 1e400}', 422, "k"),
        ("POST", "/v1/recommend", b'{"k": ' + b"9" * 5_000 + b"}", 400, None),
        ("POST", "/v1/recommend", b'{"session": [{"item_id": ""}]}', 422, "session.0.item_id"),
        ("POST", "/v1/recommend", b'{"filters": {"price_min": 2, "price_max": 1}}', 422, "filters"),
        ("POST", "/v1/recommend", b'{"\xc3\xa9": 1}', 422, "\\xe9"),
        ("POST", "/v1/recommend", b'{"user_id": "\\ud800"}', 400, None),
        ("POST", "/v1/similar", b"{}", 422, "item_id"),
        ("POST", "/v1/similar", b'{"item_id": "unheard of"}', 404, "item_id"),
        ("POST", "/v1/events", b'{"events": []}', 422, "events"),
        ("POST", "/v1/events", json.dumps({"events": [{}] * 1001}).encode(), 422, "events"),
        ("POST", "/v1/events", b'{"events": [{}]}', 422, "events.0.event_type"),
        ("POST", "/v1/events", b"x" * 500_001, 413, None),
        ("GET", "/v1/recommend", b"", 405, None),
        ("DELETE", "/v1/model", b"", 405, None),
        ("POST", "/v1/nothing", b"{}", 404, None),
        ("GET", "/nothing/at/all", b"", 404, None),
        ("PUT", "/nothing", b"", 404, None),
    ],
)
def test_bad_input_is_told_in_one_shape(
    client: httpx.Client, champion: str, method: str, path: str, body: bytes, status: int, field: str | None
) -> None:
    answer = client.request(method, path, content=body)
    assert answer.status_code == status, answer.text
    content = problem(answer)
    if field is not None:
        assert content["errors"][0]["path"] == field
    if status == 405:
        assert answer.headers["allow"] in ("GET, HEAD, OPTIONS", "OPTIONS, POST")


def test_a_body_that_grows_beyond_the_limit_is_cut_short(client: httpx.Client, champion: str) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(40):
            yield b"x" * 65_536

    with contextlib.suppress(httpx.TransportError):  # closed while we were still sending: as good
        assert problem(client.post("/v1/events", content=chunks()))["status"] == 413
    assert client.get("/livez").status_code == 200


def test_metrics_count_what_happened_and_name_nobody(client: httpx.Client, champion: str) -> None:
    page = client.get("/metrics").text
    assert f'recflow_model_version{{version="{champion}"}} 1.0' in page
    assert 'recflow_requests_total{route="recommend",status="200"}' in page
    assert 'recflow_requests_total{route="none",status="404"}' in page
    assert 'recflow_fallbacks_total{kind="popularity"}' in page
    assert 'recflow_events_total{outcome="accepted"}' in page
    assert 'recflow_request_seconds_bucket{le="0.064",route="recommend"}' in page
    wait_for(lambda: "recflow_ready 1.0" in client.get("/metrics").text)
    assert USER not in page
    assert "/nothing" not in page


def test_a_promotion_is_served_without_restart_and_no_request_fails(
    client: httpx.Client, server: Server, shop: Shop, champion: str
) -> None:
    statuses, stop = [], threading.Event()
    lists: set[tuple[Any, ...]] = set()  # what was answered, after the version that answered

    def burst() -> None:
        with connect(server, shop) as own:
            while not stop.is_set():
                answer = own.post("/v1/recommend", json={"user_id": USER, "k": 5})
                statuses.append(answer.status_code)
                said = answer.json()
                lists.add((said["model_version"], *((item["item_id"], item["score"]) for item in said["items"])))

    threads = [threading.Thread(target=burst) for _ in range(2)]
    for thread in threads:
        thread.start()
    pid = server.process.pid
    try:
        version = line_shop.publish(shop.days, shop.settings, model="repeat_purchase")
        assert version != champion
        port = int(server.url.rsplit(":", 1)[1])
        settings = load_settings(home=shop.settings.home, serving={"port": port})
        assert confirm_served(version, settings).manifest == {"version": version, "served": True}
        time.sleep(0.3)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert set(statuses) == {200}
    assert sorted(each[0] for each in lists) == sorted({champion, version})  # one list a version: none is mixed
    assert client.get("/readyz").json()["versions_served"] == [version]
    assert client.get("/v1/model").json()["model_class"] == "RepeatPurchase"
    assert server.process.pid == pid
    assert server.process.poll() is None


def test_keys_come_into_force_and_go_while_it_serves(server: Server, shop: Shop, champion: str) -> None:
    def status(headers: dict[str, str]) -> int:
        return httpx.get(f"{server.url}/v1/model", headers=headers).status_code

    assert status({}) == 401
    key = create_key(shop.settings, name="shop", scopes=["storefront"])
    headers = {"authorization": f"Bearer {key}"}
    wait_for(lambda: status(headers) == 200)
    events = httpx.post(f"{server.url}/v1/events", json={"events": [view(1)]}, headers=headers)
    assert problem(events)["status"] == 403
    revoke_key(shop.settings, key.split("_")[1])
    wait_for(lambda: status(headers) == 401)


def test_no_case_of_the_description_makes_it_fail(server: Server, shop: Shop, champion: str) -> None:
    """Ask what the description allows and what it doesn't; answers are as described, and nobody is to blame but us."""
    description = httpx.get(f"{server.url}/openapi.json").json()
    schema = schemathesis.openapi.from_dict(description)
    operations = [found.ok() for found in schema.get_all_operations()]
    assert {f"{route.method} {route.path}" for route in table()} == {operation.label for operation in operations}
    modes = (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
    asked = 0
    with requests.Session() as session:
        session.headers.update(shop.headers)

        def check(case: schemathesis.Case) -> None:
            nonlocal asked
            asked += 1
            case.call_and_validate(base_url=server.url, session=session, checks=CHECKS)

        for operation in operations:
            for mode in modes:
                cases = hypothesis_settings(
                    max_examples=math.ceil(CASES / len(operations) / len(modes)),
                    deadline=None, database=None, derandomize=True, phases=[Phase.generate],
                    suppress_health_check=list(HealthCheck),
                )  # fmt: skip
                cases(given(case=operation.as_strategy(generation_mode=mode))(check))()
    assert asked >= CASES * 0.95  # hypothesis leaves out what it had before


def test_killed_in_the_middle_of_writes_it_comes_back_with_every_acknowledged_event_and_ends_cleanly(
    server: Server, shop: Shop, champion: str
) -> None:
    # The last test of the module: it ends the module's server.
    acknowledged: list[str] = []

    def post_many(part: int) -> None:
        with connect(server, shop) as own:
            for number in range(100_000):
                batch = [view(0, event_id=f"k{part}-{number}-{each}", user_id="killed") for each in range(25)]
                try:
                    assert post(own, *batch)["accepted"] == 25
                except httpx.TransportError:
                    return
                acknowledged.extend(event["event_id"] for event in batch)

    threads = [threading.Thread(target=post_many, args=(part,)) for part in range(3)]
    for thread in threads:
        thread.start()
    workers = psutil.Process(server.process.pid).children()
    wait_for(lambda: len(acknowledged) > 500)
    server.process.kill()  # first: it would start the workers anew
    for worker in workers:
        worker.kill()
    for thread in threads:
        thread.join(timeout=30)
    found = whole_lines(shop.settings)
    assert set(acknowledged) <= set(found)
    assert len(found) == len(set(found))

    up = start(shop.settings, port=0)
    try:
        wait_until_up(up, ready=True)
        assert on_disk(shop.settings) == found  # nothing torn is left, nothing whole is gone
        with connect(up, shop) as client:
            assert post(client, view(0, event_id=acknowledged[-1], user_id="killed"))["duplicates"] == 1
            assert ask(client, user_id="killed", k=1)["fallback"]["kind"] == "session_only"
        end_under_load(up, shop)
    finally:
        up.stop()


def end_under_load(up: Server, shop: Shop) -> None:
    """Tell the server to end while callers hold connections: it turns them away and drops none of their requests."""
    statuses: list[int] = []
    turned_away: list[bool] = []

    def ask_on() -> None:
        with connect(up, shop) as own:
            while True:
                answer = own.post("/v1/recommend", json={"user_id": USER, "k": 3})
                statuses.append(answer.status_code)
                if answer.headers.get("connection") == "close":  # a load balancer goes elsewhere now
                    turned_away.append(True)
                    return

    threads = [threading.Thread(target=ask_on) for _ in range(4)]
    for thread in threads:
        thread.start()
    workers = psutil.Process(up.process.pid).children()
    wait_for(lambda: len(statuses) > 20)
    up.process.send_signal(signal.SIGTERM)
    wait_for(lambda: status_of(up.url + "/readyz") == 503, 5)
    for thread in threads:
        thread.join(timeout=30)
    assert set(statuses) == {200}
    assert len(turned_away) == 4  # each heard it with an answer, none by a broken connection
    up.process.wait(20)
    assert not any(worker.is_running() for worker in workers)
