"""The figures of the engagement stage, worked out by hand, and the rule by which it is served."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from sklearn.metrics import ndcg_score

from recflow.evaluation.engagement import judge_engagement
from recflow.evaluation.gate import judge
from recflow.models.engagement_order import attention, slate_ndcg
from recflow.models.slates import Slates
from recflow.settings import GateSettings
from tests.evaluation.test_gate import figures


def _slates(*sizes: int, outcome: list[int] | None = None, position: list[int] | None = None) -> Slates:
    count = sum(sizes)
    places = [place for size in sizes for place in range(1, size + 1)]
    return Slates(
        user_idx=np.zeros(len(sizes), np.int32),
        cut=np.full(len(sizes), np.datetime64("2024-01-01")),
        moment_us=np.zeros(len(sizes), np.int64),
        history_start=np.zeros(len(sizes), np.int64),
        history_end=np.zeros(len(sizes), np.int64),
        ends=np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
        item=np.arange(count, dtype=np.int32),
        position=np.array(position or places, np.int32),
        outcome=np.array(outcome or [0] * count, np.int8),
        user_features=pa.table({"feature": np.zeros(len(sizes))}),
    )


def test_one_slates_ndcg_is_that_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    scores, gains = rng.random(9), rng.integers(0, 4, 9).astype(float)
    assert slate_ndcg(scores, gains, _slates(9))[0] == pytest.approx(ndcg_score(gains[None], scores[None]))


def test_slates_are_divided_by_the_mean_of_the_greatest() -> None:
    # Slates of 2, 1 and 3 items; gains at the second, at the only one, and nowhere.
    scores, gains = np.array([2.0, 1, 0, 1, 2, 3]), np.array([0.0, 4, 1, 0, 0, 0])
    greatest = (4 / np.log2(2) + 1 / np.log2(2) + 0) / 3
    expected = np.array([4 / np.log2(3), 1 / np.log2(2), 0]) / greatest
    np.testing.assert_allclose(slate_ndcg(scores, gains, _slates(2, 1, 3)), expected)
    assert np.isnan(slate_ndcg(scores, 0 * gains, _slates(2, 1, 3))).all()


def test_equal_scores_stand_by_item_and_not_as_they_were_shown() -> None:
    shown_first = _slates(2, position=[2, 1])
    assert slate_ndcg(np.zeros(2), np.array([0.0, 1]), shown_first)[0] == pytest.approx(1 / np.log2(3))


def test_how_often_a_position_is_looked_at_follows_from_its_clicks() -> None:
    # Twenty clicks of forty at the first position, ten of forty at the second, none at the third.
    outcome = [1] * 20 + [0] * 20 + [2] * 10 + [0] * 30 + [0] * 40
    slates = _slates(120, outcome=outcome, position=[1] * 40 + [2] * 40 + [3] * 40)
    np.testing.assert_allclose(attention(slates), [1, 0.5, 0.1])
    np.testing.assert_allclose(attention(_slates(3)), [1, 1, 1])  # nobody clicked: nothing is known


def _judged(gain: tuple[float, float, float], lists: tuple[float | None, ...]) -> dict[str, Any]:
    return {
        "sentence": "Engagement: trained.",
        "candidate": "ease",
        "gain_vs_retrieval": dict(zip(("value", "low", "high"), gain, strict=True)),
        "lists": {"difference": dict(zip(("value", "low", "high"), lists, strict=True))},
    }


@pytest.mark.parametrize(
    ("gain", "lists", "applied"),
    [
        ((0.03, 0.01, 0.05), (0.0, -0.01, 0.01), True),
        ((0.03, 0.01, 0.05), (None, None, None), True),  # nobody bought: nothing speaks against it
        ((0.03, -0.01, 0.07), (0.01, 0.0, 0.02), False),  # may be chance
        ((-0.03, -0.05, -0.01), (0.01, 0.0, 0.02), False),
        ((0.03, 0.01, 0.05), (-0.02, -0.03, -0.01), False),  # lists of the whole catalogue lose
    ],
)
def test_it_is_served_where_slates_gain_and_lists_do_not_lose(
    gain: tuple[float, float, float], lists: tuple[float | None, ...], applied: bool
) -> None:
    found = judge_engagement(_judged(gain, lists))
    assert found is not None
    assert found["applied"] is applied
    assert (" used: " if applied else " kept out: ") in found["sentence"]


def test_the_verdict_has_its_sentence_and_the_candidate_passes_without_it() -> None:
    with_stage = figures() | {"engagement": _judged((-0.03, -0.05, -0.01), (0.0, -0.01, 0.01))}
    found = judge(with_stage, None, GateSettings())
    assert found["passed"]
    assert found["sentences"][1] == found["engagement"]["sentence"]
    assert "-0.030 (-0.050 to -0.010)" in found["sentences"][1]


@pytest.mark.parametrize("none", [None, {"sentence": "Engagement: left out, for no impressions are logged."}])
def test_without_a_stage_there_is_nothing_to_decide(none: dict[str, Any] | None) -> None:
    found = judge(figures() | {"engagement": none}, None, GateSettings())
    assert found["engagement"] is None
    assert len(found["sentences"]) == 1
