from datetime import date, timedelta

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recflow.monitoring.samples import Sampler, choose_windows
from recflow.schema import Days
from recflow.settings import DriftSettings, Settings
from tests.monitoring.lakes import EVENTS_FROM, UNTIL, Shop

pytestmark = pytest.mark.filterwarnings("ignore:fetch_arrow_table.. is deprecated:DeprecationWarning")

DAYS = st.dates(date(2011, 1, 1), date(2012, 12, 31))


def test_the_reference_ends_where_the_champions_data_end() -> None:
    drift = DriftSettings(current_days=14, reference_days=21)
    until = date(2011, 6, 30)  # a Thursday; the last 14 days are 17 to 30 June
    first = date(2011, 1, 1)
    current = Days(date(2011, 6, 17), until)
    none = choose_windows(until, None, first, drift)
    assert (none.reference, none.current) == (Days(date(2011, 5, 27), date(2011, 6, 16)), current)
    # Learned through the newest day: what is now can't be its own reference.
    assert choose_windows(until, until, first, drift) == none
    # Learned through Wednesday 1 June: the Thursday before.
    old = choose_windows(until, date(2011, 6, 1), first, drift)
    assert old.reference == Days(date(2011, 5, 6), date(2011, 5, 26))


@given(DAYS, st.none() | DAYS, DAYS, st.integers(1, 8), st.integers(1, 20))
def test_windows_never_overlap_and_hold_what_was_learned_only(
    until: date, learned: date | None, first: date, current_weeks: int, reference_weeks: int
) -> None:
    drift = DriftSettings(current_days=7 * current_weeks, reference_days=7 * reference_weeks)
    windows = choose_windows(until, learned, first, drift)
    assert len(windows.current) == 7 * current_weeks
    assert windows.current.end == until
    if windows.reference is None:
        return
    assert windows.reference.end < windows.current.start
    assert windows.reference.start >= first
    assert windows.reference.end.weekday() == until.weekday()
    if learned is not None:
        assert windows.reference.end <= learned
        assert min(learned, windows.current.start) - windows.reference.end <= timedelta(days=7)


def test_a_sample_is_drawn_evenly_and_the_same_on_every_run(shop: Shop, settings: Settings) -> None:
    shop.write(settings)
    windows = choose_windows(UNTIL, None, EVENTS_FROM, settings.drift)

    def prices() -> np.ndarray:
        columns = {column.name: column for column in Sampler(windows, settings).event_columns()}
        return columns["unit_price"].current.to_numpy()

    first = prices()
    np.testing.assert_array_equal(first, prices())
    now = shop.events[shop.events["event_date"].dt.date >= windows.current.start]
    bought = now.loc[now["event_type"] == "purchase", "unit_price"]
    assert len(first) == min(len(bought), settings.drift.sample_rows)
    assert first.mean() == pytest.approx(bought.mean(), rel=0.05)


def test_tallies_are_exact(shop: Shop, settings: Settings) -> None:
    shop.events.loc[shop.events.index % 7 == 0, "country"] = None
    shop.write(settings)
    windows = choose_windows(UNTIL, None, EVENTS_FROM, settings.drift)
    reference, current = Sampler(windows, settings).tallies("events")
    expected = shop.events.groupby(shop.events["event_date"].dt.date)
    both = [*reference["event_date"], *current["event_date"]]
    assert both == list(expected.groups)
    assert [*reference["rows"], *current["rows"]] == expected.size().tolist()
    assert [*reference["country"], *current["country"]] == expected["country"].apply(lambda c: c.isna().sum()).tolist()
    purchases = expected["event_type"].apply(lambda kind: (kind == "purchase").sum()).tolist()
    assert [*reference["kind_purchase"], *current["kind_purchase"]] == purchases
