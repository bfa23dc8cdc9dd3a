import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recflow.models.assortment import FACTS, Assortment
from recflow.models.candidates import FEATURES, FIT, OWN, SHOPPER, WANTED, WEIGHTS, Candidates, find_candidates
from recflow.models.interactions import PREFERENCE, PURCHASE, RETURN, Context, Interactions
from tests.models.test_assortment import assortment_of, matrix_of
from tests.models.worlds import VIEW, context_for, interactions, random_interactions

Event = tuple[int, float, int, float]  # item, age in days, type, pieces


def feature(found: Candidates, name: str, shopper: int, item: int) -> float:
    at = np.flatnonzero((found.shopper == shopper) & (found.item == item))
    assert len(at) == 1
    return float(found.features[at[0], FEATURES.index(name)])


def weights_of(found: Candidates, context: Context) -> dict[str, np.ndarray]:  # (B, L) each
    """Put each event's part of what is wanted in its place."""
    weights = {}
    for name, shares in zip(WANTED, found.shares, strict=True):
        weights[name] = np.zeros(context.items.shape, np.float32)
        weights[name].ravel()[found.events.pairs.at] = shares
    return weights


def test_a_shopper_worked_out_by_hand() -> None:
    """Orders 100, 30 and 10 days ago: mug and tray; mug twice; mug. Then a look at the lamp, and the tray sent back."""
    mug, tray, lamp, jug = range(4)
    events = [(0, mug, 100.0), (0, tray, 100.0), (0, mug, 30.0), (0, mug, 30.0), (0, mug, 10.0), (0, lamp, 3.0, VIEW)]
    events += [(0, tray, 2.0, RETURN), (1, jug, 1.0)]
    known = interactions(events, n_users=2, n_items=5)
    pieces = np.array([2, 6, 1, 3, 4, 1, 6, 1], np.float32)  # in order of time
    known = dataclasses.replace(known, quantity=pieces)
    known_context = context_for(known)
    found = find_candidates(known_context, assortment_of(known))
    expected = {
        "is_own": (1, 1, 0),
        "orders_with": (3, 1, np.nan),
        "days_since_last": (10, 100, np.nan),
        "days_to_last_order": (0, 90, np.nan),
        "orders_since": (0, 2, np.nan),
        "in_last_order": (1, 0, 0),
        "days_since_first": (100, 100, np.nan),
        "share_of_orders": (3 / 3, 1 / 3, np.nan),
        "share_since_first": (3 / 3, 1 / 3, np.nan),
        "days_between": (90 / 2, np.nan, np.nan),
        "due": (10 / 45, np.nan, np.nan),
        "decayed_21_days": (2 ** (-90 / 21) + 2 * 2 ** (-20 / 21) + 1, 2 ** (-90 / 21), np.nan),
        "decayed_orders_0.5": (1 + 0.5 + 0.25, 0.25, np.nan),
        "share_of_last_2": (2 / 2, 0 / 2, np.nan),
        "share_of_last_5": (3 / 3, 1 / 3, np.nan),
        "pieces_with": (np.log1p((2 + 1 + 3 + 4) / 4), np.log1p(6), np.nan),
        "last_pieces": (np.log1p(4), np.log1p(6), np.nan),
        "returns": (0, 1, 0),
        "looks": (0, 0, 0.2 * 2 ** (-3 / 7)),
        "orders": (3, 3, 3),
        "days_since_order": (10, 10, 10),
        "days_between_orders": (45, 45, 45),
        "lines_per_order": (5 / 3, 5 / 3, 5 / 3),
        "distinct_items": (2, 2, 2),
        "repeated_lines": (3 / 5, 3 / 5, 3 / 5),
        "last_lines": (1, 1, 1),
        "habit": ((2 * 0.7 + 1 + 0.3) / (2 * 0.7 + 1 + 1),) * 3,
        "recent_lines": ((1 + 2 * 0.7 + 2 * 0.49) / (1 + 0.7 + 0.49),) * 3,
        "pieces_per_line": (16 / 5, 16 / 5, 16 / 5),
        "days_between_last_two": (20, 20, 20),
        "recency_rank": (0, 1, np.nan),
    }
    for name, values in expected.items():
        for item, value in zip((mug, tray, lamp), values, strict=True):
            assert feature(found, name, 0, item) == pytest.approx(value, rel=1e-5, nan_ok=True), (name, item)
    weights = {name: of_events[0, -7:] for name, of_events in weights_of(found, known_context).items()}
    fade = 2 ** (-np.array([98.0, 98, 28, 28, 8, 1, 0]) / 45)
    np.testing.assert_allclose(weights["all"], [1 / 4, 1, 1 / 4, 1 / 4, 1 / 4, 0.2, 0], rtol=1e-6)
    np.testing.assert_allclose(weights["last"], [0, 0, 0, 0, 1, 0.2, 0], rtol=1e-6)
    np.testing.assert_allclose(weights["faded"], [0, fade[1], 0, 0, fade[4], 0.2 * fade[5], 0], rtol=1e-5)


