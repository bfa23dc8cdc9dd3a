"""Figures of a shop that is worked out by hand; see conftest for who bought what."""

import json
import re
from datetime import date
from math import log2
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from recflow.errors import MissingInput, TrainingError
from recflow.evaluation import scoring
from recflow.evaluation.evaluate import _privacy, evaluate
from recflow.evaluation.figures import read_figures, selection_scores
from recflow.evaluation.gate import judge
from recflow.evaluation.holdout import open_holdout
from recflow.evaluation.scoring import NotComparable, on_own_catalogue, unseen_weights
from recflow.models.dataset import TrainingSet
from recflow.models.features import Encoders, FeatureEncoder
from recflow.models.heuristics import RepeatPurchase
from recflow.models.interactions import PURCHASE, Context
from recflow.settings import Settings, TrainingPrivacySettings
from recflow.storage import Storage

from .conftest import (
    ITEMS,
    UNTIL,
    Served,
    WriteBundle,
    WriteCandidates,
    popularity,
    repeat_purchase,
    write_training_set,
)

BESTSELLERS = [5, 4, 3, 2, 1, 0]  # everybody's list: A B C D E F
TWO = 1 + 1 / log2(3)  # the best gain of two wanted items


def figures_of(settings: Settings, champion: Served | None = None) -> dict[str, Any]:
    return read_figures(evaluate(UNTIL, champion, settings))


@pytest.fixture
def settings(settings: Settings) -> Settings:
    # One buyer makes an item of this tiny shop a known one.
    return settings.model_copy(update={"evaluation": settings.evaluation.model_copy(update={"cold_item_buyers": 1})})


# -- figures by hand


def test_task_any_by_hand(settings: Settings, write_candidates: WriteCandidates) -> None:
    write_candidates({"popularity": popularity(BESTSELLERS)})
    any_ = figures_of(settings)["models"]["popularity"]["any"]
    # u0 finds A at 1 and C at 3; u1 finds C at 3; u2 finds E at 5 and F at 6. u3 has no history: not counted.
    ndcg = ((1 / log2(2) + 1 / log2(4)) / TWO + 1 / log2(4) + (1 / log2(6) + 1 / log2(7)) / TWO) / 3
    assert any_["ndcg_at_10"]["value"] == pytest.approx(ndcg)
    assert any_["map_at_10"]["value"] == pytest.approx(((1 + 2 / 3) / 2 + 1 / 3 + (1 / 5 + 2 / 6) / 2) / 3)
    assert any_["recall_at_10"]["value"] == 1
    assert any_["precision_at_10"]["value"] == pytest.approx((2 + 1 + 2) / 10 / 3)
    assert any_["hit_rate_at_20"]["value"] == 1
    assert any_["coverage_at_10"]["value"] == 1
    # Buyers before: A 1, B 1, C 1, D 1, E 0, F 0, of three shoppers.
    assert any_["novelty_at_10"]["value"] == pytest.approx((4 * -log2(2 / 4) + 2 * -log2(1 / 4)) / 6)
    assert 0 < any_["diversity_at_10"]["value"] < 1
    assert any_["ndcg_at_10"]["low"] <= ndcg <= any_["ndcg_at_10"]["high"]


def test_task_new_leaves_out_what_was_bought_before(settings: Settings, write_candidates: WriteCandidates) -> None:
    write_candidates({"popularity": popularity(BESTSELLERS)})
    figures = figures_of(settings)
    # u0 sees C D E F and wanted C; u2 sees A B C E F and wanted E and F; u1 wanted nothing new.
    ndcg = (1 + (1 / log2(5) + 1 / log2(6)) / TWO) / 2
    assert figures["models"]["popularity"]["new"]["ndcg_at_10"]["value"] == pytest.approx(ndcg)
    assert figures["users"] == {"any": 3, "new": 2}


def test_repeat_purchase_ranks_own_items_first(settings: Settings, write_candidates: WriteCandidates) -> None:
    write_candidates({"repeat_purchase": repeat_purchase([0.5, 0.4, 0.3, 0.2, 0.1, 0.0])})
    any_ = figures_of(settings)["models"]["repeat_purchase"]["any"]
    # u0: B (5 days ago), A (10 days ago), C, ...; u1: C, ...; u2: D, A, B, C, E, F.
    u0, u1, u2 = (1 / log2(3) + 1 / log2(4)) / TWO, 1.0, (1 / log2(6) + 1 / log2(7)) / TWO
    assert any_["ndcg_at_10"]["value"] == pytest.approx((u0 + u1 + u2) / 3)


