"""What real servers do when what they lean on really breaks: they go on, say so, and recover by themselves."""

import contextlib
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from recflow.errors import RegistryError
from recflow.programs import free_port
from recflow.registry import versions
from recflow.registry.connection import connect
from recflow.registry.records import CHAMPION
from recflow.serving import server as endpoint
from recflow.serving.http.table import table
from recflow.serving.metrics import PARTS
from recflow.serving.server import Server, running
from recflow.settings import Settings, load_settings
from tests import backing
from tests.services.load import KNOWN, Shop, make_shop, tell, view, wait_for, workers

pytestmark = [pytest.mark.servers, pytest.mark.alone]

_BUDGET_SECONDS = 0.15  # of the online store, the default
_ANSWER_SECONDS = 2.0  # for an answer without the store on a machine that does other things as well
_RECOVERY_SECONDS = 10.0  # by itself, from when what was broken is back
_SERVING = {"poll_seconds": 0.2, "store_retry_seconds": 0.5, "drain_seconds": 0.1}


@pytest.fixture(scope="module")
def redis() -> Iterator[backing.Server]:
    with backing.redis_server() as server:
        yield server


@pytest.fixture(scope="module")
def postgres() -> Iterator[backing.Server]:
    with backing.postgres_server() as server:
        yield server


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return a folder on a disk of its own, which is small; on the common disk where that isn't allowed."""
    folder = tmp_path_factory.mktemp("disk")
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "none", folder], capture_output=True)
    try:
        yield folder
    finally:
        if mounted.returncode == 0:
            subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.fixture(scope="module")
def shop(disk: Path, redis: backing.Server, postgres: backing.Server) -> Shop:
    """Return a shop with Redis as its online store and MLflow on PostgreSQL as its registry."""
    shop = make_shop(
        disk / "var",
        features={"online_store": "redis", "online_url": redis.url},
        registry={"tracking_uri": registry_uri(postgres)},
        serving=_SERVING,
    )
    shop.publish()
    return shop


@pytest.fixture(scope="module")
def server(shop: Shop) -> Iterator[Server]:
    with running(shop.settings, port=0) as up:
        yield up


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=20) as client:
        yield client


def registry_uri(postgres: backing.Server) -> str:
    return postgres.url.replace("postgresql://", "postgresql+psycopg://")


def ask(client: httpx.Client, user_id: str = KNOWN, *, within: float = _ANSWER_SECONDS) -> dict[str, Any]:
    began = time.monotonic()
    answer = client.post("/v1/recommend", json={"user_id": user_id, "k": 10})
    assert answer.status_code == 200, answer.text
    assert time.monotonic() - began < within
    assert len(answer.json()["items"]) == 10
    return answer.json()


def missing(client: httpx.Client, *parts: str) -> bool:
    """Return whether readiness and metrics say that just these parts are missing, of an endpoint that is ready."""
    answer = client.get("/readyz")
    assert answer.status_code == 200
    found = {each["part"] for each in answer.json()["degraded"]}
    assert answer.json()["status"] == ("degraded" if found else "ready")
    counted = {part for part in PARTS if metric(client, f'recflow_degraded{{part="{part}"}}')}
    return found == counted == set(parts)


def metric(client: httpx.Client, name: str) -> float:
    (line,) = (line for line in client.get("/metrics").text.splitlines() if line.startswith(f"{name} "))
    return float(line.rpartition(" ")[2])


def served(client: httpx.Client) -> str | None:
    return client.get("/readyz").json()["model_version"]


def problem(answer: httpx.Response) -> tuple[int, str]:
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["status"] == answer.status_code
    return answer.status_code, answer.headers["retry-after"]


def post(client: httpx.Client, event_id: str, **more: Any) -> httpx.Response:
    return client.post("/v1/events", json={"events": [view(event_id, **more)]})


# -- the online store


