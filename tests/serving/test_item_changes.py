"""What is said of items is kept, adds up line by line, and whoever is told, all know."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from recflow.errors import RecflowError
from recflow.serving.search.changes import ItemChanges, TooManyChanges
from recflow.settings import Settings, load_settings

_LINES = st.lists(
    st.fixed_dictionaries(
        {"item_id": st.sampled_from("abc")},
        optional={"title": st.none() | st.text(max_size=5), "price": st.floats(0, 9), "active": st.booleans()},
    ),
    min_size=1,
    max_size=4,
)


def said(changes: ItemChanges) -> dict[str, Any]:
    return {item_id: dict(change.fields) for item_id, change in changes.all().items()}


@given(calls=st.lists(st.tuples(_LINES, st.booleans()), max_size=5))
@examples(max_examples=25, deadline=None)
def test_lines_add_up_in_every_process_and_after_a_restart(
    calls: list[tuple[list[dict[str, Any]], bool]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    settings = load_settings(home=tmp_path_factory.mktemp("items"))
    one, other = ItemChanges(settings), ItemChanges(settings)
    expected: dict[str, dict[str, Any]] = {}
    for lines, by_other in calls:
        (other if by_other else one).put(lines)
        for line in lines:
            fields = {name: value for name, value in line.items() if name != "item_id"}
            expected[line["item_id"]] = expected.get(line["item_id"], {}) | fields
        assert said(one) == said(other) == said(ItemChanges(settings)) == expected


def test_without_news_it_is_the_same_object(settings: Settings) -> None:
    changes = ItemChanges(settings)
    assert changes.all() is changes.all()
    changes.put([{"item_id": "a", "price": 1.0}])
    assert changes.all() is changes.all()


def test_room_is_made_of_what_means_nothing_any_more_and_all_hear_of_it(settings: Settings) -> None:
    small = load_settings(home=settings.home, search={"max_changed_items": 2})
    told, other = ItemChanges(small), ItemChanges(small)
    told.put([{"item_id": "a", "price": 1.0}, {"item_id": "b", "price": 2.0}])
    assert said(other).keys() == {"a", "b"}
    with pytest.raises(TooManyChanges, match=r"At most 2 .* it would be 3"):
        told.put([{"item_id": "c", "price": 3.0}])
    assert said(other).keys() == {"a", "b"}
    told.put(
        [{"item_id": "c", "price": 3.0}],
        held=lambda changes: [each.item_id for each in changes if each.fields["price"] < 2],
    )
    assert said(told).keys() == said(other).keys() == {"b", "c"}


def test_a_file_that_is_none_is_named(settings: Settings) -> None:
    settings.home.mkdir(parents=True, exist_ok=True)
    (settings.home / "items.db").write_bytes(b"no database" * 100)
    for ask in (ItemChanges(settings).all, lambda: ItemChanges(settings).put([{"item_id": "a"}])):
        with pytest.raises(RecflowError, match=r"items\.db: expected what was said of items"):
            ask()
