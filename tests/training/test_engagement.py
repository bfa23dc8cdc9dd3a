"""The engagement stage from logged impressions to answers, on a simulated shop whose shoppers' tastes are known."""

import asyncio
import dataclasses
import json
import shutil
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pydantic import TypeAdapter

from recflow import featurestore
from recflow.evaluation.evaluate import evaluate
from recflow.evaluation.gate import gate
from recflow.events.erase import take_out
from recflow.features.build import build_features
from recflow.features.materialize import materialize
from recflow.features.views import declared_views
from recflow.models.catalog import load_ranker, load_retrieval
from recflow.models.dataset import TrainingSet
from recflow.models.engagement import Engagement
from recflow.models.engagement_inputs import PAIR_INPUTS, Shelf
from recflow.models.engagement_ranking import EngagedRanker
from recflow.models.engagement_slates import calibrated_on, judged_on, learned_from, read_inputs
from recflow.models.features import Encoders
from recflow.models.heuristics import Popularity
from recflow.models.linear import EASE
from recflow.models.ranker import CandidateRanker
from recflow.models.slates import Slates
from recflow.onlinestore import open_reader
from recflow.schema import EVENTS, TIMESTAMP, Days
from recflow.serving.answering import Answerer
from recflow.serving.answers import ItemsAnswer
from recflow.serving.bundle import Bundle, load_bundle
from recflow.serving.feedback import EventLog
from recflow.serving.http.table import table
from recflow.serving.make_bundle import build_bundle
from recflow.serving.online import OnlineStore
from recflow.serving.placements.campaigns import CampaignCatalogue
from recflow.serving.probe import probe_context
from recflow.serving.recommend import Recommender
from recflow.serving.requests import RecommendRequest
from recflow.settings import Settings, load_settings
from recflow.storage import Storage, write_json
from recflow.training.engagement import fit_engagement, why_not
from recflow.training.erase import leave_out
from recflow.training.impressions import logged_slates
from recflow.training.ranker import fit_ranker
from recflow.training.training_set import build_training_set
from recflow.training.windows import CandidateWindows
from tests import simulated
from tests.serving.http.conftest import Door

TRAINING = {"engagement": {"min_clicks": 100, "hours": 2}, "min_examples": 5, "ease_regularization": 20.0}


@dataclass(frozen=True)
class Shop:
    """A simulated shop whose candidates are EASE, with a stage above it, and popularity."""

    settings: Settings
    until: date
    training: TrainingSet
    candidates: Path
    fitted: dict[str, Any]

    @property
    def slates(self) -> Slates:
        slates = Slates.open(self.training)
        assert slates is not None
        return slates

    @property
    def encoders(self) -> Encoders:
        return Encoders.load(self.candidates / "encoder.json")

    def stage(self, part: str) -> EngagedRanker:
        stage = Engagement.load(self.candidates / "engagement" / "ease" / part)
        return EngagedRanker(load_retrieval(self.candidates / "ease" / part), stage)


