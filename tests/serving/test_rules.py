"""Slate rules: what must hold of any list, each rule by itself against plain arithmetic, and the settings' checks."""

import logging
from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from recflow.errors import SettingsError
from recflow.models.interactions import top_k
from recflow.serving.catalogue import Codes
from recflow.serving.rules import Ask, Rules, Slate
from recflow.settings import RuleSettings, load_settings

CATEGORIES = ("home > mugs", "home > clocks", "home", "garden > pots", None)
BRANDS = ("Acme", "Bolt", None)


def make_rules(
    settings: dict[str, Any],
    *,
    categories: Sequence[str | None],
    brands: Sequence[str | None] | None = None,
    is_offered: np.ndarray | None = None,
    vectors: np.ndarray | None = None,
) -> Rules:
    n_items = len(categories)
    return Rules(
        RuleSettings(**settings),
        {f"I{item}": item for item in range(n_items)},
        is_offered=np.ones(n_items, dtype=bool) if is_offered is None else is_offered,
        categories=Codes.of_tree(pa.chunked_array([categories], pa.string())),
        brands=Codes.of(pa.chunked_array([brands or [None] * n_items], pa.string())),
        vectors=np.zeros((n_items, 4), dtype=np.float32) if vectors is None else vectors,
    )


def make_scores(*scores: float) -> np.ndarray:
    return np.array(scores, dtype=np.float32)


def all_of(rules: Rules, scores: np.ndarray, **ask: Any) -> Slate:
    return rules.apply(scores, np.ones(len(scores), dtype=bool), Ask(**{"k": len(scores), "explain": True} | ask))


def notes(slate: Slate) -> dict[str, list[str]]:
    """Return rule -> the items that its note names."""
    return {note["rule"]: note["item_ids"] for note in slate.notes}


# -- any rules, any request


@st.composite
def cases(draw: st.DrawFn) -> dict[str, Any]:
    """Draw a catalogue, rules and a request; few distinct values, so that ties and clashes are common."""
    n_items = draw(st.integers(1, 30))
    item = st.integers(0, n_items - 1)
    places = draw(st.dictionaries(st.integers(1, 12), item, max_size=4))
    pinned = [(place, each) for each, place in {each: place for place, each in places.items()}.items()]
    free = [f"I{each}" for each in range(n_items) if each not in places.values()] or ["unheard of"]
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    vectors = rng.choice([-1.0, 0.0, 0.5, 1.0], (n_items, 3))
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return {
        "rules": make_rules(
            {
                "blocked_item_ids": draw(st.lists(st.sampled_from(free), max_size=3)),
                "blocked_categories": draw(st.sampled_from([(), ("garden",), ("home > mugs",)])),
                "blocked_brands": draw(st.sampled_from([(), ("Acme",)])),
                "pins": [{"placement": "home", "position": place, "item_id": f"I{each}"} for place, each in pinned],
                "max_per_category": draw(st.sampled_from([None, 1, 2])),
                "category_level": draw(st.sampled_from(["top", "full"])),
                "max_shown": draw(st.sampled_from([None, 2])),
            },
            categories=rng.choice(CATEGORIES, n_items).tolist(),
            brands=rng.choice(BRANDS, n_items).tolist(),
            is_offered=rng.random(n_items) < 0.8,
            vectors=(vectors / np.where(lengths > 0, lengths, 1)).astype(np.float32),
        ).with_out_of_stock([f"I{each}" for each in draw(st.lists(item, max_size=3))]),
        "scores": draw(arrays(np.float32, n_items, elements=st.sampled_from([-np.inf, -1.0, 0.0, 0.25, 0.5, 3.0]))),
        "allowed": rng.random(n_items) < 0.8,
        "ask": Ask(
            k=draw(st.integers(1, 40)),
            placement=draw(st.sampled_from(["home", "cart"])),
            in_stock=draw(st.booleans()),
            diversity=draw(st.sampled_from([None, 0.0, 0.3, 1.0])),
            shown=draw(st.none() | st.dictionaries(item.map("I{}".format), st.integers(1, 3), max_size=5)),
            explain=draw(st.booleans()),
        ),
    }  # fmt: skip


def may_show(case: dict[str, Any]) -> np.ndarray:
    """Say item by item what the case lets be shown, by the words of the settings."""
    rules, ask = case["rules"], case["ask"]
    showable = rules.showable(in_stock=ask.in_stock)
    return np.asarray(showable & case["allowed"] & (case["scores"] > -np.inf))


