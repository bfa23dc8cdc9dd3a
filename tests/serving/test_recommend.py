"""What is answered: always something, within the filters, equal for equal knowledge, marked where it is less."""

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
from recflow.serving.recommend import Recommender, UnknownItem
from recflow.serving.types import RecommendRequest, SimilarRequest
from recflow.settings import Settings, load_settings
from tests.serving.conftest import Built, FakeReader

USER = "13000.0"


def _ids(answer: object) -> list[str]:
    return [item.item_id for item in answer.items]


def _post(recommender: Recommender, **event: object) -> None:
    rows, rejected = judge_events([event], now=datetime(2026, 1, 1, tzinfo=UTC), max_future_seconds=0)
    assert not rejected
    recommender.event_log.append(rows)


def test_a_known_users_list_is_the_models(recommender: Recommender, built: Built, reader: FakeReader) -> None:
    row, bundle = reader.users([USER])[0], built.bundle
    context = context_of(
        [row], [row.features], as_of_us=to_us(datetime(2011, 4, 1, tzinfo=UTC)), item_index=bundle.item_index,
        user_encoder=bundle.encoders.user, item_features=bundle.item_features, history_length=100,
    )  # fmt: skip
    scores = bundle.ranker.score(context)[0]
    scores[bundle.item_index["P23"]] = -np.inf  # offered no more
    expected = [bundle.item_ids[item] for item in np.argsort(-scores, kind="stable")[:6]]
    answer = recommender.recommend(RecommendRequest(user_id=USER, k=6))
    assert _ids(answer) == expected
    assert answer.fallback is None
    assert [item.rank for item in answer.items] == [1, 2, 3, 4, 5, 6]
    assert [item.score for item in answer.items] == sorted((item.score for item in answer.items), reverse=True)
    assert answer.model_version == "7"
    assert answer.as_of == datetime(2011, 4, 1, tzinfo=UTC)


def test_equal_knowledge_gives_equal_answers(recommender: Recommender) -> None:
    one, other = (recommender.recommend(RecommendRequest(user_id=USER)) for _ in range(2))
    assert one.model_dump(exclude={"request_id"}) == other.model_dump(exclude={"request_id"})
    assert one.request_id != other.request_id


def test_a_purchase_posted_changes_the_next_answer_and_its_moment(recommender: Recommender) -> None:
    before = recommender.recommend(RecommendRequest(user_id=USER, k=24))
    _post(recommender, event_type="purchase", user_id=USER, item_id="P05", event_timestamp="2011-04-02T08:00:00Z")
    after = recommender.recommend(RecommendRequest(user_id=USER, k=24))
    assert _ids(after) != _ids(before)
    assert after.as_of == datetime(2011, 4, 2, 8, tzinfo=UTC)
    bought = next(item for item in after.items if item.item_id == "P05")
    assert bought.reason.text == "You bought this once, last on 2011-04-02."


def test_an_event_that_the_snapshot_has_by_now_counts_once(recommender: Recommender, reader: FakeReader) -> None:
    row = reader.users([USER])[0]
    moment = datetime.fromtimestamp(row.timestamps_us[-1] / 1e6, UTC).isoformat()
    before = recommender.recommend(RecommendRequest(user_id=USER, k=24))
    _post(recommender, event_type="purchase", user_id=USER, item_id=row.item_ids[-1], event_timestamp=moment)
    after = recommender.recommend(RecommendRequest(user_id=USER, k=24))
    assert after.model_dump(exclude={"request_id"}) == before.model_dump(exclude={"request_id"})


def test_a_later_snapshot_moves_the_moment(recommender: Recommender) -> None:
    recommender.store.day = datetime(2011, 4, 5).date()
    assert recommender.recommend(RecommendRequest(user_id=USER)).as_of == datetime(2011, 4, 6, tzinfo=UTC)


def test_a_stranger_gets_what_the_country_buys(recommender: Recommender, built: Built) -> None:
    recent = built.events[built.events["event_timestamp"] >= "2011-03-02"]
    german = recent[recent["country"] == "Germany"].groupby("item_id")["user_id"].nunique()
    answer = recommender.recommend(RecommendRequest(user_id="nobody", k=5, context={"country": "Germany"}))
    assert (answer.fallback.kind, answer.fallback.why) == ("popularity", "an unknown shopper")
    counts = [int(german.get(item_id, 0)) for item_id in _ids(answer)]
    assert counts == sorted(german, reverse=True)[:5]
    assert _ids(recommender.recommend(RecommendRequest(k=5))) != _ids(answer)


def test_a_session_alone_is_enough_for_the_model(recommender: Recommender) -> None:
    answer = recommender.recommend(RecommendRequest(session=[{"item_id": "p05"}], k=3))  # as a shop's page may write it
    assert answer.fallback.kind == "session_only"
    assert all(int(item_id[1:]) % 4 == 1 for item_id in _ids(answer))  # of the same kind
    assert answer.items[0].reason.item_id == "P05"
    _post(recommender, event_type="view", session_id="visit", item_id="P05", event_timestamp="2011-03-31T08:00:00Z")
    assert _ids(recommender.recommend(RecommendRequest(session_id="visit", k=3))) == _ids(answer)


def test_items_nobody_knows_leave_a_stranger_a_stranger(recommender: Recommender) -> None:
    answer = recommender.recommend(RecommendRequest(session=[{"item_id": "who knows"}]))
    assert answer.fallback.kind == "popularity"


