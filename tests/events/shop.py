"""Hand-made invoice lines and days for the tests of ingest."""

from datetime import date
from pathlib import Path
from typing import Any

from recflow.events.ingest import ingest
from recflow.schema import Days
from recflow.settings import Settings, load_settings
from recflow.storage import Storage

DAY = date(2011, 3, 1)
HEADER = "InvoiceNo,StockCode,Description,Quantity,InvoiceDate,UnitPrice,CustomerID,Country"


def line(
    invoice: str = "545220",
    code: str = "85123A",
    title: str = "WHITE HEART",
    pieces: str = "6",
    moment: str = "2011-03-01 10:30:00",
    price: str = "2.55",
    customer: str = "17850.0",
    country: str = "United Kingdom",
) -> str:
    return ",".join((invoice, code, title, pieces, moment, price, customer, country))


def write_day(folder: Path, *lines: str, day: date = DAY) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{day}.csv"
    path.write_text("\n".join([HEADER, *lines, ""]), encoding="utf-8")
    return path


def shop_settings(tmp_path: Path, **feed: Any) -> Settings:
    return load_settings(home=tmp_path / "var", feed={"path": tmp_path / "feed", **feed})


def ingested(tmp_path: Path, *lines: str) -> tuple[list[dict[str, Any]], dict[str, dict[str, Any]], dict[str, Any]]:
    """Ingest one hand-made day; return its events, its items by id, and its manifest."""
    write_day(tmp_path / "feed", *lines)
    settings = shop_settings(tmp_path)
    ingest(Days.one(DAY), settings)
    storage = Storage(settings)
    items = storage.read_partition("staged_items", DAY).to_pylist()
    return (
        storage.read_partition("staged_events", DAY).to_pylist(),
        {item["item_id"]: item for item in items},
        storage.partition_manifest("staged_events", DAY),
    )
