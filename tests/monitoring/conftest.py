from collections.abc import Callable
from typing import Any

import pytest

from recflow.monitoring.drift import watch_drift
from recflow.settings import Settings, load_settings
from tests.monitoring.lakes import UNTIL, Shop, steady_shop

Watch = Callable[..., dict[str, Any]]


@pytest.fixture(scope="session")
def _steady() -> Shop:
    return steady_shop()


@pytest.fixture
def shop(_steady: Shop) -> Shop:
    """Return a steady shop's frames, to be changed at will."""
    return _steady.copy()


@pytest.fixture
def watch(settings: Settings) -> Watch:
    """Return a function that writes a shop's lake and returns the report's manifest."""

    def run(shop: Shop, **drift: Any) -> dict[str, Any]:
        own = load_settings(home=settings.home, drift=drift)
        shop.write(own)
        return dict(watch_drift(UNTIL, None, own).manifest)

    return run