@hypothesis_settings(deadline=None)
@given(cases())
def test_a_list_has_min_k_allowed_items_each_once_with_its_own_score(case: dict[str, Any]) -> None:
    slate = case["rules"].apply(case["scores"], case["allowed"], case["ask"])
    items, allowed = slate.items.tolist(), may_show(case)
    assert len(items) == len(set(items)) == min(case["ask"].k, int(allowed.sum()))
    assert allowed[items].all()
    np.testing.assert_array_equal(slate.scores, case["scores"][items])
    assert (slate.items.dtype, slate.scores.dtype) == (np.int32, np.float32)


@hypothesis_settings(deadline=None)
@given(cases())
def test_equal_input_gives_equal_lists_with_notes_or_without(case: dict[str, Any]) -> None:
    scores, allowed = case["scores"].copy(), case["allowed"].copy()
    asks = [case["ask"]._replace(explain=explain) for explain in (True, True, False)]
    first, second, silent = (case["rules"].apply(case["scores"], case["allowed"], ask) for ask in asks)
    np.testing.assert_array_equal(first.items, second.items)
    np.testing.assert_array_equal(first.items, silent.items)
    assert (first.notes, silent.notes) == (second.notes, [])
    np.testing.assert_array_equal(case["scores"], scores)  # what was given is as it was
    np.testing.assert_array_equal(case["allowed"], allowed)


@hypothesis_settings(deadline=None)
@given(cases())
def test_without_a_rule_that_moves_items_it_is_top_k(case: dict[str, Any]) -> None:
    rules, ask = case["rules"], case["ask"]._replace(placement="cart", diversity=0.0, shown=None)
    slate = rules.apply(case["scores"], case["allowed"], ask)
    expected = top_k(case["scores"][None], ask.k, exclude=~may_show(case)[None])[0][0]
    if rules.settings.max_per_category is None:
        np.testing.assert_array_equal(slate.items, expected[expected >= 0])
        assert (np.diff(slate.scores) <= 0).all()
    else:
        assert not {"pinned", "frequency_cap", "diversity"} & set(notes(slate))


@hypothesis_settings(deadline=None)
@given(cases())
def test_where_nothing_moved_scores_never_rise(case: dict[str, Any]) -> None:
    slate = case["rules"].apply(case["scores"], case["allowed"], case["ask"]._replace(explain=True))
    if not {note["rule"] for note in slate.notes} - {"blocked", "withdrawn", "stock"}:
        assert (np.diff(slate.scores) <= 0).all()


@hypothesis_settings(deadline=None)
@given(cases())
def test_pins_stand_at_their_places_or_at_a_short_lists_end(case: dict[str, Any]) -> None:
    rules, ask, allowed = case["rules"], case["ask"]._replace(placement="home", explain=True), may_show(case)
    slate = rules.apply(case["scores"], case["allowed"], ask)
    pins = sorted((pin.position, int(pin.item_id[1:])) for pin in rules.settings.pins if pin.position <= ask.k)
    held = [(position, item) for position, item in pins if allowed[item]]
    for behind, (position, item) in enumerate(reversed(held)):
        assert slate.items[min(position, len(slate.items) - behind) - 1] == item
    named = [item_id for note in slate.notes if note["rule"] == "pinned" for item_id in note["item_ids"]]
    assert sorted(named) == sorted(f"I{item}" for _, item in pins)


@hypothesis_settings(deadline=None)
@given(cases())
def test_a_categorys_cap_holds_or_is_said_to_be_lifted(case: dict[str, Any]) -> None:
    rules = case["rules"]
    slate = rules.apply(case["scores"], case["allowed"], case["ask"]._replace(explain=True, placement="cart"))
    cap = rules.settings.max_per_category
    lifted = [note for note in slate.notes if note["rule"] == "category_cap" and "lifted" in note["did"]]
    if cap is not None:
        beyond = lifted[0]["item_ids"] if lifted else []
        within = [item for item in slate.items.tolist() if f"I{item}" not in beyond]
        counts = Counter(int(rules._categories[item]) for item in within)
        assert all(count <= cap for category, count in counts.items() if category >= 0)
        # Lifted only where nothing else was left: all that fits is in the list.
        if beyond:
            left = set(np.flatnonzero(may_show(case))) - set(slate.items.tolist())
            assert all(counts[int(rules._categories[item])] == cap for item in left)
            assert [f"I{item}" for item in slate.items[len(within) :]] == beyond


