from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pytest
from numpy.testing import assert_allclose

from recflow.models.context import Timelines, context_of
from recflow.models.features import FeatureEncoder
from recflow.models.interactions import PURCHASE, RETURN, Context
from recflow.models.pairs import Pairs
from recflow.models.repeats import repeat_pairs
from tests.models.worlds import DAY_US, context_for, random_interactions

NOW = 1_300_000_000_000_000


class Known(NamedTuple):
    item_ids: list[str]
    event_types: list[str]
    timestamps_us: list[int]
    quantities: list[float | None]


NOBODY = Known([], [], [], [])
INDEX = {"A": 0, "B": 1, "C": 2}
ENCODER = FeatureEncoder.fit(pa.table({"orders": [1, 3]}), ["orders"])


def _context(*histories: Known, length: int = 4) -> Context:
    return context_of(
        histories,
        [{"orders": 3}] * len(histories),
        as_of_us=NOW,
        item_index=INDEX,
        user_encoder=ENCODER,
        item_features=np.zeros((3, 2), np.float32),
        history_length=length,
    )


def test_the_newest_event_is_in_the_last_column() -> None:
    history = Known(["C", "A"], ["purchase", "return"], [NOW - 3 * DAY_US, NOW - DAY_US // 2], [6.0, None])
    context = _context(history)
    assert context.items.tolist() == [[3, 1]]
    assert_allclose(context.ages_days, [[3, 0.5]])
    assert context.event_types.tolist() == [[PURCHASE, RETURN]]
    assert context.quantities.tolist() == [[6, 0]]
    assert_allclose(context.user_features, [[1]], rtol=1e-6)


def test_only_the_last_events_are_kept() -> None:
    history = Known(list("ABCAB"), ["purchase"] * 5, [NOW - age for age in (5, 4, 3, 2, 1)], [1.0] * 5)
    assert _context(history, length=2).items.tolist() == [[1, 2]]


def test_unknown_items_and_events_without_a_choice_leave_no_gap() -> None:
    history = Known(
        ["A", "NEW", "B", "C"],
        ["view", "purchase", "impression", "purchase"],
        [NOW - 4, NOW - 3, NOW - 2, NOW - 1],
        [1.0] * 4,
    )
    assert _context(history).items.tolist() == [[1, 3]]


def test_histories_dont_mix() -> None:
    one = Known(["A"], ["purchase"], [NOW - 1], [1.0])
    two = Known(["B", "C"], ["purchase"] * 2, [NOW - 2, NOW - 1], [1.0] * 2)
    assert _context(one, NOBODY, two).items.tolist() == [[0, 1], [0, 0], [2, 3]]  # as wide as the longest


def test_nobody_at_all_is_fine() -> None:
    assert _context(NOBODY).items.tolist() == [[0]]
    assert len(_context()) == 0


def test_an_event_after_the_moment_has_age_zero() -> None:
    assert _context(Known(["A"], ["view"], [NOW + DAY_US], [1.0])).ages_days.max() == 0


def test_each_shopper_has_a_moment_of_its_own() -> None:
    histories = [Known(["A"], ["purchase"], [NOW - DAY_US], [1.0]), NOBODY, Known(["B"], ["view"], [NOW], [1.0])]
    timelines = Timelines.of(histories, INDEX, length=2)
    context = timelines.context(
        np.array([NOW, NOW, NOW + 2 * DAY_US]),
        user_features=np.zeros((3, 1), np.float32),
        item_features=np.zeros((3, 2), np.float32),
    )
    assert context.ages_days.tolist() == [[1], [0], [2]]
    assert timelines.timestamps_us.tolist() == [[NOW - DAY_US], [0], [NOW]]  # exact to the microsecond


def test_some_of_the_shoppers_can_be_taken() -> None:
    histories = [Known([item], ["view"], [NOW - place], [1.0]) for place, item in enumerate("ABC")]
    taken = Timelines.of(histories, INDEX, length=1).take([2, 0])
    assert taken.items.tolist() == [[3], [1]]
    assert taken.timestamps_us.tolist() == [[NOW - 2], [NOW]]
    assert _context(*histories, length=1).take(np.array([2, 0])).items.tolist() == [[3], [1]]


def test_columns_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="differ in length"):
        _context(Known(["A", "B"], ["view"], [NOW, NOW], [1.0, 1.0]), Known([], ["view"], [], []))


def test_repeat_pairs_by_hand() -> None:
    day = DAY_US
    history = Known(
        ["A", "B", "A", "C"],
        ["purchase", "purchase", "purchase", "view"],
        [NOW - 30 * day, NOW - 30 * day, NOW - 10 * day, NOW - day],
        [2.0, 1.0, 4.0, 1.0],
    )
    pairs = repeat_pairs(_context(NOBODY, history))
    assert pairs.shopper.tolist() == [1, 1, 1]
    assert pairs.item.tolist() == [0, 1, 2]
    bought, last_age, first_age, gap, due, is_repeat, share = pairs.features[:, :7].T
    assert_allclose(bought, np.log1p([2, 1, 0]) - 1, rtol=1e-5)
    assert_allclose(last_age, np.log1p([10, 30, 1]) - 3, rtol=1e-5)
    assert_allclose(first_age, np.log1p([30, 30, 0]) - 3, rtol=1e-5)
    assert_allclose(gap, [np.log1p(20) - 3, 0, 0], rtol=1e-5)
    assert_allclose(due, [np.log(11 / 21), 0, 0], rtol=1e-5)
    assert is_repeat.tolist() == [1, 0, 0]
    # Moments are orders, so the look a day ago counts as one too: three ago, two of which are orders with A.
    assert_allclose(share * 3, [2, 1, 0], rtol=1e-5)


def test_pairs_are_the_distinct_items_of_each_history() -> None:
    context = context_for(random_interactions())
    pairs = repeat_pairs(context)
    expected = {(row, item - 1) for row, items in enumerate(context.items) for item in items if item}
    assert len(pairs.item) == len(expected)
    assert set(zip(pairs.shopper.tolist(), pairs.item.tolist(), strict=True)) == expected
    assert np.isfinite(pairs.features).all()
    assert np.abs(pairs.features).max() < 10


def test_the_events_of_a_pair_stand_oldest_first() -> None:
    items = context_for(random_interactions()).items
    pairs = Pairs.of(items)
    ends = [*pairs.starts[1:].tolist(), len(pairs.at)]
    for pair, (start, end) in enumerate(zip(pairs.starts.tolist(), ends, strict=True)):
        row, columns = pairs.shopper[pair], np.flatnonzero(items[pairs.shopper[pair]] == pairs.item[pair] + 1)
        assert pairs.at[start:end].tolist() == (row * items.shape[1] + columns).tolist()
        assert pairs.newest[pair] == pairs.at[end - 1]
    assert sorted(pairs.at.tolist()) == np.flatnonzero(items).tolist()


def test_a_value_of_a_pair_is_shared_among_its_events() -> None:
    history = Known(list("ABAA"), ["purchase"] * 4, [NOW - age for age in (4, 3, 2, 1)], [1.0] * 4)
    context = _context(NOBODY, history, length=5)
    pairs = repeat_pairs(context)
    values = np.array([6, 5], np.float32)
    assert pairs.among_events(values, context.items > 0)[1].tolist() == [2, 5, 2, 2]
    newest = np.arange(4)[None] >= np.array([[0], [2]])
    assert pairs.among_events(values, newest).tolist() == [[0] * 4, [0, 0, 3, 3]]
