"""A comparison shows what the endpoint answers beside what it would answer with other weights or words."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from recflow.cli import app
from recflow.errors import RecflowError
from recflow.programs import settings_environment
from recflow.serving.answering import Answerer
from recflow.serving.feedback import EventLog
from recflow.serving.online import OnlineStore
from recflow.serving.placements.campaigns import CampaignCatalogue
from recflow.serving.recommend import Recommender
from recflow.serving.requests import SearchRequest
from recflow.serving.search.comparing import Comparison, compare, reading_rows, side_by_side
from recflow.settings import Settings, load_settings
from recflow.storage import Release
from tests.serving.conftest import Asking, Built, FakeReader

USER = "13001.0"  # of the handmade shop, who buys lanterns only


@dataclass(frozen=True)
class Served:
    version: str
    folder: Path
    moments: Mapping[str, str | None] = field(default_factory=dict)


@pytest.fixture
def shop(tmp_path: Path) -> Settings:
    return load_settings(home=tmp_path / "var")


@pytest.fixture
def champion(built: Built, monkeypatch: pytest.MonkeyPatch) -> Release:
    monkeypatch.setattr("recflow.serving.search.comparing.open_reader", lambda settings: FakeReader(built.events))
    return Served("7", built.folder)


def ids(answer: Any) -> list[str]:
    return [item["item_id"] for item in answer["items"]]


def test_what_is_served_is_what_the_endpoint_answers(built: Built, shop: Settings, champion: Release) -> None:
    found = compare("number", shop, champion=champion, user_id=USER, k=5)
    store = OnlineStore(lambda: FakeReader(built.events), retry_seconds=0, budget_seconds=5)
    recommender = Recommender(built.bundle, shop, version="7", event_log=EventLog(shop))
    asking = Asking(recommender, store, Answerer(store, CampaignCatalogue(shop)))
    expected = asking(SearchRequest(query="number", user_id=USER, k=5))
    assert [(item["item_id"], item["score"]) for item in found.before.answer["items"]] == [
        (item["item_id"], item["score"]) for item in expected["items"]
    ]
    assert found.after is found.before
    assert [row["served"] for row in side_by_side(found)] == [item["title"] for item in expected["items"]]
    assert max(item["score_parts"]["taste"] for item in found.before.answer["items"]) > 0


def test_other_weights_give_another_list_and_say_where_items_stood(shop: Settings, champion: Release) -> None:
    weights = {"popularity": 9.0, "gate": 0.0, "taste": 0.0}
    found = compare("red number", shop, champion=champion, user_id=USER, weights=weights, k=6)
    before, after = found.before.answer["items"], found.after.answer["items"]
    assert found.after.weights.to_json() == found.before.weights.to_json() | weights
    popularity = [item["score_parts"]["popularity"] for item in after]
    assert popularity == sorted(popularity, reverse=True) != [item["score_parts"]["popularity"] for item in before]
    for item in [*before, *after]:
        assert item["score"] == pytest.approx(sum(item["score_parts"].values()), abs=1e-3)
    ranks = {item["item_id"]: item["rank"] for item in before}
    was = [row["was"] for row in side_by_side(found)]
    assert was == [{None: "-", item["rank"]: "="}.get(rank := ranks.get(item["item_id"]), str(rank)) for item in after]


def test_another_file_of_synonyms_is_read(shop: Settings, champion: Release, tmp_path: Path) -> None:
    file = tmp_path / "synonyms.txt"
    file.write_text("wrendle => lantern\n")
    found = compare("wrendle", shop, champion=champion, synonyms=file, k=24)
    assert found.before.answer["total"]["count"] == 0
    assert set(ids(found.after.answer)) == {f"P{item:02}" for item in range(1, 24, 4)}
    (row,) = reading_rows(found.after.understood)
    assert row["typed"] == "wrendle"
    assert "lantern (synonym" in row["looked for"]


def test_what_cant_be_tried_is_refused_before_anything_is_loaded(shop: Settings, tmp_path: Path) -> None:
    with pytest.raises(RecflowError, match=r"No weight is called word; there are: words, meaning"):
        compare("mug", shop, champion=None, weights={"word": 1})
    (tmp_path / "latin").write_bytes(b"\xe9")
    with pytest.raises(RecflowError, match=r"latin: can't be read as UTF-8"):
        compare("mug", shop, champion=None, dictionary=tmp_path / "latin")
    with pytest.raises(RecflowError, match="no champion"):
        compare("mug", shop, champion=None)


def test_the_command_prints_both_lists(shop: Settings, champion: Release, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recflow.registry.versions.champion", lambda settings: champion)
    asked = ["search", "compare", "red mugg", "--user", USER, "-k", "3"]

    def run(*more: str) -> str:
        ended = CliRunner().invoke(app, [*asked, *more], env=settings_environment(shop))
        assert ended.exit_code == 0, ended.output
        return str(ended.stdout)

    printed = run("--weights", "words=0.2,meaning=2")
    assert "As served. Language en, 6 items found. Searched for 'red mug' instead." in printed
    assert "Weights: words 0.2, meaning 2," in printed
    assert "mug (spelling" in printed
    assert printed.count("words 0.") >= 3
    content = json.loads(run("--json"))
    assert content["served"] == content["changed"]
    assert len(content["served"]["answer"]["items"]) == 3
    ended = CliRunner().invoke(app, [*asked, "--weights", "words:1"], env=settings_environment(shop))
    assert ended.exit_code == 2
    assert "is no list of weights" in ended.stderr


def test_a_comparison_of_the_same_has_one_side(shop: Settings, champion: Release) -> None:
    same: Comparison = compare("red mug", shop, champion=champion, weights={})
    assert all("changed" not in row for row in side_by_side(same))