def rows_of(context: Context, row: int) -> list[Event]:
    return [
        (int(item) - 1, float(age), int(kind), float(pieces))
        for item, age, kind, pieces in zip(
            context.items[row], context.ages_days[row], context.event_types[row], context.quantities[row], strict=True
        )
        if item
    ]


def own_of(events: list[Event], item: int) -> dict[str, float]:
    """Work OWN out for one item, event by event."""
    order_ages = sorted({age for _, age, kind, _ in events if kind == PURCHASE})  # newest first
    bought = [(age, pieces) for i, age, kind, pieces in events if i == item and kind == PURCHASE]
    with_item = sorted({order_ages.index(age) for age, _ in bought})
    found = {
        "is_own": float(bool(bought)),
        "in_last_order": float(0 in with_item),
        "returns": float(sum(i == item and kind == RETURN for i, _, kind, _ in events)),
        "looks": sum(PREFERENCE[k] * 2 ** (-age / 7) for i, age, k, _ in events if i == item and k != PURCHASE),
    }
    if not bought:
        return found
    last, first, n, orders = bought[-1][0], bought[0][0], len(with_item), len(order_ages)
    found |= {
        "orders_with": n,
        "days_since_last": last,
        "days_to_last_order": last - order_ages[0],
        "orders_since": with_item[0],
        "days_since_first": first,
        "share_of_orders": n / orders,
        "share_since_first": n / (with_item[-1] + 1),
        "pieces_with": np.log1p(np.mean([pieces for _, pieces in bought])),
        "last_pieces": np.log1p(bought[-1][1]),
    }
    if n > 1:
        found["days_between"] = (first - last) / (n - 1)
        found["due"] = last / max(found["days_between"], 1)
    found |= {f"decayed_{h}_days": sum(2 ** ((order_ages[0] - age) / h) for age, _ in bought) for h in (7, 21, 60, 180)}
    found |= {f"decayed_orders_{decay}": sum(decay**ago for ago in with_item) for decay in (0.5, 0.8)}
    found |= {f"share_of_last_{k}": sum(ago < k for ago in with_item) / min(orders, k) for k in (2, 3, 5)}
    return found


def shopper_of(events: list[Event]) -> dict[str, float]:
    """Work SHOPPER out, order by order."""
    bought = [(item, age, pieces) for item, age, kind, pieces in events if kind == PURCHASE]
    ages = sorted({age for _, age, _ in bought})  # newest first
    newest = ages[0] if ages else 400.0
    lines = {ago: [item for item, age, _ in bought if age == at] for ago, at in enumerate(ages)}
    distinct = len({item for item, *_ in bought})
    before = {ago: {item for older in range(ago + 1, len(ages)) for item in lines[older]} for ago in lines}
    repeated = sum(0.7**ago * sum(item in before[ago] for item in lines[ago]) for ago in lines)
    could = sum(0.7**ago * len(lines[ago]) for ago in lines if ago < len(ages) - 1)
    return {
        "days_since_order": newest,
        "orders": len(ages),
        "days_between_orders": (ages[-1] - newest) / max(len(ages) - 1, 1) if ages else 0,
        "lines_per_order": len(bought) / max(len(ages), 1),
        "distinct_items": distinct,
        "repeated_lines": 1 - distinct / max(len(bought), 1),
        "last_lines": len(lines.get(0, [])),
        "habit": (repeated + 0.3) / (could + 1),
        "recent_lines": sum(0.7**ago * len(lines[ago]) for ago in lines) / max(sum(0.7**ago for ago in lines), 1),
        "pieces_per_line": sum(pieces for *_, pieces in bought) / max(len(bought), 1),
        "days_between_last_two": (ages[1] if len(ages) > 1 else 400.0) - newest,
    }


