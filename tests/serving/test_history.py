"""One history out of three sources, and the moment that an answer is for."""

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from recflow.serving.feedback import RecentEvent, to_us
from recflow.serving.history import merge_history
from recflow.serving.requests import SessionEvent
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


_EVENT = st.tuples(st.integers(-5, 5), st.sampled_from("AB"), st.sampled_from(["purchase", "view"]))
_TIMED = st.tuples(
    st.one_of(st.none(), st.integers(-5, 5)), st.sampled_from("AB"), st.sampled_from(["purchase", "view"])
)


@given(st.lists(_EVENT, max_size=8), st.lists(_EVENT, max_size=6), st.lists(_TIMED, max_size=4), st.integers(1, 12))
def test_any_three_sources_come_to_one_sorted_history_in_which_known_events_count_once(
    stored: list[tuple], recent: list[tuple], session: list[tuple], length: int
) -> None:
    row = Row(
        {}, [event[1] for event in stored], [event[2] for event in stored], [_us(event[0]) for event in stored],
        [float(place) for place in range(len(stored))],
    )  # fmt: skip
    before = [list(column) for column in row.__dict__.values() if isinstance(column, list)]
    found = _merge(
        row,
        [
            RecentEvent(str(place), _us(event[0]), event[1], event[2], 20.0 + place)
            for place, event in enumerate(recent)
        ],
        [
            SessionEvent(
                item_id=item_id,
                event_type=event_type,
                quantity=40 + place,
                event_timestamp=None if hours is None else END + timedelta(hours=hours),
            )
            for place, (hours, item_id, event_type) in enumerate(session)
        ],
        length=length,
    )
    # Said again, plainly: stored ones all, others unless something equal came before, those without a time last.
    events = [(*event, float(place)) for place, event in enumerate(stored)]
    others = [(*event, 20.0 + place) for place, event in enumerate(recent)]
    others += [(*event, 40.0 + place) for place, event in enumerate(session) if event[0] is not None]
    for event in others:
        if event[:3] not in [each[:3] for each in events]:
            events.append(event)
    as_of = max([0, *(event[0] for event in events)])
    events += [(as_of, *event[1:], 40.0 + place) for place, event in enumerate(session) if event[0] is None]
    events = sorted(events, key=lambda event: event[0])
    assert found.as_of_us == _us(as_of)
    assert list(zip(found.timestamps_us, found.item_ids, found.event_types, found.quantities, strict=True)) == [
        (_us(event[0]), *event[1:]) for event in events[-length:]
    ]
    assert found.is_cut == (max(len(stored), len(recent)) >= length or len(events) > length)
    assert [list(column) for column in row.__dict__.values() if isinstance(column, list)] == before
    found.item_ids.append("X")
    assert len(row.item_ids) == len(stored)  # the reader may keep its row
