"""Several calls in one: each as if it came alone, in their order, lists found together."""

import asyncio
from collections.abc import Callable
from typing import Any

from recflow.serving.http.batching import Batcher
from recflow.serving.http.keys import create_key
from recflow.serving.http.routes import Call
from recflow.serving.http.shop import Shop
from recflow.serving.requests import MAX_BATCH
from recflow.settings import Settings
from tests.serving.http.conftest import TABLE, Door, problem, route


def test_parts_are_answered_in_order_each_by_itself(door: Door) -> None:
    parts = [
        {"call": "double", "body": {"number": 1}},
        {"call": "double", "body": {"number": -1}},
        {"call": "nothing", "body": {}},
        {"call": "fail", "body": {"number": 1, "name": "a person"}},
        {"call": "refuse", "body": {"number": 1}},
        {"call": "thing", "body": {}},  # not a POST
        {"call": "batch", "body": {"requests": []}},  # no batch in a batch
        {"call": "double", "body": {"number": 4}},
    ]
    answer = door.ask("POST", "/v1/batch", json={"requests": parts})
    assert answer.status_code == 200
    assert "person" not in answer.text
    answers = answer.json()["answers"]
    assert [part["status"] for part in answers] == [200, 422, 404, 500, 503, 404, 404, 200]
    assert (answers[0]["body"]["doubled"], answers[7]["body"]["doubled"]) == (2, 8)
    assert answers[1]["body"]["errors"][0]["path"] == "number"
    for part in answers[1:7]:
        assert part["body"]["status"] == part["status"]  # problem details
    ids = [part["body"]["request_id"] for part in answers]
    assert len({*ids, answer.json()["request_id"]}) == len(parts) + 1


def test_each_part_needs_its_own_scope(open_door: Callable[..., Door], settings: Settings) -> None:
    key = create_key(settings, name="web", scopes=["storefront"])
    door = open_door(settings.home)
    parts = [{"call": name, "body": {"number": 1}} for name in ("double", "halve")]
    answer = door.ask("POST", "/v1/batch", json={"requests": parts}, headers={"authorization": f"Bearer {key}"})
    assert [part["status"] for part in answer.json()["answers"]] == [200, 403]
    problem(door.ask("POST", "/v1/batch", json={"requests": parts}), 401)


def test_a_batch_itself_is_checked(door: Door) -> None:
    part = {"call": "double", "body": {"number": 1}}
    for requests, path in (
        ([], "requests"),
        ([part] * (MAX_BATCH + 1), "requests"),
        ([part, {"call": "double"}], "requests.1.body"),
        ([part, {"call": "double", "body": []}], "requests.1.body"),
        ([{**part, "more": 1}], "requests.0.more"),
    ):
        said = problem(door.ask("POST", "/v1/batch", json={"requests": requests}), 422)
        assert said["errors"][0]["path"] == path
    full = door.ask("POST", "/v1/batch", json={"requests": [part] * MAX_BATCH}).json()
    assert [answer["status"] for answer in full["answers"]] == [200] * MAX_BATCH


def test_parts_that_are_batched_are_answered_together(open_door: Callable[..., Door]) -> None:
    sizes: list[int] = []

    async def together(calls: list[Call]) -> list[dict[str, Any]]:
        sizes.append(len(calls))
        await asyncio.sleep(0)
        return [{"doubled": 2 * call.body.number} for call in calls]

    batcher: Batcher[Call, dict[str, Any]] = Batcher(together, 64)

    async def ask(shop: Shop, call: Call) -> Any:
        return await batcher.ask(call)

    door = open_door(routes=(route("ask", ask), TABLE[-1]))
    parts = [{"call": "ask", "body": {"number": number}} for number in range(50)]
    answers = door.ask("POST", "/v1/batch", json={"requests": parts}).json()["answers"]
    assert [answer["body"]["doubled"] for answer in answers] == [2 * number for number in range(50)]
    assert sizes == [50]