@hypothesis_settings(deadline=None)
@given(cases())
def test_what_was_shown_often_never_stands_before_what_was_not(case: dict[str, Any]) -> None:
    rules, ask = case["rules"], case["ask"]._replace(placement="cart")
    if rules.settings.max_per_category is None and rules.settings.max_shown is not None:
        slate = rules.apply(case["scores"], case["allowed"], ask)
        is_tired = [(ask.shown or {}).get(f"I{item}", 0) >= rules.settings.max_shown for item in slate.items.tolist()]
        assert is_tired == sorted(is_tired)


@hypothesis_settings(deadline=None)
@given(st.lists(cases(), min_size=2, max_size=2), st.data())
def test_requests_that_come_together_are_answered_as_each_alone(
    pair: list[dict[str, Any]], data: st.DataObject
) -> None:
    rules, scores, allowed = pair[0]["rules"], pair[0]["scores"], pair[0]["allowed"]
    plain = [pair[0]["ask"]._replace(placement="cart", diversity=0.0, shown=None, k=k) for k in (1, 40)]
    asks = data.draw(st.permutations([pair[0]["ask"], pair[1]["ask"], *plain]))
    batch = np.stack([scores, np.roll(scores, 1), scores[::-1], -scores[::-1]])
    batch[batch == np.inf] = -np.inf
    together = rules.apply_many(batch, np.stack([allowed] * 4), asks)
    for row, ask in enumerate(asks):
        alone = rules.apply(batch[row], allowed, ask)
        np.testing.assert_array_equal(together[row].items, alone.items)
        assert together[row].notes == alone.notes


# -- each rule


def test_what_is_blocked_withdrawn_or_out_of_stock_is_named_once() -> None:
    rules = make_rules(
        {"blocked_item_ids": [" i0 "], "blocked_categories": ["garden"], "blocked_brands": ["Acme"]},
        categories=["home", "garden > pots", "gardening", "home", "home", "home"],
        brands=[None, "Acme", "Acme", None, None, None],
        is_offered=np.array([False, True, True, False, True, True]),
    ).with_out_of_stock(["I4", "unheard of"])
    slate = all_of(rules, make_scores(6, 5, 4, 3, 2, 1))
    assert slate.items.tolist() == [5]
    assert notes(slate) == {"blocked": ["I0", "I1", "I2"], "withdrawn": ["I3"], "stock": ["I4"]}
    with_sold_out = all_of(rules, make_scores(6, 5, 4, 3, 2, 1), in_stock=False)
    assert with_sold_out.items.tolist() == [4, 5]
    assert "stock" not in notes(with_sold_out)
    assert all_of(rules.with_out_of_stock([]), make_scores(6, 5, 4, 3, 2, 1)).items.tolist() == [4, 5]


def test_settings_may_show_what_is_out_of_stock() -> None:
    rules = make_rules({"show_out_of_stock": True}, categories=[None] * 2).with_out_of_stock(["I0"])
    slate = all_of(rules, make_scores(2, 1))
    assert (slate.items.tolist(), slate.notes) == ([0, 1], [])
    assert (rules.is_in_stock(0), rules.is_in_stock(1)) == (False, True)


def test_a_block_that_changed_nothing_is_not_named() -> None:
    rules = make_rules({"blocked_item_ids": ["I3"]}, categories=[None] * 4)
    assert all_of(rules, make_scores(4, 3, 2, 1), k=3).notes == []  # would be fourth
    assert notes(all_of(rules, make_scores(4, 3, 2, 1), k=4)) == {"blocked": ["I3"]}
    allowed = np.array([True, True, True, False])  # the request left it out itself
    assert rules.apply(make_scores(4, 3, 2, 1), allowed, Ask(k=4, explain=True)).notes == []