def world(seed: int, *, n_items: int = 25, length: int = 12) -> tuple[Interactions, Assortment, Context]:
    known = random_interactions(seed=seed, n_users=15, n_items=n_items, n_events=200)
    rng = np.random.default_rng(seed)
    types = np.where(rng.random(200) < 0.1, RETURN, known.event_type).astype(np.int8)
    # Whole days: several events make one order.
    moments = (known.timestamp.astype("datetime64[D]")).astype("datetime64[us]")
    pieces = rng.integers(1, 9, 200).astype(np.float32)
    known = dataclasses.replace(known, event_type=types, timestamp=moments, quantity=pieces)
    return known, assortment_of(known), context_for(known, length=length)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000))
def test_features_are_those_worked_out_one_by_one(seed: int) -> None:
    _, assortment, context = world(seed)
    found = find_candidates(context, assortment, n_fitting=3, n_fitting_lately=2, n_best_sellers=2)
    price = assortment.facts[:, FACTS.index("price")]
    for at, (shopper, item) in enumerate(zip(found.shopper.tolist(), found.item.tolist(), strict=True)):
        events = rows_of(context, shopper)
        expected = dict.fromkeys(OWN, np.nan) | own_of(events, item) | shopper_of(events)
        prices = [price[i] for i, _, kind, _ in events if kind == PURCHASE]
        expected["price_ratio"] = price[item] - np.mean(prices) if prices else np.nan
        expected |= dict(zip(FACTS, assortment.facts[item], strict=True))
        for name, value in expected.items():
            got = found.features[at, FEATURES.index(name)]
            assert got == pytest.approx(value, rel=2e-3, abs=2e-4, nan_ok=True), (name, shopper, item)
        assert (at in found.own_at) == any(i == item for i, *_ in events)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10_000), st.integers(5, 25), st.integers(1, 25))
def test_linear_scores_are_sums_over_the_events(seed: int, max_items: int, max_links: int) -> None:
    known, _, context = world(seed)
    assortment = assortment_of(known, max_items=max_items, max_links=max_links)
    found = find_candidates(context, assortment, n_fitting=5)
    full = {name: matrix_of(assortment, name) for name in ("ease", "following")}
    source = np.maximum(context.items - 1, 0)[found.shopper]  # (P, L)
    weights = weights_of(found, context)
    terms = {name: weights[WEIGHTS[name]][found.shopper] for name in WEIGHTS}  # (P, L)
    for name in ("ease", "ease_last", "ease_faded", "following"):
        matrix = full["following" if name == "following" else "ease"]
        expected = (terms[name] * matrix[source, found.item[:, None]]).sum(axis=1)
        np.testing.assert_allclose(found.fit[:, FIT.index(name)], expected, atol=1e-5, err_msg=name)
    np.testing.assert_allclose(
        found.fit[:, FIT.index("ease_recent")],
        found.fit[:, FIT.index("ease")] * assortment.recency[found.item],
        atol=1e-6,
    )
    for name in ("text", "text_last"):
        taste = (terms[name][:, :, None] * assortment.text[source]).sum(axis=1)
        taste /= np.maximum(np.linalg.norm(taste, axis=1, keepdims=True), 1e-9)
        expected = (taste * assortment.text[found.item]).sum(axis=1)
        np.testing.assert_allclose(found.fit[:, FIT.index(name)], expected, atol=1e-5, err_msg=name)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10_000))
