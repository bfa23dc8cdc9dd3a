"""The slot follows the alias: loads aside, swaps at once, and keeps what answers when the next one can't."""

import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from prometheus_client import REGISTRY

from recflow.errors import RegistryError
from recflow.serving.bundle import Bundle
from recflow.serving.feedback import EventLog
from recflow.serving.recommend import Recommender
from recflow.serving.slot import ModelSlot
from recflow.settings import Settings
from tests.serving import handmade
from tests.serving.conftest import Built


@dataclass(frozen=True)
class Release:
    version: str
    folder: Path
    moments: Mapping[str, str | None] = field(default_factory=dict)


class FakeRegistry:
    """An alias that tests move."""

    def __init__(self) -> None:
        self.release: Release | None = None
        self.broken: Exception | None = None
        self.at_odds = False  # its versions with the settings
        self.fetched = 0
        self.before: Release | None = None  # what the alias named earlier

    def version(self) -> str | None:
        if self.broken:
            raise self.broken
        return self.release.version if self.release else None

    def champion(self) -> Release | None:
        self.fetched += 1
        return self.release

    def followed(self, version: str) -> Release | None:
        assert self.release is not None
        assert version == self.release.version
        return self.before


@pytest.fixture
def registry() -> FakeRegistry:
    return FakeRegistry()


@pytest.fixture
def slot(registry: FakeRegistry, event_log: EventLog, settings: Settings) -> ModelSlot:
    def recommender(bundle: Bundle, version: str) -> Recommender:
        if registry.at_odds:
            raise ValueError("a rule names what the catalogue doesn't have")
        return Recommender(bundle, settings, version=version, event_log=event_log)

    return ModelSlot(
        champion_version=registry.version,
        champion=registry.champion,
        recommender=recommender,
        followed=registry.followed,
    )


@pytest.fixture
def broken(built: Built, tmp_path: Path) -> Path:
    folder = Path(shutil.copytree(built.folder, tmp_path / "broken"))
    handmade.tamper_json(folder / "bundle.json", probe=[{"items": ["P00"], "scores": [99.0]}])
    return folder


def _count(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


def _move(registry: FakeRegistry, version: str, folder: Path) -> None:
    registry.release = Release(version, folder, {"trained_at": f"of {version}"})


def test_before_the_first_promotion_nothing_answers(slot: ModelSlot) -> None:
    assert slot.refresh() is False
    assert slot.current is None


def test_a_moved_alias_is_followed_once(slot: ModelSlot, registry: FakeRegistry, built: Built) -> None:
    _move(registry, "1", built.folder)
    assert [slot.refresh(), slot.refresh()] == [True, False]
    assert slot.current.version == "1"
    before = slot.current
    _move(registry, "2", built.folder)
    assert slot.refresh() is True
    assert (slot.current.version, before.version) == ("2", "1")  # who holds the old one goes on with it
    assert (slot.current.moments, before.moments) == ({"trained_at": "of 2"}, {"trained_at": "of 1"})
    assert registry.fetched == 2
    assert _count("recflow_model_version", version="1") == 0
    assert _count("recflow_model_version", version="2") == 1


def test_a_bundle_that_fails_its_probe_is_refused_once_and_the_old_one_goes_on(
    slot: ModelSlot, registry: FakeRegistry, built: Built, broken: Path
) -> None:
    _move(registry, "1", built.folder)
    slot.refresh()
    refused = _count("recflow_swaps_total", outcome="refused")
    _move(registry, "2", broken)
    assert [slot.refresh(), slot.refresh(), slot.refresh()] == [False, False, False]
    assert slot.current.version == "1"
    assert registry.fetched == 2  # loading again wouldn't mend it
    assert _count("recflow_swaps_total", outcome="refused") == refused + 1
    _move(registry, "3", built.folder)
    assert slot.refresh() is True
    assert slot.current.version == "3"


def test_a_registry_that_is_away_changes_nothing(slot: ModelSlot, registry: FakeRegistry, built: Built) -> None:
    _move(registry, "1", built.folder)
    slot.refresh()
    _move(registry, "2", built.folder)
    registry.broken = RegistryError("away")
    assert slot.refresh() is False
    assert slot.current.version == "1"
    registry.broken = None
    assert slot.refresh() is True
    assert slot.current.version == "2"


def test_a_version_that_no_recommender_can_be_made_of_is_refused_once(
    slot: ModelSlot, registry: FakeRegistry, built: Built
) -> None:
    _move(registry, "1", built.folder)
    slot.refresh()
    registry.at_odds = True
    _move(registry, "2", built.folder)
    assert [slot.refresh(), slot.refresh()] == [False, False]
    assert (slot.current.version, registry.fetched) == ("1", 2)


def test_it_says_what_it_cannot_follow_until_it_can(
    slot: ModelSlot, registry: FakeRegistry, built: Built, broken: Path
) -> None:
    _move(registry, "1", built.folder)
    slot.refresh()
    assert (slot.refusal, slot.complaint) == (None, None)
    registry.broken = RegistryError("away")
    slot.refresh()
    assert "RegistryError" in slot.complaint
    registry.broken = None
    slot.refresh()
    assert slot.complaint is None
    _move(registry, "2", broken)
    slot.refresh()
    assert slot.refusal == "version 2 is refused; the log says why"
    _move(registry, "1", built.folder)  # rolled back to what is served
    slot.refresh()
    assert slot.refusal is None
    _move(registry, "2", broken)  # and tried again: it may have been mended
    slot.refresh()
    assert slot.refusal is not None
    _move(registry, "3", built.folder)
    slot.refresh()
    assert (slot.refusal, slot.current.version) == (None, "3")


def test_a_worker_that_starts_on_a_refused_version_answers_from_the_one_before(
    slot: ModelSlot, registry: FakeRegistry, built: Built, broken: Path
) -> None:
    registry.before = Release("1", built.folder)
    _move(registry, "2", broken)
    assert [slot.refresh(), slot.refresh()] == [True, False]
    assert (slot.current.version, slot.refusal) == ("1", "version 2 is refused; the log says why")
    _move(registry, "3", built.folder)
    assert slot.refresh() is True
    assert (slot.current.version, slot.refusal) == ("3", None)


def test_where_the_one_before_is_broken_too_nothing_answers(
    slot: ModelSlot, registry: FakeRegistry, built: Built, broken: Path
) -> None:
    registry.before = Release("1", broken)
    _move(registry, "2", broken)
    assert slot.refresh() is False
    assert (slot.current, slot.refusal) == (None, "version 2 is refused; the log says why")
    _move(registry, "3", built.folder)
    assert slot.refresh() is True


def test_a_refused_version_is_tried_again_after_a_while(
    slot: ModelSlot, registry: FakeRegistry, built: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = tmp_path / "not mounted yet"
    _move(registry, "1", away)
    assert [slot.refresh(), slot.refresh()] == [False, False]
    shutil.copytree(built.folder, away)
    assert (slot.refresh(), registry.fetched) == (False, 1)
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 6)
    assert slot.refresh() is True
    assert (slot.current.version, slot.refusal) == ("1", None)
