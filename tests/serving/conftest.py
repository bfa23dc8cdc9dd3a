"""A bundle of the handmade shop, built once; an online store that is a dictionary."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from recflow.serving.answering import Answerer
from recflow.serving.bundle import Bundle, load_bundle
from recflow.serving.feedback import EventLog, to_us
from recflow.serving.make_bundle import build_bundle
from recflow.serving.online import OnlineStore
from recflow.serving.placements.campaigns import CampaignCatalogue
from recflow.serving.recommend import Recommender
from recflow.serving.requests import ListRequest
from recflow.settings import Settings, load_settings
from tests.serving import handmade


@dataclass(frozen=True)
class Row:
    """The shape of onlinestore.OnlineUser."""

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

    def users(self, user_ids: Sequence[str]) -> list[Row]:
        self.reads += 1
        if self.broken:
            raise self.broken
        return [self._row(user_id) for user_id in user_ids]

    async def users_async(self, user_ids: Sequence[str]) -> list[Row]:
        return self.users(user_ids)

    def is_current(self) -> bool:
        return True

    def has_lost_rows(self) -> bool | None:
        return False

    async def aclose(self) -> None:
        pass

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


@dataclass
class Asking:
    """A version with the stores it answers from; asks as the endpoint does."""

    recommender: Recommender
    store: OnlineStore
    answerer: Answerer

    def __call__(self, *requests: ListRequest) -> Any:
        """Return the answer, or the answers of several requests that came together."""
        answers = asyncio.run(self.answerer.answer(requests, self.recommender))
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer
        return answers[0] if len(requests) == 1 else answers


@pytest.fixture
def make_asking(built: Built, reader: FakeReader, event_log: EventLog) -> Callable[[Settings], Asking]:
    def make(settings: Settings) -> Asking:
        store = OnlineStore(lambda: reader, retry_seconds=60, budget_seconds=5)
        recommender = Recommender(built.bundle, settings, version="7", event_log=event_log)
        return Asking(recommender, store, Answerer(store, CampaignCatalogue(settings)))

    return make


@pytest.fixture
def ask(make_asking: Callable[[Settings], Asking], settings: Settings) -> Asking:
    return make_asking(settings)
