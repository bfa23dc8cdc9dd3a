"""The real server over real HTTP: BentoML, MLflow's alias, Feast's online store, files of events."""

import contextlib
import json
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

import httpx
import psutil
import pytest

from recflow.schema import Days
from recflow.serving.confirm import confirm_served
from recflow.serving.server import Server, running, start, wait_until_up
from recflow.settings import Settings, load_settings
from tests.serving import line_shop

pytestmark = [
    pytest.mark.servers,
    # mlflow 3 asks SQLAlchemy for a loader that is deprecated.
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated"),
]
USER = "12346.0"


@dataclass(frozen=True)
class Shop:
    settings: Settings
    days: Days


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    settings = load_settings(
        home=tmp_path_factory.mktemp("storefront") / "var",
        serving={"drain_seconds": 0.5, "poll_seconds": 0.2, "max_body_bytes": 500_000},
    )
    return Shop(settings, line_shop.prepare(settings))


@pytest.fixture(scope="module")
def server(shop: Shop) -> Iterator[Server]:
    with running(shop.settings, port=0, wait_ready=False) as up:
        yield up


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=20) as client:
        yield client


@pytest.fixture(scope="module")
def champion(shop: Shop, server: Server, client: httpx.Client) -> str:
    """Publish the first version: what answers is not ready before."""
    wait_for(lambda: client.get("/readyz").status_code == 503)
    version = line_shop.publish(shop.days, shop.settings)
    wait_until_up(server, ready=True)
    return version


def wait_for(condition, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it didn't happen in time"
        time.sleep(0.05)


def ask(client: httpx.Client, **request: object) -> dict:
    answer = client.post("/v1/recommend", json=request)
    assert answer.status_code == 200, answer.text
    return answer.json()


def post(client: httpx.Client, *events: dict) -> dict:
    answer = client.post("/v1/events", json={"events": list(events)})
    assert answer.status_code == 200, answer.text
    return answer.json()


def view(number: int, **more: object) -> dict:
    return {"event_id": f"v{number}", "event_type": "view", "user_id": "u", "item_id": "20000",
            "event_timestamp": "2011-02-12T09:00:00Z"} | more  # fmt: skip


def on_disk(settings: Settings) -> list[str]:
    folder = settings.home / "landing" / "feedback" / "events"
    lines = [line for file in sorted(folder.glob("*.jsonl")) for line in file.read_text().splitlines()]
    return [json.loads(line)["event_id"] for line in lines]


def problem(answer: httpx.Response) -> dict:
    assert answer.headers["content-type"] == "application/problem+json"
    assert "Traceback" not in answer.text
    content = answer.json()
    assert content["status"] == answer.status_code
    assert {"type", "title", "detail"} <= set(content)
    return content


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
    assert "bought_before" in {item["reason"]["kind"] for item in answer["items"]}
    assert client.get("/readyz").status_code == 200
    said = client.get("/v1/model").json()
    assert (said["model_version"], said["until"], said["model_class"]) == (champion, "2011-02-11", "EASE")


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
    reason = next(item["reason"] for item in after["items"] if item["item_id"] == new)
    assert reason["text"] == "You bought this once, last on 2011-02-12."
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
        ("PUT", "/", b"", 404, None),
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
        assert answer.headers["allow"] in ("GET", "POST")


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
    statuses, versions, stop = [], [], threading.Event()

    def burst() -> None:
        with httpx.Client(base_url=server.url, timeout=20) as own:
            while not stop.is_set():
                answer = own.post("/v1/recommend", json={"user_id": USER})
                statuses.append(answer.status_code)
                versions.append(answer.json()["model_version"])

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
    assert set(versions) == {champion, version}
    assert client.get("/v1/model").json()["model_class"] == "RepeatPurchase"
    assert server.process.pid == pid
    assert server.process.poll() is None


def test_killed_in_the_middle_of_writes_it_comes_back_with_every_acknowledged_event_and_ends_cleanly(
    server: Server, shop: Shop, champion: str
) -> None:
    # The last test of the module: it ends the module's server.
    acknowledged: list[str] = []

    def post_many(part: int) -> None:
        with httpx.Client(base_url=server.url, timeout=20) as own:
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
    (worker,) = psutil.Process(server.process.pid).children()
    wait_for(lambda: len(acknowledged) > 500)
    server.process.kill()  # first: it would start the worker anew
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
        with httpx.Client(base_url=up.url, timeout=20) as client:
            assert post(client, view(0, event_id=acknowledged[-1], user_id="killed"))["duplicates"] == 1
            assert ask(client, user_id="killed", k=1)["fallback"]["kind"] == "session_only"
        end_under_load(up)
    finally:
        up.stop()


def end_under_load(up: Server) -> None:
    """Tell the server to end while callers hold connections: it turns them away and drops none of their requests."""
    statuses: list[int] = []
    turned_away: list[bool] = []

    def ask_on() -> None:
        with httpx.Client(base_url=up.url, timeout=20) as own:
            while True:
                answer = own.post("/v1/recommend", json={"user_id": USER, "k": 3})
                statuses.append(answer.status_code)
                if answer.headers.get("connection") == "close":  # a load balancer goes elsewhere now
                    turned_away.append(True)
                    return

    threads = [threading.Thread(target=ask_on) for _ in range(4)]
    for thread in threads:
        thread.start()
    (worker,) = psutil.Process(up.process.pid).children()
    wait_for(lambda: len(statuses) > 20)
    up.process.send_signal(signal.SIGTERM)
    wait_for(lambda: status_of(up.url + "/readyz") == 503, 5)
    for thread in threads:
        thread.join(timeout=30)
    assert set(statuses) == {200}
    assert len(turned_away) == 4  # each heard it with an answer, none by a broken connection
    up.process.wait(20)
    assert not worker.is_running()


def status_of(url: str) -> int:
    try:
        return httpx.get(url, timeout=5).status_code
    except httpx.TransportError:
        return 0


def whole_lines(settings: Settings) -> list[str]:
    """Return the ids of the lines that have an end."""
    folder = settings.home / "landing" / "feedback" / "events"
    texts = [file.read_text() for file in sorted(folder.glob("*.jsonl"))]
    return [json.loads(line)["event_id"] for text in texts for line in text[: text.rfind("\n") + 1].splitlines()]
