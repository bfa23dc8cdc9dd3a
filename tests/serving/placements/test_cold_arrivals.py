"""New arrivals by what the known items say of them, and the file of the bundle that holds it."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from recflow.models import cold_items
from recflow.models.cold_items import ColdItems
from recflow.serving.bundle import load_bundle
from recflow.serving.make_bundle import build_bundle
from recflow.serving.placements.lists import new_arrivals
from recflow.serving.recommend import Recommender
from recflow.serving.requests import NewArrivalsRequest
from recflow.settings import Settings
from tests.serving import handmade
from tests.serving.conftest import Built
from tests.serving.placements.conftest import ids, scores


def test_what_is_said_of_new_items_decides(
    make: Callable[..., Recommender], shop: Built, rank: Callable[..., object]
) -> None:
    at = shop.bundle.item_index
    known = np.array([[at["P02"], at["P03"]]] * 2, np.int32)
    # A cushion says more for the clock, against its title.
    weight = np.array([[0.0, 0.5], [0.8, 0.0]], np.float32)
    cold = ColdItems(np.array([at["P18"], at["P19"]], np.int32), known, weight, len(shop.bundle.item_ids))
    recommender = make(replace(shop.bundle, cold=cold))

    def shown(*items: str) -> dict[str, float]:
        request = NewArrivalsRequest(session=[{"item_id": item_id, "event_type": "view"} for item_id in items])
        answer = new_arrivals(recommender, request, rank(recommender, request), 0)
        assert answer["fallback"] is None
        return dict(zip(ids(answer), scores(answer), strict=True))

    assert list(shown("P02")) == ["P19", "P18"]
    assert list(shown("P03")) == ["P18", "P19"]
    assert list(shown("P02", "P03").values()) == pytest.approx([0.2 * 0.8, 0.2 * 0.5], abs=5e-4)
    assert list(shown("P06")) == ["P18", "P19"]  # of which nothing is said: a cushion as well, by its title


def test_a_bundle_holds_what_is_said_of_its_new_items(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    events = handmade.purchases()
    handmade.write_shop(settings, events=events[~events["item_id"].isin(["P18", "P19"])].reset_index(drop=True))
    assert load_bundle(Path(build_bundle(handmade.UNTIL, settings).uri)).cold is None  # too few items to learn from
    monkeypatch.setattr(cold_items, "_LEAST_KNOWN", 10)
    bundle = load_bundle(Path(build_bundle(handmade.UNTIL, settings).uri))
    assert "cold.safetensors" in bundle.facts["files"]
    assert bundle.cold is not None
    assert {bundle.item_ids[item] for item in bundle.cold.items} >= {"P18", "P19"}
    np.testing.assert_array_equal(bundle.cold.items, np.flatnonzero(bundle.is_new(settings.serving.new_days)))
    assert (bundle.tables.events[bundle.cold.known] > 0).all()