def test_slices_by_hand(settings: Settings, write_candidates: WriteCandidates) -> None:
    write_candidates({"popularity": popularity(BESTSELLERS)})
    figures = figures_of(settings)
    slices = figures["models"]["popularity"]["slices"]
    u0, u1, u2 = 1.5 / TWO, 0.5, (1 / log2(6) + 1 / log2(7)) / TWO
    expected = {
        "home_market": (2, (u0 + u1) / 2),
        "other_markets": (1, u2),
        "light_users": (2, (u1 + u2) / 2),  # one event each, the median
        "heavy_users": (1, u0),  # two events
        "cold_users": (1, 1.0),  # u3: A stands first
        "cold_items": (1, u2),  # E and F: nobody had bought them
    }
    found = {name: (entry["users"], entry["ndcg_at_10"]["value"]) for name, entry in slices["any"].items()}
    assert found == {name: (users, pytest.approx(value)) for name, (users, value) in expected.items()}
    assert slices["new"]["cold_users"]["ndcg_at_10"]["value"] == 1
    assert figures["slices"]["new"]["light_users"] == 1


def test_differences_are_paired_and_the_best_baseline_is_named(
    settings: Settings, write_candidates: WriteCandidates
) -> None:
    write_candidates(
        {
            "popularity": popularity(BESTSELLERS),
            "item_knn": popularity([0, 0, 9, 0, 1, 1]),  # C first for everybody
            "sequence": popularity([0, 0, 0, 0, 8, 9]),
        }
    )
    figures = figures_of(settings)
    knn, plain = (figures["models"][name]["any"]["ndcg_at_10"]["value"] for name in ("item_knn", "popularity"))
    assert knn > plain
    assert figures["best_baseline"]["any"] == "item_knn"
    versus = figures["models"]["popularity"]["vs_best_baseline"]["any"]
    assert versus["baseline"] == "item_knn"
    assert versus["ndcg_at_10"]["value"] == pytest.approx(plain - knn)
    own = figures["models"]["item_knn"]["vs_best_baseline"]["any"]["ndcg_at_10"]
    assert own == {"value": 0, "low": 0, "high": 0}
    assert figures["models"]["item_knn"]["vs_champion"] is None


def test_selection_is_free_of_the_tasks_scale() -> None:
    def model(any_: float | None, new: float) -> dict[str, Any]:
        return {"any": {"ndcg_at_10": {"value": any_}}, "new": {"ndcg_at_10": {"value": new}}}

    models = {"one": model(0.40, 0.05), "other": model(0.20, 0.10), "broken": model(None, 0.10)}
    assert selection_scores(models) == {"one": 0.75, "other": 0.75, "broken": 0.5}
    assert selection_scores({"zero": model(0.0, 0.0)}) == {"zero": 0.0}


def test_scores_that_are_no_numbers_are_counted_and_ranked_last(
    settings: Settings, write_candidates: WriteCandidates
) -> None:
    write_candidates({"popularity": popularity([np.nan, 4, np.inf, 2, 1, 0])})
    entry = figures_of(settings)["models"]["popularity"]
    assert entry["bad_scores"] == 4 * 2
    assert entry["any"]["coverage_at_10"]["value"] == 4 / 6


def test_a_yardstick_is_measured_and_held_against_but_never_picked(
    settings: Settings, write_candidates: WriteCandidates
) -> None:
    better = popularity([9, 0, 8, 0, 7, 7])
    write_candidates({"lightgbm": better, "popularity": popularity(BESTSELLERS)}, yardsticks=["lightgbm"])
    figures = figures_of(settings)
    values = {name: figures["models"][name]["any"]["ndcg_at_10"]["value"] for name in ("lightgbm", "popularity")}
    assert values["popularity"] < values["lightgbm"]
    assert figures["best_baseline"]["any"] == "lightgbm"
    # Its figures are part of the scale all the same.
    assert set(figures["selection"]) == {"popularity"}
    assert figures["selection"]["popularity"] < 1
    assert judge(figures, None, settings.gate)["candidate"] == "popularity"


