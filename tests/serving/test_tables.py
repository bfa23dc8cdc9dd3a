"""Tables against counts made the slow way."""

from collections import defaultdict
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from statistics import mean, median
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from recflow.models.interactions import Interactions
from recflow.schema import EVENT_TYPES
from recflow.serving import counting
from recflow.serving.counting import build_tables
from recflow.serving.tables import Tables

END = datetime(2011, 4, 1, tzinfo=UTC)  # the first moment after the data
COUNTRIES = ("DE", "UK", "DE", None, "UK", "FR")


class Event(NamedTuple):
    user: int
    item: int
    days_ago: float = 1.0  # before END
    event_type: str = "purchase"


def build(events: list[Event], *, n_items: int = 5, n_neighbours: int = 4, **options: int) -> Tables:
    rows = sorted(events, key=lambda event: (event.user, -event.days_ago))
    moments = [END - timedelta(days=event.days_ago) for event in rows]
    interactions = Interactions(
        user_idx=np.array([event.user for event in rows], np.int32),
        item_idx=np.array([event.item for event in rows], np.int32),
        timestamp=np.array([moment.replace(tzinfo=None) for moment in moments], "datetime64[us]"),
        event_type=np.array([EVENT_TYPES.index(event.event_type) for event in rows], np.int8),
        quantity=np.ones(len(rows), np.float32),
        n_users=len(COUNTRIES),
        n_items=n_items,
        until=np.datetime64(END.replace(tzinfo=None), "us"),
    )
    few = {"min_customers": 2, "min_orders": 1, "min_country_buyers": 1, "max_countries": 9}
    return build_tables(
        interactions, np.array(COUNTRIES, object), window_days=30, n_neighbours=n_neighbours, **few | options
    )


# -- customers


def test_a_customer_counts_once_however_often_they_bought() -> None:
    tables = build(
        [Event(0, 0, 40), Event(0, 0, 45), Event(0, 1, 40), Event(1, 0, 50), Event(1, 1), Event(2, 0), Event(2, 2, 60)],
        n_items=3,
        n_neighbours=2,
    )
    assert tables.all_customers.tolist() == [3]
    assert tables.customers.tolist() == [3, 2, 1]
    assert tables.popularity.tolist() == [1, 1, 0]
    assert tables.buyers.tolist() == [2]
    assert tables.countries == ("DE", "UK")  # user 0 (DE) bought nothing in the window: 2 is DE, too
    assert tables.country_popularity.tolist() == [[1, 0, 0], [0, 1, 0]]
    assert tables.country_buyers.tolist() == [1, 1]
    # Items 0 and 1 share users 0 and 1; 0 and 2 share user 2 alone, below the support of 2.
    assert tables.neighbours.tolist() == [[1, -1], [0, -1], [-1, -1]]
    assert tables.neighbour_customers.tolist() == [[2, 0], [2, 0], [0, 0]]


def test_together_scores_are_shares_of_customers() -> None:
    tables = build([Event(0, 0), Event(0, 1), Event(1, 0), Event(1, 1), Event(2, 0)], n_items=3)
    # Two of item 0's three customers bought 1; nothing of 1's own score comes from 1.
    np.testing.assert_allclose(tables.together_scores([0]), [0, 2 / 3, 0])


def test_popularity_of_a_country_ranks_its_items_first_then_the_shops() -> None:
    tables = build([Event(0, 2), Event(1, 0), Event(1, 1), Event(4, 1)], n_items=3)
    assert np.argsort(-tables.popularity_scores("DE"), kind="stable").tolist() == [2, 1, 0]
    everywhere = tables.popularity_scores(None)
    assert everywhere.tolist() == tables.popularity_scores("Nowhere").tolist()


def test_a_country_needs_buyers_for_a_row_of_its_own_and_there_are_only_so_many_rows() -> None:
    events = [Event(0, 0), Event(1, 0), Event(2, 0), Event(4, 1), Event(5, 0)]  # DE 2, UK 2, FR 1
    assert build(events).countries == ("DE", "UK", "FR")
    assert build(events, min_country_buyers=2).countries == ("DE", "UK")
    assert build(events, max_countries=1).countries == ("DE",)
    without = build(events, max_countries=0)
    assert without.countries == ()
    assert without.country_popularity.shape == without.country_week_customers.shape == (0, 5)
    assert without.popularity_scores("DE").tolist() == without.popularity_scores(None).tolist()


# -- orders