def test_an_online_store_that_hangs_is_done_without_and_used_again(
    client: httpx.Client, redis: backing.Server, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ask(client)["fallback"] is None
    failures = metric(client, "recflow_online_store_failures_total")
    redis.pause()
    try:
        assert ask(client)["fallback"] == {"kind": "popularity", "why": "the online store is too slow"}
        began = time.monotonic()
        for _ in range(30):  # it is left alone: not every answer waits for it
            assert ask(client)["fallback"]["why"].startswith("the online store is ")
        assert time.monotonic() - began < 30 * _BUDGET_SECONDS
        wait_for(lambda: missing(client, "online_store"), _RECOVERY_SECONDS)
        assert metric(client, "recflow_online_store_failures_total") > failures
        assert metric(client, "recflow_online_store_away") == 1
        assert post(client, "while it hangs", user_id="h").json()["accepted"] == 1
        assert ask(client, "h")["fallback"] == {"kind": "session_only", "why": "the online store is away"}
    finally:
        redis.resume()
    back = wait_for(lambda: ask(client)["fallback"] is None, _RECOVERY_SECONDS)
    wait_for(lambda: missing(client), _RECOVERY_SECONDS)
    assert metric(client, "recflow_online_store_away") == 0
    tell(capsys, f"Redis frozen: its rows used again after {back:.2f} s")


def test_an_online_store_that_died_and_lost_its_rows_is_used_again_when_it_is_filled(
    shop: Shop, client: httpx.Client, redis: backing.Server, capsys: pytest.CaptureFixture[str]
) -> None:
    redis.kill()
    try:
        assert ask(client)["fallback"] == {"kind": "popularity", "why": "the online store is away"}
        wait_for(lambda: missing(client, "online_store"), _RECOVERY_SECONDS)
    finally:
        redis.start()
    lost = {"kind": "popularity", "why": "the online store has lost the rows that were materialized last"}
    back = wait_for(lambda: ask(client)["fallback"] == lost, _RECOVERY_SECONDS)
    wait_for(lambda: missing(client, "online_store"), _RECOVERY_SECONDS)
    assert metric(client, "recflow_online_store_away") == 0
    shop.fill_store()
    wait_for(lambda: ask(client)["fallback"] is None, _RECOVERY_SECONDS)
    wait_for(lambda: missing(client), _RECOVERY_SECONDS)
    tell(capsys, f"Redis killed: asked again after {back:.2f} s")


def test_a_row_that_cannot_be_read_costs_nobody_else_theirs(
    shop: Shop, client: httpx.Client, redis: backing.Server
) -> None:
    from redis import Redis

    with Redis.from_url(redis.url) as store:
        (key,) = (key for key in store.scan_iter() if KNOWN.encode() in key)
        row = store.hgetall(key)
        store.hset(key, mapping={name: b"\xff\xff" for name in row if not name.startswith(b"_ts:")})
        try:
            found = [ask(client, user_id)["fallback"] for user_id in (KNOWN, "12347.0")]
        finally:
            store.hset(key, mapping=row)
    why = "the online store's row of this shopper can't be read"
    assert found == [{"kind": "popularity", "why": why}, None]
    assert missing(client)
    assert ask(client)["fallback"] is None


# -- the registry


def test_a_registry_that_died_stops_nothing_and_is_followed_again(
    shop: Shop, client: httpx.Client, postgres: backing.Server, capsys: pytest.CaptureFixture[str]
) -> None:
    before = served(client)
    postgres.kill()
    try:
        wait_for(lambda: missing(client, "registry"), _RECOVERY_SECONDS)
        assert ask(client)["model_version"] == before
        assert problem(client.get("/v1/models")) == (503, "5")
        assert problem(client.post("/v1/models/switch", json={"model_version": before})) == (503, "5")
    finally:
        postgres.start()
    back = wait_for(lambda: missing(client), _RECOVERY_SECONDS)
    version = shop.publish(model="repeat_purchase")
    swap = wait_for(lambda: served(client) == version, 5)
    assert ask(client)["model_version"] == version != before
    tell(capsys, f"PostgreSQL killed: followed again after {back:.2f} s, the next version served after {swap:.2f} s")


def test_a_registry_that_hangs_holds_up_nobody(client: httpx.Client, postgres: backing.Server) -> None:
    postgres.pause()
    try:
        wait_for(lambda: missing(client, "registry"), _RECOVERY_SECONDS)
        assert ask(client)["fallback"] is None
        assert post(client, "while the registry hangs").json()["accepted"] == 1
        assert client.delete("/v1/profile/somebody").status_code == 200
    finally:
        postgres.resume()
    wait_for(lambda: missing(client), _RECOVERY_SECONDS)


def test_an_mlflow_server_that_is_away_is_given_up_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own client would try for four minutes, and so follow a server that is back minutes late."""
    settings = load_settings(home=tmp_path, registry={"tracking_uri": f"http://127.0.0.1:{free_port()}"})
    environment = endpoint._environment(settings, tmp_path)
    for name in ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_HTTP_REQUEST_TIMEOUT"):
        monkeypatch.setenv(name, environment[name])
    began = time.monotonic()
    with pytest.raises(RegistryError):
        versions.champion_version(settings)
    assert time.monotonic() - began < 2


# -- bundles


def test_a_version_whose_files_are_damaged_is_refused_and_the_next_good_one_is_served(
    shop: Shop, server: Server, client: httpx.Client
) -> None:
    settings, good = shop.settings, served(client)
    is_ease = client.get("/v1/model").json()["model_class"] == "EASE"
    bad = shop.publish(model="repeat_purchase" if is_ease else "ease")
    wait_for(lambda: served(client) == bad, 5)
    versions.promote(good, settings)
    wait_for(lambda: served(client) == good, 5)
    file = versions.fetch_version(bad, settings).folder / "tables.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    refused = metric(client, 'recflow_swaps_total{outcome="refused"}')
    move_alias(bad, settings)  # by other hands: `promote` would look at the files first
    wait_for(lambda: missing(client, "model"), _RECOVERY_SECONDS)
    time.sleep(5 * settings.serving.poll_seconds)
    assert ask(client)["model_version"] == good
    assert metric(client, 'recflow_swaps_total{outcome="refused"}') == refused + 1  # once, not with every look
    (killed,) = workers(server)
    killed.kill()  # the one that is started in its place finds the damaged version
    wait_for(lambda: set(workers(server)) - {killed})
    wait_for(lambda: served(client) == good and missing(client, "model"), 30)
    assert ask(client)["fallback"] is None
    next_one = shop.publish(model="repeat_purchase" if is_ease else "ease")
    wait_for(lambda: served(client) == next_one, 5)
    assert next_one not in (good, bad)
    assert ask(client)["model_version"] == next_one
    assert missing(client)
    assert client.post("/v1/models/switch", json={"model_version": bad}).status_code == 409
    assert served(client) == next_one


def move_alias(version: str, settings: Settings) -> None:
    connect(settings).set_registered_model_alias(settings.registry.model_name, CHAMPION, version)


# -- the disk


@contextlib.contextmanager
def full(disk: Path, server: Server) -> Iterator[None]:
    """Leave no room on the disk; where it isn't a small one of its own, let no file of the workers become large."""
    if disk.is_mount():
        ballast = disk / "ballast"
        with ballast.open("wb", buffering=0) as stream, contextlib.suppress(OSError):
            for size in (1 << 20, 1 << 12, 1):
                with contextlib.suppress(OSError):
                    while True:
                        stream.write(b"x" * size)
        try:
            yield
        finally:
            ballast.unlink()
        return
    limits = {worker: worker.rlimit(psutil.RLIMIT_FSIZE) for worker in workers(server)}
    for worker, (_, hard) in limits.items():
        worker.rlimit(psutil.RLIMIT_FSIZE, (500_000, hard))
    try:
        yield
    finally:
        for worker, limit in limits.items():
            worker.rlimit(psutil.RLIMIT_FSIZE, limit)


def test_on_a_full_disk_events_are_refused_and_all_else_goes_on(
    shop: Shop, server: Server, client: httpx.Client, disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = workers(server)
    assert post(client, "before", user_id="full").json()["accepted"] == 1
    campaign = {"campaign_id": "c", "title": "C", "item_ids": [f"{n:0128d}" for n in range(7_000)],
                "starts_at": "2011-01-01T00:00:00Z", "ends_at": "2012-01-01T00:00:00Z"}  # fmt: skip
    with full(disk, server):
        large = [view(f"refused-{number}", query="x" * 500) for number in range(1000)]
        assert problem(client.post("/v1/events", json={"events": large})) == (503, "5")
        wait_for(lambda: missing(client, "events"), _RECOVERY_SECONDS)
        assert problem(client.post("/v1/campaigns", json={"campaigns": [campaign]})) == (503, "5")
        for path, body in storefront_calls():  # what is counted for the first time needs room, too
            assert client.post(path, json=body).status_code in (200, 404)
        assert ask(client)["fallback"] is None
        assert ask(client, "full")["fallback"]["kind"] == "session_only"
    back = wait_for(lambda: post(client, "after", user_id="full").status_code == 200, _RECOVERY_SECONDS)
    wait_for(lambda: missing(client), _RECOVERY_SECONDS)
    assert workers(server) == before
    assert {"before", "after"} <= set(shop.event_ids())
    assert not any(event_id.startswith("refused") for event_id in shop.event_ids())
    tell(capsys, f"disk full: events taken {back:.2f} s after there was room")


def storefront_calls() -> Iterator[tuple[str, Any]]:
    """Return the paths and bodies of the documentation's examples; their items are of another shop."""
    for route in table():
        if route.method == "POST" and route.scope == "storefront":
            yield from ((route.path, body) for body in route.examples.values())


# -- all at once, on PostgreSQL


@pytest.fixture(scope="module")
def second_shop(tmp_path_factory: pytest.TempPathFactory, shop: Shop, postgres: backing.Server) -> Shop:
    """Return a shop that has its online store on PostgreSQL and the other one's registry."""
    return make_shop(
        tmp_path_factory.mktemp("second") / "var",
        features={"online_store": "postgres", "online_url": postgres.url},
        registry={"tracking_uri": registry_uri(postgres)},
        serving=_SERVING,
    )


@pytest.fixture(scope="module")
def second(second_shop: Shop, postgres: backing.Server) -> Iterator[Server]:
    """Start an endpoint while PostgreSQL is away, which holds its registry and its online store."""
    postgres.stop()
    with running(second_shop.settings, port=0, wait_ready=False) as up:
        yield up


@pytest.fixture(scope="module")
def second_client(second: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=second.url, timeout=20) as client:
        yield client


def test_started_while_the_registry_is_away_it_becomes_ready_when_that_is_back(
    second_client: httpx.Client, postgres: backing.Server, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = second_client.get("/readyz")
    assert (answer.status_code, answer.json()["status"]) == (503, "not ready")
    assert {each["part"] for each in answer.json()["degraded"]} == {"registry"}
    assert problem(second_client.post("/v1/recommend", json={"user_id": KNOWN})) == (503, "1")
    assert problem(second_client.get("/v1/models")) == (503, "5")
    assert post(second_client, "early").json()["accepted"] == 1
    postgres.start()
    back = wait_for(lambda: second_client.get("/readyz").status_code == 200, _RECOVERY_SECONDS)
    wait_for(lambda: ask(second_client)["fallback"] is None, _RECOVERY_SECONDS)
    assert missing(second_client)
    tell(capsys, f"started without a registry: ready {back:.2f} s after that was back")


def test_without_registry_and_online_store_it_goes_on_and_recovers(
    second_client: httpx.Client, postgres: backing.Server, capsys: pytest.CaptureFixture[str]
) -> None:
    version = served(second_client)
    postgres.kill()
    try:
        assert ask(second_client)["fallback"] == {"kind": "popularity", "why": "the online store is away"}
        wait_for(lambda: missing(second_client, "registry", "online_store"), _RECOVERY_SECONDS)
        assert ask(second_client)["model_version"] == version
    finally:
        postgres.start()
    back = wait_for(lambda: ask(second_client)["fallback"] is None, _RECOVERY_SECONDS)
    wait_for(lambda: missing(second_client), _RECOVERY_SECONDS)
    tell(capsys, f"PostgreSQL killed: its rows used again after {back:.2f} s")


def test_while_both_hang_it_goes_on_and_ends_when_told_to(
    second: Server, second_client: httpx.Client, postgres: backing.Server
) -> None:
    # The last test of the module: it ends the second server.
    postgres.pause()
    try:
        assert ask(second_client)["fallback"] == {"kind": "popularity", "why": "the online store is too slow"}
        wait_for(lambda: missing(second_client, "registry", "online_store"), _RECOVERY_SECONDS)
        second.process.terminate()
        second.process.wait(10)
    finally:
        postgres.resume()
