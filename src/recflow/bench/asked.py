"""What the endpoint and the floors are asked: requests that are bytes before the clock starts."""

import json
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from recflow.bench.floors import FLOORS
from recflow.bench.load import post
from recflow.console import log
from recflow.errors import MissingInput, RecflowError
from recflow.serving.server import Server
from recflow.settings import Settings
from recflow.storage import Storage

K = 20  # items of an answer
BATCH = 64  # calls of one batch
PRODUCT = "recommend"  # the endpoint's name beside those of the floors
_PROBES = 100  # answers that are looked at before the clock starts
_SECONDS = 30.0  # for each of them

Headers = dict[str, str]
Loads = dict[str, tuple[Server, list[bytes]]]  # who is asked what, by the target's name


def known_users(settings: Settings) -> list[str]:
    """Return the ids of the newest snapshot that has any, in an order that says nothing.

    Raises:
        MissingInput: the lake knows no users.
    """
    storage = Storage(settings)
    for day in reversed(storage.days("user_purchase_stats")):
        users: list[str] = storage.read_partition("user_purchase_stats", day)["user_id"].to_pylist()
        if users:
            random.Random(0).shuffle(users)
            return users
    raise MissingInput(f"user_purchase_stats: no users below {storage.lake_uri}. Run `recflow line` first.")


@contextmanager
def permitted(settings: Settings) -> Iterator[Headers]:
    """Yield the headers that open the endpoint: those of a key of its own, where keys are asked for."""
    from recflow.serving.http.keys import create_key, list_keys, revoke_key

    if list_keys(settings) is None:
        yield {}
        return
    key = create_key(settings, name="recflow bench", scopes=["storefront", "ingest"])
    try:
        yield {"Authorization": f"Bearer {key}"}
    finally:
        revoke_key(settings, key.split("_")[1])


def probe(server: Server, users: list[str], headers: Headers) -> dict[str, Any]:
    """Look at some answers: a quick one that leaves out what a shopper would see is no figure.

    Raises:
        RecflowError: the endpoint doesn't answer as it should.
    """
    import httpx

    asked = users[:_PROBES]
    with httpx.Client(base_url=server.url, timeout=_SECONDS, headers=headers) as client:
        answers = [client.post("/v1/recommend", json=_recommend(user)) for user in asked]
    for answer in answers:
        _expect(answer, answer.is_success)
    contents = [answer.json() for answer in answers]
    items = [item for content in contents for item in content["items"]]
    with_fallback = sum(content["fallback"] is not None for content in contents)
    if with_fallback:
        log.info(
            "%d of %d answers are fallbacks: these figures aren't those of a healthy shop", with_fallback, len(asked)
        )
    return {
        "users": len(users),
        "looked_at": len(asked),
        "with_fallback": with_fallback,
        "items": round(len(items) / len(asked), 1),
        "items_with_reason": round(sum(item["reason"] is not None for item in items) / len(asked), 1),
        "bytes": round(sum(len(answer.content) for answer in answers) / len(asked)),
    }


def make_loads(
    servers: Mapping[str, Server], users: list[str], size: int, headers: Headers, *, with_events: bool
) -> Loads:
    """Return each target's server and requests, in the order that they are driven in.

    Args:
        servers: of the floors and the endpoint.
        users: who is asked for, each in a request of its own.
        size: bytes of the floors' body.
        headers: that open the endpoint.
        with_events: also pairs of an event of the user and the request for the same user.

    Raises:
        RecflowError: a floor doesn't echo, or the endpoint takes batches and doesn't answer one.
    """
    echoed = _body(text="x" * max(0, size - len(_body(text=""))))
    for name in FLOORS:
        answer = _post(servers[name], "/", echoed, {})
        _expect(answer, answer.content == echoed)
    loads = {name: (servers[name], [post("/", echoed)]) for name in FLOORS}
    product = servers[PRODUCT]
    singles = [post("/v1/recommend", _body(**_recommend(user)), headers) for user in users]
    loads[PRODUCT] = (product, singles)
    batches = batches_of(users)
    answer = _post(product, "/v1/batch", batches[0], headers)
    if answer.status_code != 404:
        parts = answer.json().get("answers", [])
        _expect(answer, len(parts) == BATCH and all(part["status"] == 200 for part in parts))
        loads["batch"] = (product, [post("/v1/batch", body, headers) for body in batches])
    if with_events:
        # An item that no catalogue has changes no list, and is read and kept like any other.
        views = [{"event_type": "view", "user_id": user, "item_id": "recflow bench"} for user in users]
        events = [post("/v1/events", _body(events=[view]), headers) for view in views]
        loads["events"] = (product, [request for pair in zip(events, singles, strict=True) for request in pair])
    return loads


def batches_of(users: list[str]) -> list[bytes]:
    """Return bodies of `BATCH` calls for different users each, where there are so many."""
    laps = users * (BATCH // len(users) + 1)
    starts = range(0, max(1, len(users) - BATCH), BATCH)
    return [
        _body(requests=[{"call": "recommend", "body": _recommend(user)} for user in laps[first : first + BATCH]])
        for first in starts
    ]


def _recommend(user_id: str) -> dict[str, Any]:
    return {"user_id": user_id, "k": K}


def _post(server: Server, path: str, body: bytes, headers: Headers) -> Any:
    import httpx

    with_type = headers | {"content-type": "application/json"}
    return httpx.post(server.url + path, content=body, headers=with_type, timeout=_SECONDS)


def _expect(answer: Any, is_right: bool) -> None:
    if not is_right:
        raise RecflowError(f"{answer.url}: not the answer that was expected: {answer.status_code}: {answer.text[:200]}")


def _body(**content: Any) -> bytes:
    return json.dumps(content, separators=(",", ":")).encode()
