"""What is answered: always something, within the filters, equal for equal knowledge, marked where it is less."""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from recflow.models.context import context_of
from recflow.serving.feedback import judge_events, to_us
from recflow.serving.requests import CartOrderRequest, CrossCategoryRequest, RecommendRequest, RerankRequest
from recflow.settings import Settings, load_settings
from tests.serving.conftest import Asking, Built, FakeReader

USER = "13000.0"


def _ids(answer: object) -> list[str]:
    return [item["item_id"] for item in answer["items"]]


def _scores(answer: dict) -> list[float]:
    return [item["score"] for item in answer["items"]]


def _without_id(answer: dict) -> dict:
    return {key: value for key, value in answer.items() if key != "request_id"}


def _post(ask: Asking, **event: object) -> None:
    rows, rejected = judge_events([event], now=datetime(2026, 1, 1, tzinfo=UTC), max_future_seconds=0)
    assert not rejected
    ask.recommender.event_log.append(rows)


def test_a_known_users_list_is_the_models(ask: Asking, built: Built, reader: FakeReader) -> None:
    row, bundle = reader.users([USER])[0], built.bundle
    context = context_of(
        [row], [row.features], as_of_us=to_us(datetime(2011, 4, 1, tzinfo=UTC)), item_index=bundle.item_index,
        user_encoder=bundle.encoders.user, item_features=bundle.item_features, history_length=100,
    )  # fmt: skip
    scores = bundle.ranker.score(context)[0]
    scores[bundle.item_index["P23"]] = -np.inf  # offered no more
    expected = [bundle.item_ids[item] for item in np.argsort(-scores, kind="stable")[:6]]
    answer = ask(RecommendRequest(user_id=USER, k=6))
    assert _ids(answer) == expected
    assert answer["fallback"] is None
    assert [item["rank"] for item in answer["items"]] == [1, 2, 3, 4, 5, 6]
    assert _scores(answer) == sorted(_scores(answer), reverse=True)
    assert answer["model_version"] == "7"
    assert answer["as_of"] == "2011-04-01T00:00:00Z"


def test_equal_knowledge_gives_equal_answers(ask: Asking) -> None:
    one, other = (ask(RecommendRequest(user_id=USER)) for _ in range(2))
    assert _without_id(one) == _without_id(other)
    assert one["request_id"] != other["request_id"]


def test_a_purchase_posted_changes_the_next_answer_and_its_moment(ask: Asking) -> None:
    before = ask(RecommendRequest(user_id=USER, k=24))
    _post(ask, event_type="purchase", user_id=USER, item_id="P05", event_timestamp="2011-04-02T08:00:00Z")
    after = ask(RecommendRequest(user_id=USER, k=24))
    assert _ids(after) != _ids(before)
    assert after["as_of"] == "2011-04-02T08:00:00Z"
    assert "P05" in {item["reason"].get("item_id") for item in after["items"]}  # what it now weighs most in


def test_an_event_that_the_snapshot_has_by_now_counts_once(ask: Asking, reader: FakeReader) -> None:
    row = reader.users([USER])[0]
    moment = datetime.fromtimestamp(row.timestamps_us[-1] / 1e6, UTC).isoformat()
    before = ask(RecommendRequest(user_id=USER, k=24))
    _post(ask, event_type="purchase", user_id=USER, item_id=row.item_ids[-1], event_timestamp=moment)
    after = ask(RecommendRequest(user_id=USER, k=24))
    assert _without_id(after) == _without_id(before)


def test_a_later_snapshot_moves_the_moment(ask: Asking) -> None:
    ask.store.day = datetime(2011, 4, 5).date()
    assert ask(RecommendRequest(user_id=USER))["as_of"] == "2011-04-06T00:00:00Z"


def test_a_stranger_gets_what_the_country_buys(ask: Asking, built: Built) -> None:
    recent = built.events[built.events["event_timestamp"] >= "2011-03-02"]
    german = recent[recent["country"] == "Germany"].groupby("item_id")["user_id"].nunique()
    answer = ask(RecommendRequest(user_id="nobody", k=5, context={"country": "Germany"}))
    assert (answer["fallback"]["kind"], answer["fallback"]["why"]) == ("popularity", "an unknown shopper")
    counts = [int(german.get(item_id, 0)) for item_id in _ids(answer)]
    assert counts == sorted(german, reverse=True)[:5]
    assert _ids(ask(RecommendRequest(k=5))) != _ids(answer)