def test_a_narrower_pin_drives_out_a_wider_one() -> None:
    home = {"placement": "home", "position": 2}
    rules = make_rules(
        {
            "pins": [
                home | {"item_id": "I3"},
                home | {"item_id": "I4", "country": "Germany"},
                home | {"item_id": "I5", "country": "Germany", "category": "home"},
                home | {"item_id": "I3", "position": 1, "country": "France"},
            ]
        },
        categories=["home > mugs"] * 6,
    )
    scores = make_scores(6, 5, 4, 3, 2, 1)
    assert all_of(rules, scores, k=3).items.tolist() == [0, 3, 1]
    assert all_of(rules, scores, k=3, country="Germany").items.tolist() == [0, 4, 1]
    assert all_of(rules, scores, k=3, country="Germany", categories=["home > mugs"]).items.tolist() == [0, 5, 1]
    assert all_of(rules, scores, k=3, country="Germany", categories=["home", "garden"]).items.tolist() == [0, 4, 1]
    assert all_of(rules, scores, k=3, country="France").items.tolist() == [3, 0, 1]  # once, where the narrower one says
    assert all_of(rules, scores, k=3, placement="cart").items.tolist() == [0, 1, 2]
    sold_out = all_of(rules.with_out_of_stock(["I4"]), scores, k=3, country="Germany")
    assert sold_out.items.tolist() == [0, 3, 1]  # the wider one stands in
    assert [note["item_ids"] for note in sold_out.notes] == [["I3"], ["I4"]]


def test_a_categorys_cap_counts_pins_and_reaches_below_the_pool() -> None:
    n_mugs = 600  # more than the pool of a list of 4 holds
    rules = make_rules(
        {"max_per_category": 1, "category_level": "full", "pins": [{"placement": "home", "position": 1,
                                                                    "item_id": "I602"}]},
        categories=["home > mugs"] * n_mugs + ["home > clocks", "garden", "home > mugs", None, None],
    )  # fmt: skip
    scores = np.arange(605, 0, -1).astype(np.float32)
    assert all_of(rules, scores, k=4, placement="cart").items.tolist() == [0, 600, 601, 603]
    slate = all_of(rules, scores, k=4)
    assert slate.items.tolist() == [602, 600, 601, 603]  # the pinned mug is the one mug
    assert notes(slate) == {"pinned": ["I602"], "category_cap": ["I0", "I1", "I2", "I3"]}
    slate = all_of(rules, scores, k=7, placement="cart")
    assert slate.items.tolist() == [0, 600, 601, 603, 604, 1, 2]
    assert slate.notes[-1]["item_ids"] == ["I1", "I2"]
    assert "lifted" in slate.notes[-1]["did"]


@pytest.mark.parametrize(("level", "expected"), [("top", [0, 3]), ("full", [0, 2])])
def test_a_category_is_the_top_one_or_the_full_one(level: str, expected: list[int]) -> None:
    categories = ["home > mugs", "home > mugs", "home > clocks", "garden"]
    rules = make_rules({"max_per_category": 1, "category_level": level}, categories=categories)
    assert all_of(rules, make_scores(4, 3, 2, 1), k=2).items.tolist() == expected


def test_beside_one_item_categories_have_no_cap_unless_settings_say_so() -> None:
    categories, scores = ["mugs"] * 3 + ["clocks"], make_scores(4, 3, 2, 1)
    rules = make_rules({"max_per_category": 1}, categories=categories)
    beside = all_of(rules, scores, k=2, about_item=True)
    assert (beside.items.tolist(), beside.notes) == ([0, 1], [])
    assert rules.reach(Ask(k=2, about_item=True)) == 2
    assert all_of(rules, scores, k=2).items.tolist() == [0, 3]
    rules = make_rules({"max_per_category": 1, "cap_item_pages": True}, categories=categories)
    assert all_of(rules, scores, k=2, about_item=True).items.tolist() == [0, 3]


def test_what_was_shown_often_comes_after_all_others() -> None:
    rules = make_rules({"max_shown": 3}, categories=[None] * 4)
    scores = make_scores(4, 3, 2, 1)
    slate = all_of(rules, scores, k=3, shown={"I0": 3, "I1": 2, "unheard of": 9})
    assert slate.items.tolist() == [1, 2, 3]
    assert notes(slate) == {"frequency_cap": ["I0"]}
    assert "3 times or more within 24 hours" in slate.notes[0]["did"]
    assert all_of(rules, scores, k=4, shown={"I0": 3}).items.tolist() == [1, 2, 3, 0]  # rather than a short list
    assert all_of(make_rules({}, categories=[None] * 4), scores, shown={"I0": 3}).items.tolist() == [0, 1, 2, 3]