def test_yardsticks_alone_leave_nothing_to_serve(settings: Settings, write_candidates: WriteCandidates) -> None:
    write_candidates({"lightgbm": popularity(BESTSELLERS)}, yardsticks=["lightgbm"])
    with pytest.raises(MissingInput, match="release weights"):
        evaluate(UNTIL, None, settings)


# -- the champion, on the same hold-out


def test_the_champion_is_scored_on_its_own_catalogue(
    settings: Settings, write_candidates: WriteCandidates, write_bundle: WriteBundle
) -> None:
    write_candidates({"popularity": popularity(BESTSELLERS)})
    # It never heard of B, D and E, and knows a Z that is gone: everybody's list is F C A.
    unseen, seen = popularity([9, 5, 1, 100]), popularity([0, 0, 0, 0])
    champion = write_bundle(
        ["F", "C", "A", "Z"], release=unseen, holdout=seen, until="2011-03-11", holdout_start="2011-03-03"
    )
    figures = figures_of(settings, champion)
    entry = figures["champion"]
    assert (entry["version"], entry["weights"], entry["reason"]) == ("7", "release", None)
    u0, u1, u2 = (1 / log2(3) + 1 / log2(4)) / TWO, 1 / log2(3), 1 / TWO
    assert entry["figures"]["any"]["ndcg_at_10"]["value"] == pytest.approx((u0 + u1 + u2) / 3)
    assert entry["figures"]["any"]["coverage_at_10"]["value"] == 3 / 6
    assert set(figures["models"]) == {"popularity"}
    assert set(figures["selection"]) == {"popularity"}
    own = figures["models"]["popularity"]
    gain = own["any"]["ndcg_at_10"]["value"] - entry["figures"]["any"]["ndcg_at_10"]["value"]
    assert own["vs_champion"]["any"]["ndcg_at_10"]["value"] == pytest.approx(gain)
    home = own["vs_champion"]["slices"]["any"]["home_market"]
    assert home["users"] == 2
    assert home["champion"] == pytest.approx((u0 + u1) / 2)
    assert home["value"] == pytest.approx((1.5 / TWO + 0.5) / 2 - (u0 + u1) / 2)


def test_a_champion_that_saw_the_hold_out_is_scored_with_its_older_weights(
    settings: Settings, write_candidates: WriteCandidates, write_bundle: WriteBundle
) -> None:
    write_candidates({"popularity": popularity(BESTSELLERS)})
    champion = write_bundle(
        ITEMS,
        release=popularity([0] * 6),
        holdout=popularity(BESTSELLERS),
        until="2011-03-13",
        holdout_start="2011-03-05",
    )
    figures = figures_of(settings, champion)
    assert figures["champion"]["weights"] == "holdout"
    assert figures["models"]["popularity"]["vs_champion"]["any"]["ndcg_at_10"] == {"value": 0, "low": 0, "high": 0}


@pytest.mark.parametrize(
    ("until", "own_holdout", "weights"),
    [
        ("2011-03-11", "2011-03-03", "release"),  # its data end the day before
        ("2011-03-12", "2011-03-04", "holdout"),  # its data hold the first day
        ("2011-03-20", "2011-03-12", "holdout"),  # the same hold-out
    ],
)
def test_which_weights_have_not_seen_the_hold_out(until: str, own_holdout: str, weights: str) -> None:
    days = [date.fromisoformat(day) for day in (until, own_holdout, "2011-03-12")]
    assert unseen_weights(*days) == weights


def test_a_champion_of_later_days_cannot_be_compared(
    settings: Settings, write_candidates: WriteCandidates, write_bundle: WriteBundle
) -> None:
    write_candidates({"popularity": popularity(BESTSELLERS)})
    model = popularity(BESTSELLERS)
    champion = write_bundle(ITEMS, release=model, holdout=model, until="2011-03-25", holdout_start="2011-03-17")
    figures = figures_of(settings, champion)
    assert figures["champion"]["figures"] is None
    assert "2011-03-25" in figures["champion"]["reason"]
    assert figures["models"]["popularity"]["vs_champion"] is None
    report = Path(Storage(settings).folder("evaluations", str(UNTIL)) / "report.html").read_text()
    assert "be compared" in report