def test_candidates_are_the_history_the_best_fitting_and_the_best_sellers(seed: int) -> None:
    known, assortment, context = world(seed)
    found = find_candidates(context, assortment, n_fitting=4, n_fitting_lately=3, n_best_sellers=2)
    weights = weights_of(found, context)
    np.testing.assert_array_equal(found.cell, found.shopper * known.n_items + found.item)
    assert (np.diff(found.cell) > 0).all()
    for row in range(len(context)):
        own = {item for item, *_ in rows_of(context, row)}
        new = [item for item in range(known.n_items) if item not in own]
        must = own | set(assortment.best_sellers[:2].tolist())
        may = set(must)
        for name, n in (("all", 4), ("faded", 3)):
            wanted = np.zeros((1, known.n_items))
            np.add.at(wanted[0], np.maximum(context.items[row] - 1, 0), weights[name][row])
            scores = ((wanted @ matrix_of(assortment, "ease"))[0] + 1e-6) * assortment.recency
            after = sorted((scores[item] for item in new), reverse=True)[n]  # the best that isn't chosen
            # Of two that tie but for rounding either may be.
            tied = 1e-5 * np.abs(scores).max()
            must |= {item for item in new if scores[item] > after + tied}
            may |= {item for item in new if scores[item] > after - tied}
        chosen = set(found.item[found.shopper == row].tolist())
        assert must <= chosen <= may | must
        assert len(chosen) <= len(own) + 2 + 4 + 3


def test_ranks_count_what_is_better() -> None:
    _, assortment, context = world(1)
    found = find_candidates(context, assortment, n_fitting=6)
    ease, rank = (found.fit[:, FIT.index(name)] for name in ("ease", "ease_rank"))
    for row in range(len(context)):
        mine = found.shopper == row
        order = np.argsort(rank[mine])
        assert sorted(rank[mine].tolist()) == list(range(mine.sum()))
        assert (np.diff(ease[mine][order]) <= 0).all()


def test_a_stranger_gets_what_sells() -> None:
    _, assortment, context = world(2)
    empty = dataclasses.replace(context, items=np.zeros_like(context.items), event_types=np.zeros_like(context.items))
    found = find_candidates(empty.take(slice(0, 1)), assortment, n_fitting=4, n_fitting_lately=3, n_best_sellers=0)
    assert set(found.item.tolist()) == set(np.argsort(-assortment.recency, kind="stable")[:4].tolist())
    assert not len(found.own_at)
    assert feature(found, "days_since_order", 0, int(found.item[0])) == 400


def test_of_items_that_never_sold_none_is_a_candidate_before_the_others() -> None:
    known = interactions([(0, 7, 3.0), (1, 7, 2.0), (1, 4, 2.0), (0, 9, 1.0), (0, 9, 2.0)], n_users=3, n_items=30)
    stranger = context_for(known).take(np.array([2]))
    found = find_candidates(stranger, assortment_of(known), n_fitting=10, n_fitting_lately=5, n_best_sellers=0)
    assert found.item.tolist() == [4, 7, 9]  # the other 27 tie for the seven places left
    assert len(find_candidates(stranger, assortment_of(known), n_fitting=30, n_best_sellers=0)) == 30


def test_a_shopper_has_the_same_features_alone_and_among_others() -> None:
    _, assortment, context = world(3)
    together = find_candidates(context, assortment, n_fitting=5)
    for row in range(len(context)):
        alone = find_candidates(context.take(np.array([row])), assortment, n_fitting=5)
        mine = together.shopper == row
        np.testing.assert_array_equal(alone.item, together.item[mine])
        np.testing.assert_allclose(alone.features, together.features[mine], atol=1e-5)


def test_names_are_distinct_and_cover_the_columns() -> None:
    _, assortment, context = world(4)
    found = find_candidates(context, assortment)
    assert len(set(FEATURES)) == len(FEATURES) == found.features.shape[1]
    assert found.of_shopper.shape == (len(context), len(SHOPPER))
    assert set(WEIGHTS) < set(FIT)
    assert set(WEIGHTS.values()) == set(WANTED)
    assert len(found.shares) == len(WANTED)
