"""What is out of stock is kept, and whoever is told, all know."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from recflow.errors import RecflowError
from recflow.serving import stock as module
from recflow.serving.stock import Stock, TooManyOutOfStock
from recflow.settings import Settings, load_settings

_CALLS = st.lists(st.dictionaries(st.sampled_from(["a", "b", "c", "d"]), st.booleans(), min_size=1), max_size=6)


@given(calls=_CALLS)
@examples(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_last_word_on_an_item_counts_in_every_process_and_after_a_restart(
    calls: list[dict[str, bool]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    settings = load_settings(home=tmp_path_factory.mktemp("stock"))
    writer, reader = Stock(settings), Stock(settings)
    last: dict[str, bool] = {}
    for call in calls:
        last |= call
        expected = {item_id for item_id, is_in in last.items() if not is_in}
        assert writer.put(call) == len(expected)
        assert writer.out() == reader.out() == Stock(settings).out() == expected


def test_without_news_it_is_the_same_object(settings: Settings) -> None:
    stock = Stock(settings)
    assert stock.out() is stock.out()
    stock.put({"a": False})
    out = stock.out()
    stock.put({"a": False, "b": True})
    assert stock.out() is out


def test_an_item_said_before_the_catalogue_had_it_is_found_by_its_own_spelling_later(settings: Settings) -> None:
    stock = Stock(settings)
    stock.put({"p05": False})
    assert stock.put({"P05": True}, resolve=str.upper) == 0
    assert stock.out() == frozenset()


def test_more_than_may_be_are_refused_and_nothing_is_taken(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_OUT_OF_STOCK", 2)
    stock = Stock(settings)
    stock.put({"a": False, "b": False})
    with pytest.raises(TooManyOutOfStock, match=r"At most 2 .* it would be 3"):
        stock.put({"c": False})
    assert stock.out() == {"a", "b"}
    assert stock.put({"a": True, "c": False}) == 2


def test_a_file_that_is_no_stock_is_named(settings: Settings) -> None:
    file = Path(settings.home) / "stock.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text('{"a": 1}')
    with pytest.raises(RecflowError, match=r"stock\.json: expected stock"):
        Stock(settings).out()