def test_an_order_is_what_a_customer_bought_at_one_moment() -> None:
    # Orders: {0, 1}, {0, 1}, {0}, {2}, {2}, {2, 0}: item 0 in 4 of 6, item 1 in 2, both in 2.
    tables = build(
        [Event(0, 0, 9), Event(0, 1, 9), Event(1, 0, 9), Event(1, 1, 9), Event(0, 0, 8), Event(0, 2, 7),
         Event(2, 2, 7), Event(3, 2, 6), Event(3, 0, 6)], n_items=3, n_neighbours=2,
    )  # fmt: skip
    assert tables.all_orders.tolist() == [6]
    assert tables.orders.tolist() == [4, 2, 3]
    assert tables.order_neighbours.tolist() == [[1, -1], [0, -1], [-1, -1]]  # 0 and 2 meet less often than by chance
    assert tables.order_neighbour_orders.tolist() == [[2, 0], [2, 0], [0, 0]]
    # P(0, 1) / (P(0) P(1)) = (2/6) / (4/6 * 2/6)
    np.testing.assert_allclose(tables.lift([0], [1]), [[(2 / 6) / (4 / 6 * 2 / 6)]])
    # How much likelier 1 is given 0, and 0 given 1.
    np.testing.assert_allclose(tables.surplus_scores([0]), [0, 2 / 4 - 2 / 6, 0], rtol=1e-6)
    np.testing.assert_allclose(tables.surplus_scores([0, 1]), [1 - 4 / 6, 2 / 4 - 2 / 6, 0], rtol=1e-6)


def test_a_pair_that_a_single_customer_orders_is_in_no_table() -> None:
    alone = [Event(0, item, day) for item in (0, 1) for day in (3, 5, 7, 9)]
    others = [Event(user, item, day) for user, item, day in [(1, 0, 4), (2, 1, 4), (3, 3, 6), (3, 4, 6), (4, 3, 8)]]
    tables = build([*alone, *others], n_items=5)
    assert (tables.neighbours == -1).all()
    assert (tables.order_neighbours == -1).all()
    assert not tables.orders_with_both([0, 3], [1, 4]).any()
    with_another = build([*alone, *others, Event(5, 0), Event(5, 1)], n_items=5)
    assert with_another.neighbours[:2, 0].tolist() == with_another.order_neighbours[:2, 0].tolist() == [1, 0]
    assert with_another.orders_with_both([0], [1]).tolist() == [[5]]
    assert (build([*alone, *others], n_items=5, min_customers=1).order_neighbours[:2, 0] == [1, 0]).all()


def test_a_pair_whose_customers_are_too_few_leaves_its_place_to_the_next() -> None:
    often = [Event(0, item, day) for item in (0, 1) for day in range(1, 9)]
    several = [Event(user, item, 20) for user in (1, 2, 3) for item in (0, 2)]
    alone = [Event(5, 3, day) for day in range(30, 60)]
    tables = build(often + several + alone, n_items=4, n_neighbours=1)
    assert tables.order_neighbours.tolist() == [[2], [-1], [0], [-1]]
    assert tables.order_neighbour_orders.tolist() == [[3], [0], [3], [0]]


def test_a_pair_that_one_item_keeps_is_found_from_the_other_as_well() -> None:
    # One neighbour each: 0 and 1 meet most and keep each other; 2 keeps 0, which has no room for it.
    meets = [Event(user, item, day) for user in (0, 1, 3) for item in (0, 1) for day in (2, 3)]
    meets += [Event(user, item) for user in (4, 5) for item in (0, 2)]
    alone = [Event(user, 3, day) for user in range(6) for day in (20, 21)]
    tables = build(meets + alone, n_items=4, n_neighbours=1)
    assert tables.order_neighbours.tolist() == [[1], [0], [0], [-1]]
    assert tables.orders_with_both([0, 1, 2], [0, 1, 2]).tolist() == [[0, 6, 2], [6, 0, 0], [2, 0, 0]]
    assert tables.orders_with_both([0], []).shape == (1, 0)


def test_alike_items_are_substitutes_as_far_as_they_are_not_bought_together() -> None:
    mugs, other = [Event(0, 0, day) for day in range(1, 21)], [Event(1, 1, day) for day in range(1, 21)]
    pair = [Event(user, item, day) for user in (2, 3) for item in (2, 3) for day in range(1, 11)]
    tables = build(mugs + other + pair)
    assert tables.all_orders.tolist() == [60]
    apart, together = tables.substitution([0], [1], np.array([[0.9]])), tables.substitution([2], [3], np.array([[0.9]]))
    np.testing.assert_allclose(apart, [[0.9]])  # never together: by content alone
    # 20 orders with both where chance puts 20 * 20 / 60, smoothed by 5.
    np.testing.assert_allclose(together, [[0.9 / ((20 + 5) / (20 * 20 / 60 + 5))]])
    np.testing.assert_allclose(tables.substitution([0], [4], np.array([[-0.2]])), [[0]])