def test_what_was_shown_often_still_comes_before_what_is_beyond_the_cap() -> None:
    rules = make_rules({"max_shown": 1, "max_per_category": 1}, categories=["home", "home", "garden"])
    slate = all_of(rules, make_scores(3, 2, 1), shown={"I2": 1})
    assert slate.items.tolist() == [0, 2, 1]


def test_a_pin_holds_however_often_it_was_shown() -> None:
    pins = [{"placement": "home", "position": 1, "item_id": "I2"}]
    slate = all_of(
        make_rules({"max_shown": 1, "pins": pins}, categories=[None] * 3), make_scores(3, 2, 1), shown={"I2": 9}
    )
    assert slate.items.tolist() == [2, 0, 1]
    assert notes(slate) == {"pinned": ["I2"]}


# -- diversity


def greedy(scores: np.ndarray, vectors: np.ndarray, k: int, diversity: float) -> list[int]:
    """Maximal marginal relevance, written out; the catalogue is smaller than the pool."""
    relevance = (scores - scores.min()) / (scores.max() - scores.min())
    chosen: list[int] = [int(scores.argmax())]
    while len(chosen) < k:
        margins = [
            -np.inf if item in chosen
            else (1 - diversity) * relevance[item] - diversity * max(vectors[item] @ vectors[other] for other in chosen)
            for item in range(len(scores))
        ]  # fmt: skip
        chosen.append(int(np.argmax(margins)))
    return chosen


@hypothesis_settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 25), st.sampled_from([0.1, 0.5, 0.9, 1.0]))
def test_diversity_is_maximal_marginal_relevance(seed: int, k: int, diversity: float) -> None:
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(25, 5))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    scores = np.sort(rng.normal(size=25))[::-1].astype(np.float32)
    rules = make_rules({}, categories=[None] * 25, vectors=vectors.astype(np.float32))
    slate = all_of(rules, scores, k=k, diversity=diversity)
    assert slate.items.tolist() == greedy(scores.astype(float), vectors, k, diversity)
    assert bool(slate.notes) == (slate.items.tolist() != list(range(k)))


def test_lists_get_no_more_alike_as_diversity_grows() -> None:
    # Four kinds of items; the best-scored are all of the first kind.
    kinds = np.repeat(np.arange(4), 10)
    rules = make_rules({}, categories=[None] * 40, vectors=np.eye(4, dtype=np.float32)[kinds])
    scores = np.linspace(1, 0, 40).astype(np.float32)
    unlike = []
    for diversity in (0.0, 0.1, 0.2, 0.3, 0.5, 0.8, 1.0):
        items = all_of(rules, scores, k=5, diversity=diversity).items
        pairs = list(combinations(kinds[items], 2))
        unlike.append(sum(one != other for one, other in pairs) / len(pairs))
    assert unlike == sorted(unlike)
    assert (unlike[0], unlike[-1]) == (0.0, 9 / 10)  # all kinds, one of them twice: 1 pair of 10 is alike


def test_what_is_unlike_is_looked_for_among_the_best_five_times_the_list() -> None:
    kinds = np.zeros(400, dtype=int)
    kinds[[290, 310]] = [1, 2]
    rules = make_rules({}, categories=[None] * 400, vectors=np.eye(3, dtype=np.float32)[kinds])
    scores = np.arange(400, 0, -1).astype(np.float32)
    assert all_of(rules, scores, k=60, diversity=1.0).items[:3].tolist() == [0, 290, 1]
    assert all_of(rules, scores, k=10, diversity=1.0).items[:3].tolist() == [0, 1, 2]  # of 200


def test_what_is_next_is_unlike_every_pin() -> None:
    pins = [{"placement": "home", "position": place, "item_id": f"I{2 + place}"} for place in (1, 2)]
    vectors = np.eye(3, dtype=np.float32)[[0, 1, 2, 0, 1]]
    rules = make_rules({"pins": pins}, categories=[None] * 5, vectors=vectors)
    assert all_of(rules, make_scores(5, 4, 3, 2, 1), k=3, diversity=0.9).items.tolist() == [3, 4, 2]


