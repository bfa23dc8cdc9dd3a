"""The shop simulator: a JSON Lines feed of a shop whose true preferences are known; seed → the same files.

<out>/events/YYYY-MM-DD.jsonl    what a shop sees
<out>/items/YYYY-MM-DD.jsonl     items new or changed that day
<out>/truth/                     what no shop sees: users.parquet, items.parquet (factors; their product is the
                                 preference), truth.json (the formula, the factors' names, the seed)
"""

import shutil
import uuid
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recflow.console import track
from recflow.events.simulated_shop import (
    BRANDS,
    COUNTRIES,
    FAMILIES,
    SLANG,
    Catalogue,
    Ints,
    Shoppers,
    make_catalogue,
    make_shoppers,
    truth_tables,
)
from recflow.events.simulated_visits import KINDS, Happened, simulate_visits
from recflow.storage import replace_folder, write_json

START: Final = date(2024, 1, 1)  # fixed: the same seed gives the same files on any day

_DAY: Final = 86_400  # seconds
_SOURCE: Final = "simulator"


def simulate(
    out: Path, days: int = 120, users: int = 2000, items: int = 1000, seed: int = 0, *, start: date = START
) -> dict[str, int]:
    """Write the feed of a simulated shop below `out` and return how many days, users, items and events it has.

    Folders of an earlier simulation are replaced, each in one move. Items: at least 10.
    """
    if min(days, users) < 1 or items < 10:
        raise ValueError(f"expected days and users >= 1 and items >= 10, found {days}, {users}, {items}")
    shop, people, visits = (np.random.default_rng(one) for one in np.random.SeedSequence(seed).spawn(3))
    catalogue = make_catalogue(shop, items=items, days=days)
    shoppers = make_shoppers(people, catalogue, users=users, days=days)
    happened = simulate_visits(visits, catalogue, shoppers, start=start, days=days)
    aside = out / f".writing-{uuid.uuid4().hex}"
    try:
        for name in ("events", "items", "truth"):
            (aside / name).mkdir(parents=True)
        _write_events(aside / "events", happened, catalogue, shoppers, start, days)
        _write_items(aside / "items", catalogue, start, days)
        _write_truth(aside / "truth", catalogue, shoppers, seed)
        for name in ("truth", "items", "events"):
            replace_folder(aside / name, out / name)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    kinds = np.bincount(happened.kind, minlength=len(KINDS))
    counts = {f"{kind}_events": int(count) for kind, count in zip(KINDS, kinds, strict=True)}
    return {"days": days, "users": users, "items": items, "events": len(happened.second), **counts}


def _write_events(
    folder: Path, happened: Happened, catalogue: Catalogue, shoppers: Shoppers, start: date, days: int
) -> None:
    ends = np.searchsorted(happened.second, np.arange(days + 1) * _DAY)
    midnight = int(datetime.combine(start, time(), UTC).timestamp())
    for offset in track(range(days), description="writing the simulated shop", total=days):
        rows = slice(int(ends[offset]), int(ends[offset + 1]))
        of_day = Happened(*(column[rows] for column in happened))
        lines = _event_lines(of_day, catalogue, shoppers, first=rows.start, midnight=midnight)
        _write_lines(folder / f"{start + timedelta(days=offset)}.jsonl", lines)


def _event_lines(events: Happened, catalogue: Catalogue, shoppers: Shoppers, *, first: int, midnight: int) -> pa.Array:
    """Write a day's events as JSON; `first`: the place of the first among all, which makes its id."""
    count = len(events.second)
    price = catalogue.prices[events.item, (events.price_day >= catalogue.price_day[events.item]).astype(np.int64)]
    is_priced = np.isin(events.kind, [KINDS.index(kind) for kind in ("view", "add_to_cart", "purchase", "return")])
    moment = pc.strftime(pa.array(midnight + events.second, pa.timestamp("s")), format="%Y-%m-%dT%H:%M:%S+00:00")
    queries = pa.array([*(one.name.lower() for one in FAMILIES), *SLANG])
    user = np.where(events.is_anonymous == 1, -1, events.user)
    fields = {
        "event_id": _numbered("event-", np.arange(first, first + count)),
        "event_timestamp": moment,
        "event_type": _named(pa.array(KINDS), events.kind),
        "user_id": _named(shoppers.user_ids, user),
        "session_id": _numbered("visit-", events.visit),
        "item_id": _named(catalogue.item_ids, events.item),
        "quantity": _number(events.quantity),
        "unit_price": _cents(price, is_priced),
        "currency": _constant("GBP", is_priced),
        "country": _named(pa.array(COUNTRIES), shoppers.country[events.user]),
        "query": _named(queries, events.query),
        "dwell_seconds": _number(events.dwell),
        "position": _number(events.position),
        "request_id": _numbered("slate-", events.slate),
        "source": _constant(_SOURCE, np.ones(count, dtype=bool)),
    }
    return _objects(fields, numbers=("quantity", "unit_price", "dwell_seconds", "position"))