# -- time


def test_this_week_is_compared_with_the_mean_of_the_four_before() -> None:
    tables = build(
        # Item 0: users 0, 1 and 2 this week; user 0 in each of the four weeks before, user 1 in one, twice.
        [Event(0, 0, 7), Event(1, 0), Event(2, 0), Event(2, 0, 2), Event(0, 0, 7.01), Event(0, 0, 14.5),
         Event(0, 0, 28), Event(0, 0, 34), Event(1, 0, 20), Event(1, 0, 15), Event(3, 1, 60)], n_items=2,
    )  # fmt: skip
    assert tables.earlier_weeks == 4
    assert tables.week_customers.tolist() == [3, 0]
    assert tables.earlier_customers.tolist() == [4 + 1, 0]
    np.testing.assert_allclose(tables.growth(), [(3 + 5) / (5 / 4 + 5), 1])
    assert tables.country_week_customers[tables.country_index("DE")].tolist() == [2, 0]
    np.testing.assert_allclose(tables.growth("DE"), [(2 + 5) / (4 / 4 + 5), 1])
    np.testing.assert_allclose(tables.growth("Nowhere"), tables.growth())


@pytest.mark.parametrize(("oldest", "weeks"), [(3, 0), (13, 0), (14, 1), (27, 2), (28, 3), (35, 4), (300, 4)])
def test_only_whole_weeks_of_data_are_compared_with(oldest: int, weeks: int) -> None:
    tables = build([Event(0, 0, oldest - 0.5, "view"), Event(0, 0, 1)])  # the first day is a whole day of data
    assert tables.earlier_weeks == weeks
    if not weeks:
        assert tables.growth().tolist() == [1] * 5


def test_days_of_sale_and_of_no_event_at_all() -> None:
    tables = build([Event(0, 0, 3), Event(1, 0, 20), Event(1, 1, 2, "view")], n_items=3)
    day = (END.date() - date(1970, 1, 1)).days
    assert tables.first_sold_day.tolist() == [day - 20, -1, -1]
    assert tables.events.tolist() == [2, 1, 0]
    assert tables.customers.tolist() == [2, 0, 0]


def test_reordering_is_a_median_over_customers_of_their_own_mean_gaps() -> None:
    often = [Event(0, 0, day) for day in range(1, 31, 2)]  # every 2 days
    once = [Event(1, 0, 50), Event(1, 0, 10)]  # after 40
    twice = [Event(2, 0, 31), Event(2, 0, 11), Event(2, 0, 1)]  # after 20 and 10
    same_day = [Event(3, 0, 5.2), Event(3, 0, 5.1), Event(4, 1, 9)]
    tables = build(often + once + twice + same_day, n_items=2)
    assert tables.reorder_customers.tolist() == [3, 0]
    np.testing.assert_array_equal(tables.reorder_days, [median([2, 40, 15]), np.nan])


# -- all of it


rows_of_events = st.lists(
    st.builds(
        Event,
        user=st.integers(0, 5),
        item=st.integers(0, 4),
        days_ago=st.integers(1, 180).map(lambda quarters: quarters / 4),
        event_type=st.sampled_from(["purchase", "purchase", "purchase", "view"]),
    ),
    min_size=1,
    max_size=60,
)