@pytest.mark.parametrize("lost", ["model/release/model.safetensors", "bundle.json", "encoder.json", "items.parquet"])
def test_a_champion_that_cannot_be_loaded_is_a_reason_and_no_crash(
    lost: str, settings: Settings, write_candidates: WriteCandidates, write_bundle: WriteBundle
) -> None:
    write_candidates({"popularity": popularity(BESTSELLERS)})
    model = popularity(BESTSELLERS)
    champion = write_bundle(ITEMS, release=model, holdout=model, until="2011-03-01", holdout_start="2011-02-21")
    (champion.folder / lost).unlink()
    entry = figures_of(settings, champion)["champion"]
    assert lost.rsplit("/", 1)[-1] in entry["reason"]
    assert entry["figures"] is None


def test_a_champion_whose_features_are_gone_cannot_be_compared(
    settings: Settings, write_candidates: WriteCandidates, write_bundle: WriteBundle
) -> None:
    write_candidates({"popularity": popularity(BESTSELLERS)})
    model = popularity(BESTSELLERS)
    champion = write_bundle(ITEMS, release=model, holdout=model, until="2011-03-01", holdout_start="2011-02-21")
    gone = FeatureEncoder.fit(pa.table({"user_visits_7d": [1.0, 2.0]}), ["user_visits_7d"])
    Encoders(user=gone).save(champion.folder / "encoder.json")
    assert "user_visits_7d" in figures_of(settings, champion)["champion"]["reason"]


def test_a_champion_fitted_on_the_future_is_refused_by_type() -> None:
    with pytest.raises(NotComparable, match="2011-03-25"):
        unseen_weights(date(2011, 3, 25), date(2011, 3, 17), date(2011, 3, 12))


@st.composite
def contexts(draw: st.DrawFn) -> tuple[Context, list[int]]:
    """Histories over six items, aligned to the right, and a catalogue that lists some of them in another order."""
    lengths = draw(st.lists(st.integers(0, 4), min_size=1, max_size=4))
    items = np.zeros((len(lengths), 4), np.int32)
    for row, length in enumerate(lengths):
        items[row, 4 - length :] = [draw(st.integers(1, 6)) for _ in range(length)]
    ages = np.where(items > 0, np.arange(8, 0, -2), 0).astype(np.float32)
    types = np.where(items > 0, PURCHASE, 0).astype(np.int8)
    features = np.arange(12, dtype=np.float32).reshape(6, 2)
    context = Context(
        items, ages, types, (items > 0).astype(np.float32), np.zeros((len(items), 0), np.float32), features
    )
    own = draw(st.lists(st.integers(0, 5), unique=True, min_size=1))
    return context, own


@given(case=contexts())
@hypothesis_settings(deadline=None, max_examples=60)
def test_another_order_of_the_catalogue_changes_no_score(case: tuple[Context, list[int]]) -> None:
    context, own = case
    shares = np.linspace(0.6, 0.1, 6, dtype=np.float32)
    reference = repeat_purchase(shares).score(context)

    class Watching(RepeatPurchase):
        def score(self, context: Context) -> np.ndarray:
            filled = context.items > 0
            assert (np.diff(filled.astype(int), axis=1) >= 0).all()  # still aligned to the right
            for column in (context.ages_days, context.event_types, context.quantities):
                assert ((column > 0) == filled).all()
            np.testing.assert_array_equal(context.item_features, np.arange(12).reshape(6, 2)[own])
            return super().score(context)

    model = Watching()
    model.popularity = shares[own]
    scores = on_own_catalogue(model, [ITEMS[item] for item in own], ITEMS)(context)
    np.testing.assert_array_equal(scores[:, own], reference[:, own])
    unknown = sorted(set(range(6)) - set(own))
    assert np.isneginf(scores[:, unknown]).all()


# -- the step


def test_what_was_wanted_and_new_agrees_with_the_examples(
    settings: Settings, write_candidates: WriteCandidates
) -> None:
    training = TrainingSet.open(Storage(settings).folder("training_sets", str(UNTIL)))
    holdout = open_holdout(training, settings.evaluation)
    place, item_idx, is_repeat = training.examples.targets_of(holdout.rows)
    np.testing.assert_array_equal(holdout.bought[place, item_idx], is_repeat)
    assert holdout.wanted.sum() == len(item_idx)


