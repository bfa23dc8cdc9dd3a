from collections.abc import Callable
from typing import Any

import pytest

from recflow.monitoring.drift import watch_drift
from recflow.monitoring.samples import Sampler, choose_windows
from recflow.monitoring.verdict import Judgement, judge
from recflow.settings import Settings, load_settings
from tests.monitoring.lakes import EVENTS_FROM, UNTIL, Shop, steady_shop

Watch = Callable[..., dict[str, Any]]
Tally = Callable[[Shop], Judgement]


@pytest.fixture(scope="session")
def _steady() -> Shop:
    return steady_shop()


@pytest.fixture
def shop(_steady: Shop) -> Shop:
    """Return a steady shop's frames, to be changed at will."""
    return _steady.copy()


@pytest.fixture
def watch(settings: Settings) -> Watch:
    """Return a function that writes a shop's lake, where one is given, and returns the report's manifest."""

    def run(shop: Shop | None, **drift: Any) -> dict[str, Any]:
        own = load_settings(home=settings.home, drift=drift)
        if shop is not None:
            shop.write(own)
        return dict(watch_drift(UNTIL, None, own).manifest)

    return run


@pytest.fixture
def tally(settings: Settings) -> Tally:
    """Return a function that judges a shop's counts alone, without its columns: quick."""

    def run(shop: Shop) -> Judgement:
        shop.write(settings)
        sampler = Sampler(choose_windows(UNTIL, None, EVENTS_FROM, settings.drift), settings)
        nouns = ("events", "user_purchase_stats", "item_sales_stats")
        return judge([], {noun: sampler.tallies(noun) for noun in nouns}, UNTIL, settings.drift)

    return run