def test_a_session_alone_is_enough_for_the_model(ask: Asking) -> None:
    answer = ask(RecommendRequest(session=[{"item_id": "p05"}], k=3))  # as a shop's page may write it
    assert answer["fallback"]["kind"] == "session_only"
    assert all(int(item_id[1:]) % 4 == 1 for item_id in _ids(answer))  # of the same kind
    assert answer["items"][0]["reason"]["item_id"] == "P05"
    _post(ask, event_type="view", session_id="visit", item_id="P05", event_timestamp="2011-03-31T08:00:00Z")
    assert _ids(ask(RecommendRequest(session_id="visit", k=3))) == _ids(answer)


def test_items_nobody_knows_leave_a_stranger_a_stranger(ask: Asking) -> None:
    answer = ask(RecommendRequest(session=[{"item_id": "who knows"}]))
    assert answer["fallback"]["kind"] == "popularity"


def test_without_the_online_store_the_session_answers_and_the_store_is_left_alone(
    ask: Asking, reader: FakeReader
) -> None:
    reader.broken = OSError("gone")
    answer = ask(RecommendRequest(user_id=USER, session=[{"item_id": "P05"}]))
    assert (answer["fallback"]["kind"], answer["fallback"]["why"]) == ("session_only", "the online store is away")
    assert ask(RecommendRequest(user_id=USER))["fallback"]["kind"] == "popularity"
    assert reader.reads == 1
    reader.broken = None
    ask.store._open_until = 0.0  # the pause is over
    assert ask(RecommendRequest(user_id=USER))["fallback"] is None