def test_batches_change_nothing(
    settings: Settings, write_candidates: WriteCandidates, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_candidates({"repeat_purchase": repeat_purchase([0.5, 0.4, 0.3, 0.2, 0.1, 0.0])})
    whole = figures_of(settings)
    monkeypatch.setattr(scoring, "_BATCH", 1)
    parts = figures_of(settings)
    for figures in (whole, parts):
        figures["models"]["repeat_purchase"].pop("seconds")
    assert parts == whole


def test_the_report_is_one_page_that_needs_nothing_else(settings: Settings, write_candidates: WriteCandidates) -> None:
    write_candidates({"popularity": popularity(BESTSELLERS), "<b>ease": popularity([0, 1, 2, 3, 4, 5])})
    artifact = evaluate(UNTIL, None, settings)
    folder = Path(artifact.uri)
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "&lt;b&gt;ease" in page
    assert "<b>ease" not in page
    assert "There is no champion yet" in page
    assert page.count("data:image/png;base64,") == 3
    assert not re.findall(r'(?:src|href)="(?!data:)', page)
    for slice_name in ("home market", "cold users", "cold items"):
        assert slice_name in page
    assert not re.search(r"\bu[0-3]\b", re.sub(r"base64,[^\"]*", "", page))  # no shopper is named
    for name in ("ndcg", "differences", "slices"):
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert artifact.manifest["users"] == {"any": 3, "new": 2}
    assert artifact.manifest["models"]["popularity"]["any"]["recall_at_10"] == 1
    json.loads((folder / "metrics.json").read_text(), parse_constant=lambda name: pytest.fail(name))


def test_privacy_stands_in_the_report_and_a_champion_without_it_is_passed_over(
    settings: Settings, write_candidates: WriteCandidates, write_bundle: WriteBundle
) -> None:
    write_candidates({"ranker": popularity(BESTSELLERS)})
    file = Storage(settings).folder("candidates", str(UNTIL)) / "manifest.json"
    kept = {"epsilon": 7.993, "delta": 1e-5, "unit": "shopper", "shoppers": 2022, "covers": "the network"}
    privacy = {"mode": "dp", "min_support": 2, "guarantees": {"ranker": kept}}
    file.write_text(json.dumps(json.loads(file.read_text()) | {"privacy": privacy}))
    same = popularity(BESTSELLERS)
    champion = write_bundle(ITEMS, release=same, holdout=same, until="2011-03-01", holdout_start="2011-02-21")
    asked = settings.model_copy(
        update={"training": settings.training.model_copy(update={"privacy": TrainingPrivacySettings(mode="dp")})}
    )
    artifact = evaluate(UNTIL, champion, asked)
    assert read_figures(artifact)["champion"] is None
    assert artifact.manifest["privacy"] == {**privacy, "asked": "dp", "passed_over": "7"}
    page = (Path(artifact.uri) / "report.html").read_text(encoding="utf-8")
    assert "at epsilon 7.99, delta 1e-05, for one\nshopper of 2,022" in page

    assert _privacy(file.parent, champion, settings) == ({**privacy, "asked": "none", "passed_over": None}, champion)
    bundle = champion.folder / "bundle.json"
    bundle.write_text(json.dumps({"privacy": {"mode": "dp"}}))
    assert _privacy(file.parent, champion, asked)[1] is champion
    bundle.write_text("{")
    assert _privacy(file.parent, champion, asked)[1] is None


def test_without_candidates_the_message_names_the_step(settings: Settings) -> None:
    write_training_set(settings)
    with pytest.raises(MissingInput, match="Run the step"):
        evaluate(UNTIL, None, settings)
    with Storage(settings).writing_folder("candidates", str(UNTIL)) as (folder, _):
        (folder / "encoder.json").write_text('{"user": [], "item": []}')
    with pytest.raises(MissingInput, match="Run train first"):
        evaluate(UNTIL, None, settings)


def test_nobody_with_a_history_is_an_error_that_says_so(
    settings: Settings,
) -> None:
    write_training_set(settings)
    training = TrainingSet.open(Storage(settings).folder("training_sets", str(UNTIL)))
    object.__setattr__(training.examples, "history_start", training.examples.history_end)
    with pytest.raises(TrainingError, match="none of the 4 shoppers"):
        open_holdout(training, settings.evaluation)
