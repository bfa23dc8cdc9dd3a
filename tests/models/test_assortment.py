import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recflow.models.assortment import FACTS, Assortment
from recflow.models.interactions import PURCHASE, Interactions
from recflow.models.linear import preference_matrix
from tests.models.worlds import UNTIL, interactions, random_interactions

DAY = np.timedelta64(1, "D")


def assortment_of(known: Interactions, *, prices: np.ndarray | None = None, **settings: float) -> Assortment:
    rng = np.random.default_rng(3)
    found = rng.uniform(1, 9, len(known.item_idx)).astype(np.float32) if prices is None else prices
    text = rng.normal(size=(known.n_items, 5)).astype(np.float32)
    return Assortment.of(known, prices=found, text=text, regularization=20, **settings)  # type: ignore[arg-type]


def matrix_of(found: Assortment, name: str) -> np.ndarray:  # (V, V)
    """Return what is kept of a matrix of items by items, 0 for the rest."""
    matrix = np.zeros((len(found.facts), len(found.facts)), np.float32)
    matrix[found.items[:, None], getattr(found, f"{name}_to")] = getattr(found, name)
    return matrix


def test_no_matrix_tells_of_pairs_of_too_few_shoppers() -> None:
    known = random_interactions(n_users=40, n_items=12, n_events=260)
    free, bound = (assortment_of(known, min_support=least) for least in (1, 3))
    has = (preference_matrix(known).toarray() > 0).astype(int)
    since = known.until - np.timedelta64(28, "D")
    before, after = (
        (preference_matrix(part).toarray() > 0).astype(int)
        for part in (known.before(since), known.since(since).purchases())
    )
    both = {"ease": has.T @ has, "following": before.T @ after}
    for name, shoppers in both.items():
        np.testing.assert_array_equal(matrix_of(bound, name), np.where(shoppers >= 3, matrix_of(free, name), 0))
        assert (matrix_of(free, name) != 0).sum() > (matrix_of(bound, name) != 0).sum() > 0


def facts_of(known: Interactions, prices: np.ndarray, item: int) -> dict[str, float]:
    """Work the facts of one item out purchase by purchase."""
    everything = [
        (int(user), int(bought), (known.until - moment) / DAY, float(quantity), float(price))
        for user, bought, moment, quantity, price, kind in zip(
            known.user_idx,
            known.item_idx,
            known.timestamp,
            known.quantity,
            prices,
            known.event_type,
            strict=True,
        )
        if kind == PURCHASE
    ]
    mine = [row for row in everything if row[1] == item]
    first = {user: max(row[2] for row in mine if row[0] == user) for user, *_ in mine}
    times = {user: len({int(row[2]) for row in mine if row[0] == user}) for user in first}

    def sold(days: float) -> int:
        return sum(age < days for _, _, age, _, _ in mine)

    facts: dict[str, float] = {f"sales_{days}_days": np.log1p(sold(days)) for days in (3, 7, 14, 28, 60, 90)}
    facts["sales_ever"] = np.log1p(len(mine))
    for short, long in ((7, 28), (14, 60), (28, 90)):
        facts[f"trend_{short}_{long}"] = np.log((sold(short) + 1) / (sold(long) * short / long + 1))
    facts["days_since_first_sale"] = max((row[2] for row in mine), default=0)
    facts["days_since_last_sale"] = min(200, min((row[2] for row in mine), default=200))
    priced = [row[4] for row in mine if np.isfinite(row[4])]
    facts["price"] = np.log(np.mean(priced) + 0.05) if priced else np.nan
    facts["pieces"] = np.log1p(np.mean([row[3] for row in mine])) if mine else 0
    facts["rebuy_share"] = (sum(n > 1 for n in times.values()) + 1) / (len(first) + 10)
    facts["buys_per_buyer"] = sum(times.values()) / max(len(first), 1)
    again = sum(age < 28 and first[user] - age > 0.5 for user, _, age, _, _ in mine)
    facts["repeat_share_28"] = (again + 1) / (sold(28) + 4)
    for days in (14, 28):
        new = sum(age < days and first[user] - age <= 0.5 for user, _, age, _, _ in mine)
        facts[f"new_buyers_{days}"] = np.log1p(new)
    return facts


def rates_of(known: Interactions, days: int) -> dict[int, tuple[float, float]]:
    """Work out how often orders had an item again and anew; by item."""
    bought: dict[tuple[int, int], list[float]] = {}
    orders: dict[int, set[float]] = {}
    for user, item, moment, kind in zip(known.user_idx, known.item_idx, known.timestamp, known.event_type, strict=True):
        if kind == PURCHASE:
            age = (known.until - moment) / DAY
            bought.setdefault((int(user), int(item)), []).append(age)
            if age < days:
                orders.setdefault(int(user), set()).add(age)
    n_orders = sum(map(len, orders.values()))
    again, anew, chances = ({item: 0 for item in range(known.n_items)} for _ in range(3))
    for (user, item), ages in bought.items():
        lately = sum(age < days for age in ages)
        if max(ages) >= days:
            chances[item] += len(orders.get(user, ()))
            again[item] += lately
        else:
            anew[item] += lately
    mean = sum(again.values()) / max(sum(chances.values()), 1)
    return {
        item: (
            np.log((again[item] + 5 * mean + 1e-6) / (chances[item] + 5)),
            np.log((anew[item] + 0.2) / (n_orders - chances[item] + 100)),
        )
        for item in range(known.n_items)
    }


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 400))
def test_facts_are_those_of_a_count_by_hand(seed: int, n_events: int) -> None:
    known = random_interactions(seed=seed, n_users=12, n_items=9, n_events=n_events)
    rng = np.random.default_rng(seed)
    known = dataclasses.replace(known, quantity=rng.integers(1, 9, n_events).astype(np.float32))
    prices = np.where(rng.random(n_events) < 0.2, np.nan, rng.uniform(1, 9, n_events)).astype(np.float32)
    found = assortment_of(known, prices=prices)
    rates = {days: rates_of(known, days) for days in (28, 90)}
    for item in range(known.n_items):
        expected = facts_of(known, prices, item)
        for days, by_item in rates.items():
            expected[f"again_rate_{days}"], expected[f"new_rate_{days}"] = by_item[item]
        assert set(expected) == set(FACTS)
        for name, value in expected.items():
            assert found.facts[item, FACTS.index(name)] == pytest.approx(value, rel=1e-4, abs=1e-4, nan_ok=True), name


