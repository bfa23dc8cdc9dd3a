"""Tables against counts made the slow way."""

import numpy as np
import pandas as pd
from hypothesis import given, settings
from hypothesis import strategies as st

from recflow.serving.tables import Tables, build_tables


def test_a_customer_counts_once_however_often_they_bought() -> None:
    #            user 0 buys A twice and B; user 1 buys A and B; user 2 buys A (recently), and C
    tables = _build(users=[0, 0, 0, 1, 1, 2, 2], items=[0, 0, 1, 0, 1, 0, 2], recent=[0, 0, 0, 0, 1, 1, 0])
    assert tables.customers.tolist() == [3, 2, 1]
    assert tables.popularity.tolist() == [1, 1, 0]
    assert tables.buyers.tolist() == [2]
    assert tables.countries == ("DE", "UK")  # user 0 (DE) bought nothing recently: 2 is DE, too
    assert tables.country_popularity.tolist() == [[1, 0, 0], [0, 1, 0]]
    assert tables.country_buyers.tolist() == [1, 1]
    # A and B share users 0 and 1; A and C share user 2 alone, below the support of 2.
    assert tables.neighbours.tolist() == [[1, -1], [0, -1], [-1, -1]]
    assert tables.neighbour_customers.tolist() == [[2, 0], [2, 0], [0, 0]]


def test_together_scores_are_shares_of_customers() -> None:
    tables = _build(users=[0, 0, 1, 1, 2], items=[0, 1, 0, 1, 0], recent=[1] * 5)
    # Two of A's three customers bought B; nothing of B's own score comes from B.
    np.testing.assert_allclose(tables.together_scores(np.array([0], np.int32)), [0, 2 / 3, 0])


def test_popularity_of_a_country_ranks_its_items_first_then_the_shops() -> None:
    tables = _build(users=[0, 1, 1, 1], items=[2, 0, 1, 1], recent=[1, 1, 1, 0])
    assert np.argsort(-tables.popularity_scores("DE"), kind="stable").tolist()[0] == 2
    everywhere = tables.popularity_scores(None)
    assert everywhere.tolist() == tables.popularity_scores("Nowhere").tolist()


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 4), st.booleans()), min_size=1, max_size=60))
def test_neighbours_equal_a_count_of_all_pairs(rows: list[tuple[int, int, bool]]) -> None:
    users, items, recent = (list(column) for column in zip(*rows, strict=True))
    tables = _build(users, items, recent, n_users=6, n_items=5, n_neighbours=4)
    baskets = pd.DataFrame({"user": users, "item": items}).groupby("user")["item"].agg(set)
    for item in range(5):
        counts = {other: sum({item, other} <= basket for basket in baskets) for other in range(5) if other != item}
        expected = sorted(((-count, other) for other, count in counts.items() if count >= 2))
        kept = tables.neighbours[item] >= 0
        found = list(zip(-tables.neighbour_customers[item][kept], tables.neighbours[item][kept], strict=True))
        assert found == expected
    assert tables.customers.tolist() == [sum(item in basket for basket in baskets) for item in range(5)]


def test_tables_come_back_as_they_were_saved(tmp_path) -> None:
    tables = _build(users=[0, 0, 1, 1], items=[0, 1, 0, 1], recent=[1] * 4)
    loaded = Tables.load(tmp_path / "t.safetensors", tables.save(tmp_path / "t.safetensors"))
    for name in ("customers", "popularity", "buyers", "country_popularity", "neighbours", "neighbour_customers"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(tables, name))
    assert (loaded.countries, loaded.window_days) == (tables.countries, 30)


def _build(users, items, recent, *, n_users: int = 3, n_items: int = 3, n_neighbours: int = 2) -> Tables:
    countries = np.array(["DE", "UK", "DE", None, "UK", "FR"][:n_users], dtype=object)
    return build_tables(
        np.array(users, np.int32), np.array(items, np.int32), np.array(recent, bool), countries,
        n_items=n_items, window_days=30, n_neighbours=n_neighbours, min_customers=2,
    )  # fmt: skip