def test_stored_features_of_another_model_are_left_out_and_said_where_they_would_be_read(
    ask: Asking, built: Built, reader: FakeReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = reader.users([USER])[0]
    stored = SimpleNamespace(**{**vars(row), "features": {"another": 1}})
    reader._row = lambda user_id: stored
    answer = ask(RecommendRequest(user_id=USER))
    assert answer["fallback"] is None
    assert len(answer["items"]) == 20
    monkeypatch.setattr(type(built.bundle.ranker), "reads_features", True)
    answer = ask(RecommendRequest(user_id=USER))
    assert answer["fallback"]["why"] == "the stored features aren't those of the model"
    assert len(answer["items"]) == 20


@pytest.mark.parametrize(
    "change", [{"event_types": []}, {"timestamps_us": [2**63 - 1] * 100}, {"timestamps_us": [-(2**63)] * 100}], ids=str
)
def test_a_stored_row_that_is_at_odds_with_itself_harms_nobody_else(
    ask: Asking, reader: FakeReader, change: dict[str, list[object]]
) -> None:
    other = "13007.0"
    alone = ask(RecommendRequest(user_id=other))
    row_of = reader._row

    def broken(user_id: str) -> object:
        row = row_of(user_id)
        cut = {name: values[: len(row.item_ids)] for name, values in change.items()}
        return SimpleNamespace(**vars(row) | cut) if user_id == USER else row

    reader._row = broken
    one, two = ask(RecommendRequest(user_id=USER), RecommendRequest(user_id=other))
    assert one["fallback"] == {"kind": "popularity", "why": "the stored row can't be used"}
    assert _without_id(two) == _without_id(alone)


def test_a_stored_row_that_cannot_be_read_leaves_its_shopper_the_session_and_the_others_everything(
    ask: Asking, reader: FakeReader
) -> None:
    other = "13007.0"
    alone = ask(RecommendRequest(user_id=other))
    row_of = reader._row
    reader._row = lambda user_id: None if user_id == USER else row_of(user_id)
    session = [{"item_id": "P05"}]
    one, two = ask(RecommendRequest(user_id=USER, session=session), RecommendRequest(user_id=other))
    assert one["fallback"] == {
        "kind": "session_only", "why": "the online store's row of this shopper can't be read"
    }  # fmt: skip
    assert _ids(one) == _ids(ask(RecommendRequest(session=session)))
    assert _without_id(two) == _without_id(alone)
    assert not ask.store.is_away


@pytest.mark.parametrize("failure", ["raises", "nan"])
def test_a_model_that_fails_leaves_the_tables_to_answer(
    ask: Asking, monkeypatch: pytest.MonkeyPatch, failure: str
) -> None:
    def score(context: object) -> np.ndarray:
        if failure == "raises":
            raise RuntimeError("broken")
        return np.full((1, 24), np.nan, np.float32)

    monkeypatch.setattr(ask.recommender.bundle.ranker, "rank", score)
    answer = ask(RecommendRequest(session=[{"item_id": "P05"}], k=3))
    assert (answer["fallback"]["kind"], answer["fallback"]["why"]) == ("tables", "the model failed")
    assert all(int(item_id[1:]) % 4 == 1 for item_id in _ids(answer))


def test_filters_hold(ask: Asking, built: Built) -> None:
    def ids(**filters: object) -> list[str]:
        return _ids(ask(RecommendRequest(user_id=USER, k=24, filters=filters)))

    bought = set(built.events[built.events["user_id"] == USER]["item_id"])
    assert len(ids()) == 23  # all but P23, which is offered no more
    assert set(ids()) & bought == bought
    assert set(ids(new_only=True)) & bought == set()
    assert len(ids(new_only=True)) == 23 - len(bought)
    assert "P04" not in ids(exclude_item_ids=["p04", "unheard of"])
    assert set(ids(include_item_ids=["P04", "P05", "P23"])) == {"P04", "P05"}
    assert ids(include_item_ids=[]) == []
    assert {int(item_id[1:]) % 4 for item_id in ids(categories=["home > mug"])} == {0}
    assert {int(item_id[1:]) % 4 for item_id in ids(categories=["home > mug", "home > clock", "?"])} == {0, 3}
    assert len(ids(categories=["home"])) == 23
    assert ids(categories=["hom"]) == []
    assert set(ids(price_min=3, price_max=5)) == {"P02", "P03", "P04"}  # price = 1 + number
    assert "P21" not in ids(price_min=0)  # its price isn't known
    assert {int(item_id[1:]) % 3 for item_id in ids(brands=["Acme"])} == {1}
    assert {int(item_id[1:]) % 2 for item_id in ids(store_ids=["S0"])} == {0}
    assert "P20" not in ids(store_ids=["S0", "S1"])  # it has no store


def test_blocked_items_are_never_shown(make_asking: Callable[[Settings], Asking], tmp_path) -> None:
    settings = load_settings(home=tmp_path / "v", serving={"rules": {"blocked_item_ids": ["P04", "unheard of"]}})
    ask = make_asking(settings)
    answer = ask(RecommendRequest(user_id=USER, k=23, explain=True))
    assert "P04" not in _ids(answer)
    notes = {note["rule"]: note["item_ids"] for note in answer["explanation"]["rules"]}
    assert notes == {"blocked": ["P04"], "withdrawn": ["P23"]}
    assert answer["explanation"]["candidates"] == 22
    assert "P04" not in _ids(ask(RecommendRequest(k=24)))
    assert "P04" not in _ids(ask(RerankRequest(item_ids=["P04", "P05"])))


def test_what_was_shown_often_goes_last_until_it_interests(make_asking: Callable[[Settings], Asking], tmp_path) -> None:
    ask = make_asking(load_settings(home=tmp_path / "v", serving={"rules": {"max_shown": 2}}))
    first = _ids(ask(RecommendRequest(user_id=USER, k=24)))
    now = datetime.now(UTC).isoformat()
    shown = {"event_type": "impression", "user_id": USER, "item_id": first[0], "event_timestamp": now}
    rows, _ = judge_events([shown, shown], now=datetime.now(UTC), max_future_seconds=60)
    ask.recommender.event_log.append(rows)
    assert _ids(ask(RecommendRequest(user_id=USER, k=24))) == [*first[1:], first[0]]
    rows, _ = judge_events([shown | {"event_type": "click"}], now=datetime.now(UTC), max_future_seconds=60)
    ask.recommender.event_log.append(rows)
    assert _ids(ask(RecommendRequest(user_id=USER, k=24)))[-1] != first[0]


ITEM_IDS = st.sampled_from([f"P{item:02}" for item in range(24)] + ["unknown"])


@hypothesis_settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    user_id=st.sampled_from([None, USER, "13007.0", "nobody"]),
    session=st.lists(st.fixed_dictionaries({"item_id": ITEM_IDS}), max_size=5),
    excluded=st.lists(ITEM_IDS, max_size=24),
    included=st.none() | st.lists(ITEM_IDS, max_size=24),
    k=st.integers(1, 30),
    explain=st.booleans(),
)
def test_never_an_excluded_item_never_one_twice_and_as_many_as_there_are(
    ask: Asking, user_id, session, excluded, included, k, explain
) -> None:
    answer = ask(
        RecommendRequest(
            user_id=user_id,
            session=session,
            k=k,
            explain=explain,
            filters={"exclude_item_ids": excluded, "include_item_ids": included},
        )
    )
    available = {f"P{item:02}" for item in range(23)} - set(excluded)
    available &= available if included is None else set(included)
    assert len(_ids(answer)) == len(set(_ids(answer))) == min(k, len(available))
    assert set(_ids(answer)) <= available
    assert all(item["reason"]["text"] for item in answer["items"])
    assert ("explanation" in answer) == explain
    assert _scores(answer) == sorted(_scores(answer), reverse=True)


