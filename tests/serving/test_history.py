"""One history out of three sources, and the moment that an answer is for."""

from datetime import UTC, datetime, timedelta

from recflow.serving.feedback import RecentEvent, to_us
from recflow.serving.history import merge_history
from recflow.serving.types import SessionEvent
from tests.serving.conftest import Row

END = datetime(2011, 4, 1, tzinfo=UTC)


def _us(hours: float) -> int:
    return to_us(END + timedelta(hours=hours))


def _stored(*hours: float) -> Row:
    return Row(
        {}, [f"S{hour}" for hour in hours], ["purchase"] * len(hours), [_us(h) for h in hours], [1.0] * len(hours)
    )


def _merge(stored: Row | None = None, recent=(), session=(), *, length: int = 100):
    return merge_history(stored, list(recent), list(session), snapshot_end=END, history_length=length)


def test_nothing_known_is_an_answer_for_the_end_of_the_snapshot() -> None:
    found = _merge()
    assert (len(found), found.as_of_us, found.is_cut) == (0, to_us(END), False)


def test_events_stand_in_the_order_of_time_whatever_their_source() -> None:
    recent = [RecentEvent("a", _us(-1.5), "R", "view", 1.0)]
    session = [SessionEvent(item_id="B", event_timestamp=END + timedelta(hours=2)), SessionEvent(item_id="N")]
    found = _merge(_stored(-2, -1), recent, session)
    assert found.item_ids == ["S-2", "R", "S-1", "B", "N"]
    assert found.event_types == ["purchase", "view", "purchase", "view", "view"]
    # The newest thing known is B; what has no time of its own happens at that moment.
    assert found.as_of_us == found.timestamps_us[-1] == found.timestamps_us[-2] == _us(2)


def test_an_event_that_was_stored_meanwhile_counts_once_but_two_equal_lines_of_an_order_stay_two() -> None:
    twice = Row({}, ["A", "A"], ["purchase"] * 2, [_us(-1)] * 2, [1.0, 1.0])
    found = _merge(twice, [RecentEvent("a", _us(-1), "A", "purchase", 1.0)])
    assert found.item_ids == ["A", "A"]
    assert _merge(twice, [RecentEvent("a", _us(-1), "A", "view", 1.0)]).item_ids == ["A", "A", "A"]


def test_the_newest_are_kept_and_it_is_said_that_older_ones_are_not() -> None:
    found = _merge(_stored(-3, -2), [RecentEvent("a", _us(-1), "R", "view", 1.0)], length=2)
    assert (found.item_ids, found.is_cut) == (["S-2", "R"], True)
    assert _merge(_stored(-3, -2), length=2).is_cut  # the store keeps no more than that
    assert not _merge(_stored(-3, -2), length=3).is_cut