def test_without_the_online_store_the_session_answers_and_the_store_is_left_alone(
    recommender: Recommender, reader: FakeReader
) -> None:
    reader.broken = OSError("gone")
    answer = recommender.recommend(RecommendRequest(user_id=USER, session=[{"item_id": "P05"}]))
    assert (answer.fallback.kind, answer.fallback.why) == ("session_only", "the online store is away")
    assert recommender.recommend(RecommendRequest(user_id=USER)).fallback.kind == "popularity"
    assert reader.reads == 1
    reader.broken = None
    recommender.store._closed_until = 0.0  # the pause is over
    assert recommender.recommend(RecommendRequest(user_id=USER)).fallback is None


def test_stored_features_of_another_model_are_left_out(recommender: Recommender, reader: FakeReader) -> None:
    row = reader.users([USER])[0]
    stored = SimpleNamespace(**{**vars(row), "features": {"another": 1}})
    reader.users = lambda user_ids: [stored]
    answer = recommender.recommend(RecommendRequest(user_id=USER))
    assert answer.fallback.why == "the stored features aren't those of the model"
    assert len(answer.items) == 20


@pytest.mark.parametrize("failure", ["raises", "nan"])
def test_a_model_that_fails_leaves_the_tables_to_answer(
    recommender: Recommender, monkeypatch: pytest.MonkeyPatch, failure: str
) -> None:
    def score(context: object) -> np.ndarray:
        if failure == "raises":
            raise RuntimeError("broken")
        return np.full((1, 24), np.nan, np.float32)

    monkeypatch.setattr(recommender.bundle.ranker, "score", score)
    answer = recommender.recommend(RecommendRequest(session=[{"item_id": "P05"}], k=3))
    assert (answer.fallback.kind, answer.fallback.why) == ("tables", "the model failed")
    assert all(int(item_id[1:]) % 4 == 1 for item_id in _ids(answer))


def test_filters_hold(recommender: Recommender, built: Built) -> None:
    def ask(**filters: object) -> list[str]:
        return _ids(recommender.recommend(RecommendRequest(user_id=USER, k=24, filters=filters)))

    bought = set(built.events[built.events["user_id"] == USER]["item_id"])
    assert len(ask()) == 23  # all but P23, which is offered no more
    assert set(ask()) & bought == bought
    assert set(ask(new_only=True)) & bought == set()
    assert len(ask(new_only=True)) == 23 - len(bought)
    assert "P04" not in ask(exclude_item_ids=["p04", "unheard of"])
    assert set(ask(include_item_ids=["P04", "P05", "P23"])) == {"P04", "P05"}
    assert ask(include_item_ids=[]) == []
    assert {int(item_id[1:]) % 4 for item_id in ask(category="home > mug")} == {0}
    assert len(ask(category="home")) == 23
    assert ask(category="hom") == []
    assert set(ask(price_min=3, price_max=5)) == {"P02", "P03", "P04"}  # price = 1 + number
    assert "P21" not in ask(price_min=0)  # its price isn't known


def test_blocked_items_are_never_shown(make_recommender: Callable[[Settings], Recommender], tmp_path) -> None:
    settings = load_settings(home=tmp_path / "v", serving={"blocked_item_ids": ["P04", "unheard of"]})
    recommender = make_recommender(settings)
    assert "P04" not in _ids(recommender.recommend(RecommendRequest(user_id=USER, k=24)))
    assert "P04" not in _ids(recommender.recommend(RecommendRequest(k=24)))
    assert "P04" not in _ids(recommender.similar(SimilarRequest(item_id="P00", k=24)))


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
    recommender: Recommender, user_id, session, excluded, included, k, explain
) -> None:
    answer = recommender.recommend(
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
    assert all((item.reason is not None) == explain for item in answer.items)
    assert [item.score for item in answer.items] == sorted((item.score for item in answer.items), reverse=True)


def test_similar_items_are_of_the_same_kind_and_never_the_item_itself(recommender: Recommender) -> None:
    answer = recommender.similar(SimilarRequest(item_id="p05", k=4))
    assert answer.item_id == "P05"
    assert all(int(item_id[1:]) % 4 == 1 for item_id in _ids(answer))
    everything = _ids(recommender.similar(SimilarRequest(item_id="P05", k=200)))
    assert sorted(everything) == sorted({f"P{item:02}" for item in range(23)} - {"P05"})


def test_similar_scores_are_cosine_plus_customers_in_common(recommender: Recommender, built: Built) -> None:
    answer = recommender.similar(SimilarRequest(item_id="P05", k=23))
    buyers = built.events.groupby("item_id")["user_id"].agg(set)
    vectors, index = built.bundle.vectors, built.bundle.item_index
    for item in answer.items:
        both = len(buyers["P05"] & buyers.get(item.item_id, set()))
        together = both / np.sqrt(len(buyers["P05"]) * len(buyers[item.item_id])) if both >= 2 else 0.0
        cosine = float(vectors[index["P05"]] @ vectors[index[item.item_id]])
        assert item.score == pytest.approx(cosine + together, abs=1e-5)


def test_an_item_without_title_has_neighbours_by_its_buyers(recommender: Recommender) -> None:
    answer = recommender.similar(SimilarRequest(item_id="P22", k=2))
    assert answer.fallback is None
    assert all(item.reason.kind == "bought_together" for item in answer.items)


def test_an_unknown_item_has_no_similar_ones(recommender: Recommender) -> None:
    with pytest.raises(UnknownItem):
        recommender.similar(SimilarRequest(item_id="unheard of"))


def test_the_model_says_what_it_is(recommender: Recommender) -> None:
    said = recommender.describe()
    assert (said.model_version, said.model_class, said.until, said.n_items) == ("7", "EASE", "2011-03-31", 24)