REQUESTS = st.one_of(
    st.builds(RecommendRequest, user_id=st.sampled_from([None, USER, "13007.0", "nobody"]), k=st.integers(1, 30)),
    st.builds(RerankRequest, user_id=st.sampled_from([USER, "nobody"]), item_ids=st.lists(ITEM_IDS, min_size=1)),
    st.builds(CrossCategoryRequest, session=st.lists(st.builds(dict, item_id=ITEM_IDS), max_size=3)),
)


@hypothesis_settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(requests=st.lists(REQUESTS, min_size=2, max_size=6))
def test_what_comes_together_is_answered_as_if_it_came_alone(ask: Asking, requests) -> None:
    for request, answer in zip(requests, ask(*requests), strict=True):
        alone = ask(request)
        assert _ids(answer) == _ids(alone)
        assert _scores(answer) == pytest.approx(_scores(alone), abs=1e-5)
        assert [item["reason"] for item in answer["items"]] == [item["reason"] for item in alone["items"]]
        assert answer["fallback"] == alone["fallback"]


def test_one_request_that_fails_leaves_the_others_their_answers(ask: Asking, monkeypatch: pytest.MonkeyPatch) -> None:
    allowed = ask.recommender.allowed

    def fail_for_three(filters, shopper=None):
        if filters.price_max == 3:
            raise RuntimeError("broken")
        return allowed(filters, shopper)

    monkeypatch.setattr(ask.recommender, "allowed", fail_for_three)
    requests = [RecommendRequest(user_id=USER, filters={"price_max": price}) for price in (5, 3, 7)]
    answers = asyncio.run(ask.answerer.answer(requests, ask.recommender))
    assert isinstance(answers[1], RuntimeError)
    assert [len(answers[place]["items"]) for place in (0, 2)] == [5, 7]


def test_rerank_gives_the_shops_own_list_in_the_shoppers_order(ask: Asking) -> None:
    everything = _ids(ask(RecommendRequest(user_id=USER, k=24)))
    wanted = ["P05", "p04", "brand new", "P00", "P23", "P04"]
    answer = ask(RerankRequest(user_id=USER, item_ids=wanted))
    assert _ids(answer)[:3] == [item_id for item_id in everything if item_id in ("P05", "P04", "P00")]
    assert _ids(answer)[3:] == ["brand new"]  # P23 is offered no more
    assert answer["items"][3]["score"] is None
    assert len(ask(RerankRequest(user_id=USER, item_ids=wanted, k=2))["items"]) == 2


def test_the_carts_lines_come_by_likelihood_and_nothing_else(ask: Asking) -> None:
    cart = ["P05", "P04", "P00"]
    scores = {item["item_id"]: item["score"] for item in ask(RecommendRequest(user_id=USER, k=24))["items"]}
    answer = ask(CartOrderRequest(user_id=USER, item_ids=cart))
    assert _ids(answer) == sorted(cart, key=lambda item_id: -scores[item_id])


def test_cross_category_shows_only_categories_that_the_shopper_has_not_tried(ask: Asking) -> None:
    # All of the shop's categories lie below "home": who tried one item tried it.
    assert _ids(ask(CrossCategoryRequest(user_id=USER, k=24))) == []
    assert len(_ids(ask(CrossCategoryRequest(user_id="nobody", k=24)))) == 23


def test_unknown_items_of_a_session_change_nothing(ask: Asking) -> None:
    known = ask(RecommendRequest(session=[{"item_id": "P05"}]))
    with_unknown = ask(RecommendRequest(session=[{"item_id": "who"}, {"item_id": "P05"}, {"item_id": "knows"}]))
    assert _ids(with_unknown) == _ids(known)