@settings(max_examples=60, deadline=None)
@given(rows_of_events)
def test_every_table_equals_a_count_of_all_rows(events: list[Event]) -> None:
    tables = build(events)
    bought = [event for event in events if event.event_type == "purchase"]
    baskets = {(user,): {e.item for e in bought if e.user == user} for user in range(6)}
    assert tables.customers.tolist() == [sum(item in basket for basket in baskets.values()) for item in range(5)]
    _check_pairs(tables.neighbours, tables.neighbour_customers, baskets, lambda item, other, both: both)

    orders = defaultdict(set)
    for event in bought:
        orders[event.user, event.days_ago].add(event.item)
    counts = [sum(item in order for order in orders.values()) for item in range(5)]
    assert tables.orders.tolist() == counts
    _check_pairs(
        tables.order_neighbours, tables.order_neighbour_orders, orders,
        lambda item, other, both: both - counts[item] * (counts[other] / max(len(orders), 1)),
    )  # fmt: skip
    weeks = [{(e.user, e.item) for e in bought if 7 * ago < e.days_ago <= 7 * ago + 7} for ago in range(5)]
    compared = weeks[1 : 1 + tables.earlier_weeks]
    for item in range(5):
        assert tables.week_customers[item] == sum(each == item for _, each in weeks[0])
        assert tables.earlier_customers[item] == sum(each == item for week in compared for _, each in week)
        gaps = []
        for user in range(6):
            days = sorted({_day(e) for e in bought if (e.user, e.item) == (user, item)})
            gaps += [mean(later - earlier for earlier, later in pairwise(days))] if len(days) > 1 else []
        assert tables.reorder_customers[item] == len(gaps)
        np.testing.assert_allclose(tables.reorder_days[item], median(gaps) if gaps else np.nan, rtol=1e-6)


@settings(max_examples=20, deadline=None)
@given(rows_of_events, st.integers(1, 200))
def test_counted_in_pieces_pairs_are_the_same(events: list[Event], at_once: int) -> None:
    whole = build(events, n_neighbours=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(counting, "_PAIRS_AT_ONCE", at_once)
        pieces = build(events, n_neighbours=2)
    _assert_equal(whole, pieces)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 6))
def test_the_best_of_many_are_those_of_sorting_all(seed: int, n_best: int) -> None:
    rng = np.random.default_rng(seed)
    row, other = np.nonzero(rng.random((7, 90)) < 0.7)
    value = rng.choice([rng.normal(0, 3, len(row)), rng.zipf(1.5, len(row)), np.ones(len(row))])
    best, place = counting._best_of_each(row, other, value, n_best)
    found = [[other[best[(row[best] == each) & (place == at)]].tolist() for at in range(n_best)] for each in range(7)]
    for each in range(7):
        ranked = sorted((-v, o) for v, o in zip(value[row == each], other[row == each], strict=True) if v > 0)
        expected = [[o] for _, o in ranked[:n_best]]
        assert found[each] == expected + [[]] * (n_best - len(expected))


def test_tables_come_back_as_they_were_saved(tmp_path: Path) -> None:
    tables = build([Event(0, 0), Event(0, 1), Event(1, 0, 9), Event(1, 1, 33)])
    loaded = Tables.load(tmp_path / "t.safetensors", tables.save(tmp_path / "t.safetensors"))
    _assert_equal(loaded, tables)


def test_a_shop_without_sales_has_tables_too() -> None:
    tables = build([Event(0, 0, 3, "view")])
    assert tables.all_orders.tolist() == [0]
    assert tables.surplus_scores([0, 1]).tolist() == tables.together_scores([]).tolist() == [0] * 5
    assert tables.lift([0], [1, 2]).tolist() == [[0, 0]]
    assert tables.growth().tolist() == [1] * 5
    assert (tables.neighbours == -1).all()


def _check_pairs(neighbours, counts, baskets, rank) -> None:
    """Count pairs in baskets by (user, ...): those of two users and more are kept."""
    for item in range(5):
        both = {
            other: [whose[0] for whose, basket in baskets.items() if {item, other} <= basket]
            for other in range(5) if other != item
        }  # fmt: skip
        kept = {other: len(users) for other, users in both.items() if len(set(users)) >= 2}
        ranked = sorted((-rank(item, other, count), other) for other, count in kept.items())
        expected = [(other, kept[other]) for value, other in ranked if value < 0]
        found = [(o, c) for o, c in zip(neighbours[item].tolist(), counts[item].tolist(), strict=True) if o >= 0]
        assert found == expected


def _day(event: Event) -> int:
    return (END - timedelta(days=event.days_ago)).date().toordinal()


def _assert_equal(one: Tables, other: Tables) -> None:
    for name, value in vars(one).items():
        np.testing.assert_array_equal(value, getattr(other, name), err_msg=name)


def test_counts_that_nothing_reads_any_more_are_passed_over(tmp_path: Path) -> None:
    tables = build([Event(0, 0), Event(1, 1)])
    facts = tables.save(tmp_path / "t.safetensors")
    arrays = load_file(tmp_path / "t.safetensors") | {"week_buyers": np.array([2], np.int32)}
    save_file(arrays, tmp_path / "t.safetensors")
    np.testing.assert_array_equal(Tables.load(tmp_path / "t.safetensors", facts).customers, tables.customers)