def test_the_settings_diversity_is_that_of_requests_that_say_nothing() -> None:
    vectors = np.eye(2, dtype=np.float32)[[0, 0, 1]]
    rules = make_rules({"diversity": 0.9}, categories=[None] * 3, vectors=vectors)
    scores = make_scores(3, 2, 1)
    assert all_of(rules, scores).items.tolist() == [0, 2, 1]
    assert notes(all_of(rules, scores)) == {"diversity": ["I2"]}
    assert all_of(rules, scores, diversity=0.0).items.tolist() == [0, 1, 2]


def test_diversity_keeps_the_categorys_cap_and_counts_pins_as_shown() -> None:
    vectors = np.eye(3, dtype=np.float32)[[0, 0, 1, 2, 2]]
    pins = [{"placement": "home", "position": 3, "item_id": "I4"}]
    rules = make_rules(
        {"max_per_category": 1, "category_level": "full", "pins": pins},
        categories=["home", "garden", "home", None, None],
        vectors=vectors,
    )
    scores = make_scores(5, 4, 3, 2, 1)
    # The pinned item is like I3, so I3 comes last; I2 is kept out by I0's category although it is like nothing.
    slate = all_of(rules, scores, k=4, diversity=0.7)
    assert slate.items.tolist() == [0, 1, 4, 3]
    assert notes(slate) == {"pinned": ["I4"], "category_cap": ["I2"]}


# -- settings


HOME = {"placement": "home", "position": 1}


@pytest.mark.parametrize(
    ("rules", "sentence"),
    [
        ({"blocked_item_ids": ["p1"], "pins": [HOME | {"item_id": "P1 "}]}, "both pinned and blocked; take it out of"),
        ({"pins": [HOME | {"item_id": "A"}, HOME | {"item_id": "B"}]}, "'A' at place 1 and item 'B' at place 1 of"),
        ({"pins": [HOME | {"item_id": "A"}, HOME | {"item_id": "a", "position": 2}]}, "can't both hold; take one"),
        ({"blocked_categories": ["home"], "pins": [HOME | {"item_id": "A", "category": "home > mugs"}]}, "is blocked;"),
        ({"pins": [HOME | {"item_id": "A", "position": 0}]}, "'serving.rules.pins.0.position': .* greater than"),
        ({"pins": [HOME | {"item_id": "A", "placement": "Home page"}]}, "'serving.rules.pins.0.placement'"),
        ({"pins": [HOME]}, "'serving.rules.pins.0.item_id': field required"),
        ({"max_per_category": 0}, "'serving.rules.max_per_category': .* found 0"),
        ({"diversity": 1.5}, "'serving.rules.diversity': .* found 1.5"),
        ({"category_level": "middle"}, "'serving.rules.category_level'"),
        ({"blocked_item": ["A"]}, r"did you mean 'serving\.rules\.blocked_item_ids'\?"),
    ],
)  # fmt: skip
def test_rules_that_cannot_hold_are_refused_when_settings_are_read(rules: dict[str, Any], sentence: str) -> None:
    with pytest.raises(SettingsError, match=sentence):
        load_settings(serving={"rules": rules})


def test_pins_of_different_lists_are_no_contradiction() -> None:
    pins = [
        HOME | {"item_id": "A"},
        {"placement": "cart", "position": 1, "item_id": "A"},
        HOME | {"item_id": "B", "country": "Germany"},
        HOME | {"item_id": "C", "country": "France"},
        HOME | {"item_id": "D", "category": "home"},
        HOME | {"item_id": "E", "category": "home > mugs"},
    ]
    assert len(load_settings(serving={"rules": {"pins": pins}}).serving.rules.pins) == 6


def test_what_the_catalogue_does_not_know_is_logged_and_nothing_more(caplog: pytest.LogCaptureFixture) -> None:
    chosen = {
        "blocked_item_ids": ["I0", "I9"],
        "blocked_categories": ["home", "hoem"],
        "blocked_brands": ["Acme", "Amce"],
        "pins": [HOME | {"item_id": "X1"}],
    }
    with caplog.at_level(logging.WARNING, logger="recflow"):
        rules = make_rules(chosen, categories=["home > mugs", None], brands=[None, "Acme"])
    assert not rules.showable().any()
    assert [message.partition("serving.rules.")[2] for message in caplog.messages] == [
        "pins: not in this version's catalogue: X1.",
        "blocked_item_ids: not in this version's catalogue: I9.",
        "blocked_categories: not in this version's catalogue: hoem.",
        "blocked_brands: not in this version's catalogue: Amce.",
    ]