def _write_items(folder: Path, catalogue: Catalogue, start: date, days: int) -> None:
    """Write each item on the day it arrives, and again on the day its price changes while it is sold."""
    changed = (catalogue.price_day < days) & (catalogue.price_day > catalogue.arrival)
    item = np.concatenate([np.arange(len(catalogue)), np.flatnonzero(changed)])
    day = np.concatenate([catalogue.arrival, catalogue.price_day[changed]])
    order = np.lexsort((item, day))
    item, day = item[order], day[order]
    lines = _item_lines(catalogue, item, day, start)
    for offset in np.unique(day).tolist():
        first, last = np.searchsorted(day, [offset, offset + 1])
        _write_lines(folder / f"{start + timedelta(days=offset)}.jsonl", lines.slice(first, last - first))


def _item_lines(catalogue: Catalogue, item: Ints, day: Ints, start: date) -> pa.Array:
    family, ones = catalogue.family[item], np.ones(len(item), dtype=bool)
    price = catalogue.prices[item, (day >= catalogue.price_day[item]).astype(np.int64)]
    categories = pa.array([f"{one.department} > {one.name}" for one in FAMILIES])
    first_seen = pa.array(np.datetime64(start, "s") + catalogue.arrival[item] * np.timedelta64(_DAY, "s"))
    titles = _named(catalogue.titles, item)
    in_words = pc.binary_join_element_wise("The ", titles, " for ", pc.utf8_lower(_named(categories, family)), ".", "")
    fields = {
        "item_id": _named(catalogue.item_ids, item),
        "title": titles,
        "description": in_words,
        "category": _named(categories, family),
        "brand": _named(pa.array(BRANDS), catalogue.brand[item]),
        "price": _cents(price, ones),
        "currency": _constant("GBP", ones),
        "store_id": _numbered("store-", catalogue.store[item]),
        "first_seen": pc.strftime(first_seen, format="%Y-%m-%dT%H:%M:%S+00:00"),
        "active": _constant("true", ones),
    }
    return _objects(fields, numbers=("price", "active"))


def _write_truth(folder: Path, catalogue: Catalogue, shoppers: Shoppers, seed: int) -> None:
    users, items = truth_tables(catalogue, shoppers)
    pq.write_table(users, folder / "users.parquet")
    pq.write_table(items, folder / "items.parquet")
    families = [one.name for one in FAMILIES[: catalogue.families]]
    factors = ["popularity", *(f"taste for {name}" for name in families), *(f"liking of {name}" for name in BRANDS)]
    facts: dict[str, Any] = {
        "formula": "preference(user, item) = dot(users.factors, items.factors); staples are bought every period",
        "factors": [*factors, "aversion to a high price"],
        "looked_at": "1 / log2(1 + position) of a slate's impressions",
        "slang": dict(zip(SLANG, families, strict=False)),
        "seed": seed,
    }
    write_json(folder / "truth.json", facts)


# -- JSON, column by column: a null in a column leaves the key out


def _objects(fields: dict[str, pa.Array], *, numbers: tuple[str, ...]) -> pa.Array:
    parts = []
    for name, texts in fields.items():
        mark = "" if name in numbers else '"'
        member = pc.binary_join_element_wise(f',"{name}":{mark}', texts, mark, "")
        parts.append(pc.fill_null(member, ""))
    members = pc.utf8_slice_codeunits(pc.binary_join_element_wise(*parts, ""), 1)  # without the first comma
    return pc.binary_join_element_wise("{", members, "}", "")


def _named(names: pa.Array, index: Ints) -> pa.Array:
    return names.take(pa.array(index, mask=index < 0))


def _number(values: Ints) -> pa.Array:
    return pa.array(values, mask=values < 0).cast(pa.string())


def _numbered(prefix: str, values: Ints) -> pa.Array:
    return pc.binary_join_element_wise(prefix, _number(values), "")


def _cents(price: Any, has: Any) -> pa.Array:
    """Write prices with two decimals where there is one."""
    cents = np.rint(price * 100).astype(np.int64)
    pounds = pa.array(cents // 100, mask=~has).cast(pa.string())
    rest = pc.utf8_lpad(pa.array(cents % 100, mask=~has).cast(pa.string()), width=2, padding="0")
    return pc.binary_join_element_wise(pounds, rest, ".")


def _constant(text: str, has: Any) -> pa.Array:
    return pa.array(np.full(len(has), text), pa.string(), mask=~has)


def _write_lines(path: Path, lines: pa.Array) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as stream:
        stream.write("\n".join([*lines.to_pylist(), ""]))
