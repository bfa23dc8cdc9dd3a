"""Stock over the API: out of the lists in the worker that was told, and in the others with their next look."""

from pathlib import Path
from typing import Any

import pytest

from recflow.serving import stock as module
from recflow.serving.recommend import Recommender
from recflow.settings import Settings
from tests.serving.conftest import Built
from tests.serving.http.conftest import Door, Worker, problem, swap


def put(door: Door, **in_stock: bool) -> Any:
    lines = [{"item_id": item_id, "in_stock": is_in} for item_id, is_in in in_stock.items()]
    return door.ask("PUT", "/v1/stock", json={"items": lines})


def shown(door: Door, call: str = "recommend", **body: Any) -> set[str]:
    answer = door.ask("POST", f"/v1/{call}", json={"k": 24} | body)
    assert answer.status_code == 200, answer.text
    return {item["item_id"] for item in answer.json()["items"]}


def is_in_stock(door: Door, item_id: str) -> bool:
    found: bool = door.ask("GET", f"/v1/items/{item_id}").json()["in_stock"]
    return found


def test_what_is_out_of_stock_is_in_no_list_until_it_is_back(worker: Worker) -> None:
    door = worker()
    everything = shown(door)
    assert "P05" in everything
    said = put(door, p05=False, P06=False, P07=True, unheard_of=False)
    assert said.status_code == 200
    assert said.json()["out_of_stock"] == 3
    assert said.json()["unknown_item_ids"] == ["unheard_of"]
    left = everything - {"P05", "P06"}
    assert shown(door) == left
    assert shown(door, "trending") == left
    assert shown(door, "similar", item_id="P00") == left - {"P00"}
    assert shown(door, filters={"in_stock": False}) == everything
    assert [is_in_stock(door, item_id) for item_id in ("P05", "p06", "P07", "P08")] == [False, False, True, True]
    assert put(door, P05=True, P06=True).json()["out_of_stock"] == 1
    assert shown(door) == everything


def test_other_workers_know_with_their_next_look_and_a_new_version_from_its_start(worker: Worker, built: Built) -> None:
    told, other = worker(), worker()
    put(told, P05=False)
    other.shop.follow_stock()
    assert not is_in_stock(other, "P05")
    before = other.shop.slot.current.rules
    other.shop.follow_stock()
    assert other.shop.slot.current.rules is before  # without news nothing is made anew
    swap(other, built)
    assert not is_in_stock(other, "P05")
    assert not is_in_stock(worker(), "P05")  # after a restart


def test_settings_may_have_it_shown_all_the_same(worker: Worker) -> None:
    door = worker(rules={"show_out_of_stock": True})
    put(door, P05=False)
    assert "P05" in shown(door)
    assert not is_in_stock(door, "P05")


def test_stock_can_be_said_before_there_is_a_version(worker: Worker, built: Built) -> None:
    door = worker()
    door.shop.slot.current = None
    assert put(door, P05=False).json()["unknown_item_ids"] == []
    swap(door, built)
    assert not is_in_stock(door, "P05")


def test_what_cannot_be_kept_is_refused_and_what_was_known_holds_on(
    worker: Worker, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    door = worker()
    put(door, P05=False)
    with monkeypatch.context() as patched:
        patched.setattr(module, "MAX_OUT_OF_STOCK", 1)
        problem(put(door, P06=False), 422)
    Path(settings.home / "stock.json").write_text("no JSON")
    refused = put(door, P06=False)
    problem(refused, 503)
    assert refused.headers["retry-after"] == "5"
    with pytest.raises(Exception, match="stock"):
        door.shop.follow_stock()  # the watcher logs it
    assert {"part": "stock"}.items() <= door.ask("GET", "/readyz").json()["degraded"][0].items()
    assert not is_in_stock(door, "P05")
    Path(settings.home / "stock.json").unlink()
    door.shop.follow_stock()
    assert door.ask("GET", "/readyz").json()["degraded"] == []
    assert is_in_stock(door, "P05")


def test_a_version_is_served_though_the_stock_cannot_be_read(worker: Worker, settings: Settings) -> None:
    settings.home.mkdir(parents=True, exist_ok=True)
    Path(settings.home / "stock.json").write_text("no JSON")
    door = worker()
    assert isinstance(door.shop.slot.current, Recommender)
    assert shown(door)


@pytest.mark.parametrize("lines", [[], [{"item_id": "P05"}], [{"item_id": "P05", "in_stock": True}] * 1_001])
def test_lines_that_say_nothing_or_too_many_are_refused(worker: Worker, lines: list[Any]) -> None:
    problem(worker().ask("PUT", "/v1/stock", json={"items": lines}), 422)