@pytest.fixture(scope="module")
def engaged(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    folder = tmp_path_factory.mktemp("simulated")
    settings = load_settings(home=folder / "var", training=TRAINING, evaluation={"resamples": 200})
    days = simulated.fill_lake(settings, folder / "feed", days=35, users=1500, items=400, seed=3)
    build_features(days, settings)
    featurestore.apply(declared_views(), settings)
    build_training_set(days.end, settings)
    storage, name = Storage(settings), str(days.end)
    training = TrainingSet.open(storage.folder("training_sets", name))
    with storage.writing_folder("candidates", name) as (work, manifest):
        for model in (EASE(regularization=20.0), Popularity()):
            for part, before in (("release", None), ("holdout", training.holdout_start)):
                (work / model.name / part).mkdir(parents=True)
                model.fit(training.interactions(before)).save(work / model.name / part)
        training.fit_encoders(training.training_cuts(ending_by=training.holdout_start)).save(work / "encoder.json")
        encoders = Encoders.load(work / "encoder.json")
        manifest["engagement"] = fit_engagement(training, encoders, work, ["ease"], settings.training)
        manifest["trained_at"] = "2024-02-05T02:00:00+00:00"
    return Shop(settings, days.end, training, storage.folder("candidates", name), manifest["engagement"])


# -- labels


LAST = date(2024, 3, 10)
MORNING = datetime(2024, 3, 9, 10, tzinfo=UTC)


def _event(kind: str, item: str, minute: float, **columns: Any) -> dict[str, Any]:
    moment = MORNING + timedelta(minutes=minute)
    known = {"event_id": f"{kind}-{item}-{minute}", "event_type": kind, "item_id": item, "event_timestamp": moment}
    return {"user_id": "ann", "source": "test", **known, **columns}


def _slates_of(settings: Settings, events: list[dict[str, Any]], cuts: list[date]) -> pa.Table:
    storage = Storage(settings)
    table = pa.Table.from_pylist(events, schema=EVENTS)
    days = table["event_timestamp"].cast(pa.date32())
    storage.write_partitions(
        "events", table.append_column("event_date", days), {day: {} for day in Days(cuts[0], LAST).dates()}
    )
    history = table.filter(
        pa.compute.is_in(table["event_type"], pa.array(["view", "click", "add_to_cart", "purchase"]))
    )
    history = history.sort_by("event_timestamp")
    return logged_slates(
        storage,
        cuts,
        LAST,
        users=pa.table({"user_id": ["ann"]}),
        items=pa.table({"item_id": ["A", "B", "C"]}),
        events=pa.table(
            {
                "user_idx": np.zeros(history.num_rows, np.int32),
                "event_timestamp": history["event_timestamp"].cast(TIMESTAMP),
            }
        ),
        settings=settings.training,
    )


def test_what_followed_a_visit_is_worked_out_by_hand(settings: Settings) -> None:
    events = [
        _event("purchase", "C", -60),  # before anything was shown
        *(_event("impression", item, 0, position=place, request_id="r1") for place, item in enumerate("ABC", 1)),
        _event("click", "A", 1, request_id="r1"),
        _event("impression", "A", 5, position=1, request_id="r2"),
        _event("impression", "C", 5, position=2, request_id="r2"),
        _event("add_to_cart", "A", 6, request_id="r1"),  # of the first list, though the second came since
        _event("purchase", "C", 7),  # names no list: the last that showed it
        _event("purchase", "B", 8, request_id="of a mail"),  # of a list that nobody logged
        _event("view", "A", 5 + 24 * 60),  # a day later, to the minute: the last that is in time
        _event("click", "C", 6 + 24 * 60),  # too late
        _event("impression", "B", 9, position=1, request_id="r3", user_id=None),  # nobody knows who
        _event("impression", "B", 9, request_id="r4"),  # nobody knows where
        _event("impression", "unheard of", 9, position=1, request_id="r5"),
        _event("impression", "B", 24 * 60 + 600, position=1, request_id="r6"),  # what follows isn't all in yet
    ]
    slates = _slates_of(settings, events, [date(2024, 3, 2)]).to_pydict()
    assert slates["items"] == [[0, 1, 2], [0, 2]]
    assert slates["positions"] == [[1, 2, 3], [1, 2]]
    assert slates["outcomes"] == [[2, 0, 0], [1, 3]]
    assert slates["moment"] == [MORNING, MORNING + timedelta(minutes=5)]
    assert slates["cut"] == [date(2024, 3, 9)] * 2
    assert list(zip(slates["history_start"], slates["history_end"], strict=True)) == [(0, 1), (0, 2)]


def test_an_event_at_the_very_moment_is_no_history_and_an_older_slate_has_an_older_cut(settings: Settings) -> None:
    events = [
        _event("view", "A", -4 * 24 * 60),
        _event("impression", "A", -3 * 24 * 60, position=1, request_id="r0"),
        _event("impression", "A", 0, position=1, request_id="r1"),
        _event("purchase", "A", 0),  # at the same second
    ]
    slates = _slates_of(settings, events, [date(2024, 3, 1), date(2024, 3, 4), date(2024, 3, 8)]).to_pydict()
    assert slates["cut"] == [date(2024, 3, 4), date(2024, 3, 9)]
    assert slates["history_end"] == [1, 1]
    assert slates["outcomes"] == [[0], [3]]


def test_no_more_slates_are_kept_than_asked_for_on_either_side_of_the_cut(tmp_path: Path) -> None:
    settings = load_settings(home=tmp_path / "var", training={"engagement": {"slates": 3}})
    events = [
        _event("impression", "A", day * 24 * 60 + place, position=1, request_id=f"{day}-{place}")
        for day in (-5, -1)
        for place in range(8)
    ]
    cuts = _slates_of(settings, events, [date(2024, 3, 1), date(2024, 3, 8)])["cut"].to_pylist()
    assert cuts == [date(2024, 3, 1)] * 3 + [date(2024, 3, 8)] * 3


# -- the simulated shop


def test_no_slate_knows_its_future(engaged: Shop) -> None:
    slates, training = engaged.slates, engaged.training
    at = training.events.timestamp_us
    older = slates.history_end > slates.history_start
    assert (at[slates.history_end[older] - 1] < slates.moment_us[older]).all()
    after = slates.history_end < np.searchsorted(training.user_idx, slates.user_idx, side="right")
    assert (at[slates.history_end[after]] >= slates.moment_us[after]).all()
    days = slates.moment_us.astype("datetime64[us]").astype("datetime64[D]")
    assert (slates.cut <= days).all()
    is_holdout = days >= np.datetime64(training.holdout_start)
    assert (slates.cut[is_holdout] == days[is_holdout]).all()
    # The events from the moments on may be any: what the stage reads is the same.
    inputs = _inputs(engaged, training)
    scored = inputs[:, PAIR_INPUTS.index("is_scored")] == 1
    np.testing.assert_array_equal(scored, np.repeat(is_holdout, np.diff(slates.ends)))
    some = slates.take(np.array([len(slates) // 2]))
    later = np.arange(len(at)) >= some.history_end[0]
    changed = training.events.item_idx.copy()
    changed[later] = 0
    events = dataclasses.replace(training.events, item_idx=changed)
    place = slates.impressions_of(np.array([len(slates) // 2]))
    other = _inputs(engaged, dataclasses.replace(training, events=events))
    np.testing.assert_array_equal(other[place], inputs[place])


def _inputs(engaged: Shop, training: TrainingSet) -> np.ndarray:
    ease = load_retrieval(engaged.candidates / "ease" / "holdout")
    return read_inputs(engaged.slates, training, engaged.encoders, ease, Shelf.of(training.items), depth=100)


def test_features_of_a_slate_are_those_of_the_snapshot_before(engaged: Shop) -> None:
    slates, storage = engaged.slates, Storage(engaged.settings)
    row = len(slates) - 1
    users = engaged.training.users["user_id"].take([slates.user_idx[row]]).combine_chunks()
    snapshot = storage.read_partition("user_purchase_stats", slates.cut[row].item() - timedelta(days=1))
    own = snapshot.filter(pa.compute.equal(snapshot["user_id"], users[0]))
    expected = own["user_orders_lifetime"].to_pylist() or [None]
    assert slates.user_features["user_orders_lifetime"][row].as_py() == expected[0]


def test_parts_learn_calibrate_and_are_judged_one_after_the_other(engaged: Shop) -> None:
    slates, start = engaged.slates, engaged.training.holdout_start
    for part in ("holdout", "release"):
        learned, calibrated = (choose(slates, part, start) for choose in (learned_from, calibrated_on))
        assert learned[-1] + 1 == calibrated[0]
    assert calibrated[-1] + 1 == len(slates)
    judged = judged_on(slates, start)
    assert calibrated_on(slates, "holdout", start)[-1] + 1 == judged[0]
    assert slates.cut[judged[0]] >= np.datetime64(start)


@pytest.fixture(scope="module")
def figures(engaged: Shop) -> dict[str, Any]:
    report = Path(evaluate(engaged.until, None, engaged.settings).uri)
    assert "Engagement stage" in (report / "report.html").read_text()
    assert (report / "reliability.png").stat().st_size > 10_000
    found: dict[str, Any] = json.loads((report / "metrics.json").read_text())["engagement"]
    return found


def test_its_order_of_slates_beats_the_retrieval_and_popularity(figures: dict[str, Any]) -> None:
    gain = {name: figure["gain"]["value"] for name, figure in figures["order"].items()}
    assert gain["engagement"] > gain["retrieval"] + 0.005
    assert gain["engagement"] > gain["popularity"] + 0.005
    assert figures["gain_vs_retrieval"]["value"] == pytest.approx(gain["engagement"] - gain["retrieval"])


def test_its_chances_are_truer_than_a_rate_by_position_and_the_score_alone(figures: dict[str, Any]) -> None:
    heads = [head["models"] for head in figures["chances"].values()]
    loss = {name: sum(head[name]["log_loss"] for head in heads) for name in heads[0]}
    assert loss["engagement"] < loss["rate by position"]
    assert loss["engagement"] < loss["retrieval's score"]
    assert max(head["engagement"]["ece"] for head in heads) < 0.05


def test_equal_slates_give_equal_weights_and_what_is_there_stays(engaged: Shop, tmp_path: Path) -> None:
    shutil.copytree(engaged.candidates / "ease", tmp_path / "ease")
    again = fit_engagement(engaged.training, engaged.encoders, tmp_path, ["ease"], engaged.settings.training)
    assert again["candidates"]["ease"]["calibrators"] == engaged.fitted["candidates"]["ease"]["calibrators"]
    for part in ("holdout", "release"):
        weights = f"engagement/ease/{part}/model.safetensors"
        assert (tmp_path / weights).read_bytes() == (engaged.candidates / weights).read_bytes()
    written = (tmp_path / weights).stat().st_mtime_ns
    fit_engagement(engaged.training, engaged.encoders, tmp_path, ["ease"], engaged.settings.training)
    assert (tmp_path / weights).stat().st_mtime_ns == written


def test_a_bundle_with_the_stage_answers_by_it(engaged: Shop, figures: dict[str, Any]) -> None:
    verdict = gate(engaged.until, engaged.settings).manifest
    assert verdict["candidate"] == "ease"
    assert verdict["engagement"]["sentence"] == verdict["sentences"][1]
    assert verdict["engagement"]["applied"], verdict["engagement"]["sentence"]
    # The candidate's own floors aren't what this is about.
    write_json(
        Storage(engaged.settings).folder("verdicts", str(engaged.until)) / "manifest.json", {**verdict, "passed": True}
    )
    folder = Path(build_bundle(engaged.until, engaged.settings).uri)
    bundle = load_bundle(folder)
    assert isinstance(bundle.ranker, EngagedRanker)
    assert type(load_ranker(folder / "model" / "holdout")) is EASE  # the stage has seen the hold-out
    expected = engaged.stage("release").score(probe_context(bundle))
    np.testing.assert_array_equal(bundle.ranker.score(probe_context(bundle)), expected)

    materialize(Days.one(engaged.until), engaged.settings)
    users = engaged.training.users["user_id"].to_pylist()[:8]
    answers = _answers(engaged.settings, bundle, users)
    for answer in answers:
        assert answer["fallback"] is None
        scores = [item["score"] for item in answer["items"]]
        assert scores == sorted(scores, reverse=True)
        assert all(item["reason"]["text"] for item in answer["items"])
    shown = [[item["item_id"] for item in answer["items"]] for answer in answers]
    bare = _answers(engaged.settings, dataclasses.replace(bundle, ranker=bundle.ranker.retrieval), users)
    assert shown != [[item["item_id"] for item in answer["items"]] for answer in bare]


def _answers(settings: Settings, bundle: Bundle, users: list[str]) -> list[Any]:
    recommender = Recommender(bundle, settings, version="1", event_log=EventLog(settings))
    answerer = Answerer(
        OnlineStore(lambda: open_reader(settings), retry_seconds=60, budget_seconds=60), CampaignCatalogue(settings)
    )
    answers = asyncio.run(answerer.answer([RecommendRequest(user_id=user, k=10) for user in users], recommender))
    assert not [answer for answer in answers if isinstance(answer, Exception)]
    return answers


# -- above the second-stage ranker


@pytest.fixture(scope="module")
def above_ranker(engaged: Shop, tmp_path_factory: pytest.TempPathFactory) -> Shop:
    """Return the shop with a small `ranker` and the stage above it, which passed the gate."""
    home = tmp_path_factory.mktemp("above_ranker") / "var"
    shutil.copytree(engaged.settings.home, home)
    small = {"ranker_heads": 2, "ranker_epochs": 2, "ranker_window_shoppers": 300, "ranker_windows": 2}
    settings = load_settings(home=home, training=TRAINING | small)
    storage, name, training = Storage(settings), str(engaged.until), engaged.training
    candidates = storage.folder("candidates", name)
    windows = CandidateWindows(training, engaged.encoders, settings.training)
    for part, before in (("holdout", training.holdout_start), ("release", None)):
        (candidates / "ranker" / part).mkdir(parents=True)
        cuts = training.training_cuts(ending_by=before) if before else training.training_cuts()
        fit_ranker(windows, cuts, before=before).save(candidates / "ranker" / part)
    fitted = fit_engagement(training, engaged.encoders, candidates, ["ranker"], settings.training)
    verdict = {"candidate": "ranker", "passed": True, "sentences": ["By hand."], "engagement": {"applied": True}}
    with storage.writing_folder("verdicts", name) as (_, manifest):
        manifest |= verdict
    return Shop(settings, engaged.until, training, candidates, fitted)


@pytest.fixture(scope="module")
def told(above_ranker: Shop) -> list[dict[str, Any]]:
    """Return what `/v1/recommend` says to some shoppers of all items, explained."""
    settings = above_ranker.settings
    materialize(Days.one(above_ranker.until), settings)
    bundle = load_bundle(Path(build_bundle(above_ranker.until, settings).uri))
    users = above_ranker.training.users["user_id"].to_pylist()[:6]
    return [_recommended(settings, bundle, user_id=user, k=100, explain=True) for user in users]


def _recommended(settings: Settings, bundle: Bundle, **asked: Any) -> dict[str, Any]:
    door = Door(settings, routes=table())
    try:
        door.shop.slot.current = Recommender(bundle, settings, version="1", event_log=door.shop.event_log)
        answer = door.ask("POST", "/v1/recommend", json=asked)
        described = TypeAdapter(ItemsAnswer).validate_json(answer.content, extra="forbid")
    finally:
        door.close()
    assert answer.status_code == 200
    assert described == answer.json()
    return dict(described)


def test_above_the_ranker_lists_are_in_order_of_the_chances_that_are_told(
    above_ranker: Shop, told: list[dict[str, Any]]
) -> None:
    stage = Engagement.load(above_ranker.candidates / "engagement" / "ranker" / "release")
    moved = 0
    for answer in told:
        assert answer["fallback"] is None
        made = answer["explanation"]["engagement"]
        assert [each["chances"] is not None for each in made] == [True] * 100  # the stage's depth
        base = np.array([each["base_score"] for each in made])
        chances = np.array([list(each["chances"].values()) for each in made])
        assert list(made[0]["chances"]) == ["click", "add_to_cart", "purchase"]
        assert ((chances >= 0) & (chances <= 1)).all()
        assert (np.diff(chances, axis=1) <= 0).all()
        worth = chances @ [0.2, 0.3, 0.5] * np.exp(stage.prior * (base - base.min()) / np.ptp(base))
        scores = np.array([item["score"] for item in answer["items"]])
        np.testing.assert_allclose(scores, base.min() + np.ptp(base) * worth / worth.max(), rtol=1e-3, atol=1e-4)
        assert (np.diff(scores) <= 0).all()
        moved += (np.diff(base) > 0).any()
    assert moved == len(told)


def test_the_base_score_is_the_rankers_own(above_ranker: Shop, told: list[dict[str, Any]]) -> None:
    settings, alone = above_ranker.settings, load_ranker(above_ranker.candidates / "ranker" / "release")
    assert type(alone) is CandidateRanker
    folder = Storage(settings).folder("bundles", str(above_ranker.until))
    bundle = load_bundle(folder)
    assert isinstance(bundle.ranker, EngagedRanker)
    assert type(load_ranker(folder / "model" / "holdout")) is CandidateRanker
    users = above_ranker.training.users["user_id"].to_pylist()[: len(told)]
    bare = dataclasses.replace(bundle, ranker=alone)
    for user, answer in zip(users, told, strict=True):
        without = _recommended(settings, bare, user_id=user, k=100, explain=True)
        assert "engagement" not in without["explanation"]
        expected = {item["item_id"]: item["score"] for item in without["items"]}
        made = zip(answer["items"], answer["explanation"]["engagement"], strict=True)
        assert {item["item_id"]: each["base_score"] for item, each in made} == pytest.approx(expected, rel=1e-4)


def test_below_the_stages_depth_there_are_no_chances_and_the_score_is_the_base(above_ranker: Shop) -> None:
    settings = above_ranker.settings
    bundle = load_bundle(Storage(settings).folder("bundles", str(above_ranker.until)))
    ranker = bundle.ranker
    assert isinstance(ranker, EngagedRanker)
    shallow = EngagedRanker(ranker.retrieval, dataclasses.replace(ranker.stage, depth=5))
    user = above_ranker.training.users["user_id"][0].as_py()
    answer = _recommended(settings, dataclasses.replace(bundle, ranker=shallow), user_id=user, k=12, explain=True)
    made = answer["explanation"]["engagement"]
    assert [each["chances"] is None for each in made] == [False] * 5 + [True] * 7
    assert [each["base_score"] for each in made[5:]] == [item["score"] for item in answer["items"][5:]]
    stranger = _recommended(settings, bundle, k=3, explain=True)
    assert stranger["fallback"]["kind"] == "popularity"
    assert "engagement" not in stranger["explanation"]


# -- who has none


def test_a_feed_of_purchases_only_has_no_stage_and_says_so(training_set: TrainingSet, tmp_path: Path) -> None:
    assert training_set.manifest["impressions"]["shown"] == 0
    assert Slates.open(training_set) is None
    facts = fit_engagement(training_set, Encoders(), tmp_path, ["ease"], load_settings().training)
    assert facts["trained"] is False
    assert facts["sentence"] == "Engagement: left out, for no impressions of known users are logged."
    assert not list(tmp_path.iterdir())


def test_too_few_clicks_and_privacy_leave_it_out_and_say_so() -> None:
    counts = {"shown": 900, "holdout_clicks": 12}
    assert "12 clicks followed" in str(why_not(counts, load_settings().training))
    assert why_not({**counts, "holdout_clicks": 500}, load_settings().training) is None
    private = load_settings(training={"privacy": {"mode": "dp"}}).training
    assert "differential privacy" in str(why_not({**counts, "holdout_clicks": 500}, private))


def test_who_is_erased_leaves_no_slate_and_the_others_keep_their_histories(engaged: Shop, tmp_path: Path) -> None:
    settings = engaged.settings.model_copy(update={"home": tmp_path / "var"})
    shutil.copytree(engaged.settings.home, settings.home)
    slates, training = engaged.slates, engaged.training
    gone = int(slates.user_idx[len(slates) // 2])
    user_id = training.users["user_id"][gone].as_py()
    leave_out(take_out([(user_id, datetime(2025, 1, 1, tzinfo=UTC))], settings), settings)

    left = TrainingSet.open(settings.home / "training_sets" / str(engaged.until))
    kept, others = Slates.open(left), slates.take(np.flatnonzero(slates.user_idx != gone))
    assert kept is not None
    assert len(kept) == len(others) < len(slates)
    assert left.users["user_id"].take(kept.user_idx).equals(training.users["user_id"].take(others.user_idx))
    at, before = left.events.timestamp_us, training.events.timestamp_us
    filled = others.history_end > others.history_start
    for bound, shift in (("history_start", 0), ("history_end", 1)):
        new, old = (getattr(each, bound)[filled] - shift for each in (kept, others))
        np.testing.assert_array_equal(at[new], before[old])
    assert left.manifest["impressions"]["slates"] == len(kept)
    assert left.manifest["impressions"]["clicks"] == int(kept.labels[:, 0].sum())
