"""The real Online Retail days against a count by the csv module alone."""

import csv
from collections import Counter
from datetime import date
from pathlib import Path

import pytest

from recflow.events.ingest import ingest, summarize
from recflow.schema import Days
from recflow.settings import Settings, load_settings
from recflow.storage import Storage

YEAR = Days(date(2010, 12, 1), date(2011, 11, 30))


@pytest.mark.real_days
def test_totals_of_all_days_equal_an_independent_count(tmp_path: Path, real_days: Path, staged_year: Settings) -> None:
    expected: Counter[str] = Counter()
    items = set()
    for path in real_days.glob("*.csv"):
        seen: Counter[tuple[str, ...]] = Counter()
        with path.open(encoding="utf-8", newline="") as stream:
            for row in list(csv.reader(stream))[1:]:
                invoice, code, title, pieces, _, price, customer, country = row
                seen[tuple(row)] += 1
                items.add((path.stem, code.strip().upper()))
                expected["adjustments"] += invoice.startswith("A")
                expected["anonymous_lines"] += customer == ""
                expected["blank_descriptions"] += title.strip() == ""
                expected["cancellations"] += invoice.startswith("C")
                expected["code_variants"] += code != code.strip().upper()
                expected["negative_pieces"] += int(pieces) < 0 and not invoice.startswith("C")
                expected["negative_prices"] += float(price) < 0
                expected["unspecified_countries"] += country == "Unspecified"
                expected["zero_prices"] += float(price) == 0
        expected["duplicate_lines"] += sum(seen.values()) - len(seen)
        expected["lines"] += sum(seen.values())
        expected["days"] += 1
    assert (expected["days"], expected["lines"]) == (297, 516_384)
    settings = staged_year
    summary = summarize(YEAR, settings)
    assert (summary["days"], summary["closed_days"]) == (365, 365 - 297)
    assert summary["lines"] == expected["lines"]
    assert summary["item_days"] == len(items)
    quirks = summary["quirks"]
    assert quirks.pop("parse_errors") == 0
    assert (
        600 < quirks.pop("stock_notes") < 700
    )  # "damaged", "?", "check": about that many; no second rule to compare with
    assert quirks == {name: expected[name] for name in quirks}
    single = load_settings(home=tmp_path / "single", feed={"path": real_days})
    for day in (YEAR.start, date(2011, 8, 12), YEAR.end):
        ingest(Days.one(day), single)
        for noun in ("staged_events", "staged_items"):
            assert Storage(single).read_partition(noun, day).equals(Storage(settings).read_partition(noun, day))
    titles = Storage(settings).read_partition("staged_items", YEAR.start).to_pylist()
    assert {item["item_id"]: item["title"] for item in titles}["85123A"] == "WHITE HANGING HEART T-LIGHT HOLDER"
