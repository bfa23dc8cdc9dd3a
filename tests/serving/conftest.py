"""A bundle of the handmade shop, built once; an online store that is a dictionary."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import pytest

from recflow.serving.bundle import Bundle, build_bundle, load_bundle
from recflow.serving.feedback import EventLog, to_us
from recflow.serving.online import OnlineStore
from recflow.serving.recommend import Recommender
from recflow.settings import Settings, load_settings
from tests.serving import handmade


@dataclass(frozen=True)
class Row:
    """The shape of featurestore.OnlineUser."""

    features: dict[str, object]
    item_ids: list[str] = field(default_factory=list)
    event_types: list[str] = field(default_factory=list)
    timestamps_us: list[int] = field(default_factory=list)
    quantities: list[float] = field(default_factory=list)


class FakeReader:
    """Rows of the handmade shop's events; can be broken."""

    def __init__(self, events: pd.DataFrame) -> None:
        self.events = events
        self.broken: Exception | None = None
        self.reads = 0

    def users(self, user_ids: list[str]) -> list[Row]:
        self.reads += 1
        if self.broken:
            raise self.broken
        return [self._row(user_id) for user_id in user_ids]

    def _row(self, user_id: str) -> Row:
        own = self.events[self.events["user_id"] == user_id]
        if own.empty:
            return Row(dict.fromkeys(handmade.USER_FEATURES))
        return Row(
            {"user_country": own["country"].iloc[0], "user_orders_lifetime": len(own)},
            own["item_id"].tolist(),
            ["purchase"] * len(own),
            [to_us(moment.to_pydatetime()) for moment in own["event_timestamp"]],
            own["quantity"].tolist(),
        )


@dataclass
class Built:
    settings: Settings
    events: pd.DataFrame
    folder: Path
    bundle: Bundle


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    settings = load_settings(home=tmp_path_factory.mktemp("handmade") / "var")
    events = handmade.write_shop(settings)
    folder = Path(build_bundle(handmade.UNTIL, settings).uri)
    return Built(settings, events, folder, load_bundle(folder))


@pytest.fixture
def reader(built: Built) -> FakeReader:
    return FakeReader(built.events)


@pytest.fixture
def event_log(settings: Settings) -> EventLog:
    return EventLog(settings)


@pytest.fixture
def recommender(built: Built, reader: FakeReader, event_log: EventLog, settings: Settings) -> Recommender:
    store = OnlineStore(lambda: reader, retry_seconds=60)
    return Recommender(built.bundle, settings, version="7", store=store, event_log=event_log)


@pytest.fixture
def make_recommender(built: Built, reader: FakeReader, event_log: EventLog) -> Callable[[Settings], Recommender]:
    def make(settings: Settings) -> Recommender:
        store = OnlineStore(lambda: reader, retry_seconds=60)
        return Recommender(built.bundle, settings, version="7", store=store, event_log=event_log)

    return make