def test_recency_is_the_root_of_the_sales_against_the_best_sellers() -> None:
    ages = [(user, 0, 5.0) for user in range(8)] + [(user, 1, 20.0) for user in range(2)] + [(0, 2, 40.0)]
    found = assortment_of(interactions(ages, n_users=8, n_items=4))
    np.testing.assert_allclose(found.recency, np.sqrt([1 + 1e-6, 2 / 8 + 1e-6, 1e-6, 1e-6]), rtol=1e-5)
    assert found.recent_sales.tolist() == [8, 0, 0, 0]
    assert found.best_sellers.tolist() == [0, 1, 2, 3]  # of equal sales of 14 days, those that sold before; then by idx


def test_ease_is_the_closed_form() -> None:
    known = random_interactions()
    found = assortment_of(known)
    wanted = preference_matrix(known).toarray().astype(np.float64)[:, found.items]
    inverse = np.linalg.inv(wanted.T @ wanted + 20 * np.eye(len(found.items)))
    expected = np.eye(len(found.items)) - inverse / np.diag(inverse)[None]
    np.testing.assert_allclose(found.ease, expected, atol=2e-5)


def test_following_regresses_what_was_bought_since_on_what_was_wanted_before() -> None:
    known = random_interactions()
    found = assortment_of(known)
    since = UNTIL - 28 * DAY
    before = preference_matrix(known.before(since)).toarray().astype(np.float64)
    after = np.zeros(before.shape)
    recent = (known.timestamp >= since) & (known.event_type == PURCHASE)
    after[known.user_idx[recent], known.item_idx[recent]] = 1
    both = before.any(axis=1) & after.any(axis=1)
    x, y = before[both][:, found.items], after[both][:, found.items]
    expected = np.linalg.solve(x.T @ x + 20 * np.eye(x.shape[1]), x.T @ y)
    np.testing.assert_allclose(found.following, expected, atol=2e-5)


def test_items_beyond_the_most_wanted_take_no_part_in_the_matrices() -> None:
    known = random_interactions()
    total = (
        preference_matrix(known).sum(axis=0).A1
        if hasattr(preference_matrix(known), "A1")
        else np.asarray(preference_matrix(known).sum(axis=0)).ravel()
    )
    found = assortment_of(known, max_items=6)
    assert set(found.items.tolist()) == set(np.argsort(-total, kind="stable")[:6].tolist())
    assert found.ease.shape == found.following.shape == (6, 6)
    assert (found.place >= 0).sum() == 6
    assert set(found.ease_to.ravel().tolist()) <= set(found.items.tolist())


def test_the_links_that_are_kept_are_the_strongest_of_each_item() -> None:
    known = random_interactions()
    everything, few = assortment_of(known), assortment_of(known, max_links=4)
    for name in ("ease", "following"):
        full, kept = matrix_of(everything, name), matrix_of(few, name)
        assert getattr(few, name).shape == (len(few.items), 4)
        np.testing.assert_array_equal(kept[kept != 0], full[kept != 0])
        for row, links in zip(full, kept, strict=True):
            assert sorted(np.abs(links[links != 0])) == sorted(np.sort(np.abs(row))[-4:][np.sort(np.abs(row))[-4:] > 0])
    place = few.place[few.items[[3, 1]]]
    links = few.links(place, "ease")
    np.testing.assert_array_equal(links.to, few.ease_to[[3, 1]])
    np.testing.assert_array_equal(links.weight, few.ease[[3, 1]])


def test_long_titles_keep_the_directions_in_which_they_differ() -> None:
    rng = np.random.default_rng(0)
    known = random_interactions()
    few = rng.normal(size=(known.n_items, 20))  # what they say fits into 20 numbers
    text = (few @ np.linalg.qr(rng.normal(size=(200, 20)))[0].T).astype(np.float32)
    text /= np.linalg.norm(text, axis=1, keepdims=True)
    text[3] = 0
    prices = np.ones(len(known.item_idx), np.float32)
    found = Assortment.of(known, prices=prices, text=text).text
    assert found.shape == (known.n_items, 64)
    np.testing.assert_allclose(found @ found.T, text @ text.T, atol=1e-5)


def test_what_comes_later_changes_nothing() -> None:
    known = random_interactions()
    later = known.timestamp >= UNTIL - 30 * DAY
    rng = np.random.default_rng(0)
    items = np.where(later, rng.integers(0, known.n_items, len(later)), known.item_idx).astype(np.int32)
    other = dataclasses.replace(known, item_idx=items)
    prices = rng.uniform(1, 9, len(later)).astype(np.float32)
    first, second = (
        assortment_of(part.before(UNTIL - 30 * DAY), prices=prices[~later]).arrays() for part in (known, other)
    )
    assert (items != known.item_idx).any()
    for name, array in first.items():
        np.testing.assert_array_equal(array, second[name], err_msg=name)


def test_arrays_and_back() -> None:
    found = assortment_of(random_interactions())
    again = Assortment.from_arrays(found.arrays())
    for name, array in found.arrays().items():
        assert getattr(again, name) is array
