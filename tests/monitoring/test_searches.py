"""The report on searches: shares worked out by hand, and no query that few people typed."""

import json
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import save_file

from recflow.models.text import title_vectors
from recflow.monitoring.searches import report_searches
from recflow.schema import EVENTS, ITEMS
from recflow.serving.search.part import SearchPart
from recflow.settings import Settings, load_settings
from recflow.storage import Storage

DAY = date(2024, 3, 4)
TITLES = ("red mug", "blue mug", "sofa cushion", "tall candle")


def search(number: int, query: str, who: str, *, minute: int = 0, click: int | None = None) -> list[dict[str, Any]]:
    """Return a search, of somebody who is signed in unless the name starts with ?, and its click by position."""
    moment = datetime(2024, 3, 4, 9, tzinfo=UTC) + timedelta(minutes=minute)
    own: dict[str, Any] = {"request_id": f"r{number}", "session_id": f"visit of {who}", "source": "test"}
    if not who.startswith("?"):
        own["user_id"] = who
    rows = [{"event_id": f"{number}s", "event_type": "search", "event_timestamp": moment, "query": query, **own}]
    if click:
        clicked = {"event_type": "click", "event_timestamp": moment, "item_id": "i0", "position": click}
        rows.append({"event_id": f"{number}c", **clicked, **own})
    return rows


@pytest.fixture
def shop(settings: Settings) -> Settings:
    rows = []
    for n in range(3):  # three people replace a word that the shop doesn't know
        rows += search(n, "Beaker", f"u{n}")
        rows += search(10 + n, "red mug", f"u{n}", minute=2, click=n + 1)
    rows += search(20, "red mug", "u9")
    rows += [row for n in range(4) for row in search(30 + n, "jane doe, 5 elm st", "u9", minute=20 * (n + 1))]
    rows += [row for n in range(4) for row in search(40 + n, "jane's <b>", f"?{n}")]  # perhaps one person
    rows += [row for n in range(4) for row in search(50 + n, "tall candle", f"?{n}", minute=30)]
    table = pa.Table.from_pylist(rows, schema=EVENTS)
    Storage(settings).write_partition("events", DAY, table, {})
    return load_settings(home=settings.home, search={"min_query_shoppers": 3, "language": "en"})


def test_shares_are_those_of_the_log(shop: Settings, tmp_path: Path) -> None:
    found = report_searches(DAY, None, tmp_path, shop)
    expected = {
        "searches": 19,
        "without_result": None,
        "relaxed": None,
        "without_click": round(16 / 19, 4),
        "reformulated": round(3 / 19, 4),  # not u9's, too late or the same again; nor others', half an hour later
        "mean_click_position": 2.0,
    }
    assert found == expected | {"sentence": "19 searches: 84.2% without a click, 15.8% soon replaced by another."}
    written = json.loads((tmp_path / "searches.json").read_text())
    assert written["days"] == [{"day": "2024-03-04", **expected}]
    assert [(row["query"], row["shoppers"], row["instead"]) for row in written["failing"]] == [("beaker", 3, "red mug")]


def test_a_query_that_one_person_may_have_typed_alone_stands_nowhere(shop: Settings, tmp_path: Path) -> None:
    report_searches(DAY, champion(tmp_path), tmp_path, shop)
    for file in ("searches.json", "searches.html"):
        assert "jane" not in (tmp_path / file).read_text()
    assert "data:image/png;base64" in (tmp_path / "searches.html").read_text()


def test_the_champion_says_what_finds_nothing(shop: Settings, tmp_path: Path) -> None:
    found = report_searches(DAY, champion(tmp_path), tmp_path, shop)
    assert found["without_result"] is not None
    assert "that the champion finds nothing for" in found["sentence"]
    failing = {row["query"]: row for row in json.loads((tmp_path / "searches.json").read_text())["failing"]}
    # Words of the catalogue tell nobody: they count by visits.
    assert (failing["tall candle"]["shoppers"], failing["tall candle"]["without_result"]) == (4, 0)


def test_what_shoppers_type_is_no_markup(shop: Settings, tmp_path: Path) -> None:
    rows = [row for n in range(3) for row in search(n, "<script>alert(1)</script>", f"u{n}")]
    Storage(shop).write_partition("events", DAY, pa.Table.from_pylist(rows, schema=EVENTS), {})
    report_searches(DAY, None, tmp_path, shop)
    page = (tmp_path / "searches.html").read_text()
    assert "&lt;script&gt;alert" in page
    assert "<script>" not in page


def test_without_searches_there_is_a_sentence_and_no_file(settings: Settings, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    assert list(report_searches(DAY, None, out, settings)) == ["sentence"]
    assert not list(out.iterdir())


def champion(folder: Path) -> Any:
    """Write as much of a bundle as searching needs."""
    bundle = folder / "bundle"
    (bundle / "search").mkdir(parents=True)
    items = pa.Table.from_pylist([{"item_id": f"i{n}", "title": title} for n, title in enumerate(TITLES)], schema=ITEMS)
    vectors = title_vectors(list(TITLES))
    zeros = vectors[:, 0] * 0
    part = SearchPart.build(
        items, vectors, popularity=zeros, first_seen_day=zeros.astype(int), until=DAY, language="en"
    )
    part.save(bundle / "search")
    pq.write_table(items, bundle / "items.parquet")
    save_file({"vectors": vectors}, bundle / "vectors.safetensors")
    (bundle / "bundle.json").write_text(json.dumps({"text_encoder": "wordllama"}))
    return SimpleNamespace(version="1", folder=bundle)
