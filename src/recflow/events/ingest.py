"""ingest: a feed's daily files → `staged_events` and `staged_items`, one partition per day.

Every row of a file is staged, those that can't be understood included (`parse_error`); only a file that isn't what it
should be as a whole stops the step. A day has the shop's own feed and, where the endpoint took events, its feedback.
`event_date` is the day that the file is for; whether its moments are of that day is validation's question.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any, Final, NamedTuple

import pyarrow as pa

from recflow.console import track
from recflow.erasures import without_erased
from recflow.errors import FeedError, FeedLate
from recflow.events import invoice_lines, jsonl, online_retail
from recflow.events.feed import Feed, feedback_folder, resolve_feed
from recflow.events.files import ITEMS_DATED, FeedFile, Staged
from recflow.privacy import check_home
from recflow.schema import STAGED_EVENTS, Days
from recflow.settings import Settings
from recflow.storage import Artifact, Storage

_READ_AT_ONCE: Final = 128 << 20  # bytes of files; their rows take about ten times that in memory
_FEEDBACK: Final = "feedback/"  # before the file's name: the endpoint's files are named like a feed's own
_FEEDBACK_SOURCE: Final = "storefront"


class _Found(NamedTuple):
    """The files of the days asked for; a day without any is closed."""

    main: list[FeedFile]
    feedback: list[FeedFile]
    items: list[FeedFile] | None  # None: the feed has no folder of items

    def within(self, days: Days) -> "_Found":
        """Return the files of some of the days."""
        return _Found(
            [file for file in self.main if days.start <= file.day <= days.end],
            [file for file in self.feedback if days.start <= file.day <= days.end],
            None if self.items is None else [file for file in self.items if days.start <= file.day <= days.end],
        )


def ingest(days: Days, settings: Settings) -> Artifact:
    """Stage the feed's rows of some days; one partition of `staged_events` and of `staged_items` per day.

    A day without a file is a closed day where a later day's file is there, else it is late.

    Raises:
        FeedLate: a day's file isn't there and no later one is.
        FeedError: a file isn't what it should be; nothing was written for the days read with it.
        SettingsError: the home's pseudonyms were made with another key.
    """
    check_home(settings)
    feed = resolve_feed(settings)
    found = _find(feed, days, settings)
    storage = Storage(settings)
    totals = {"lines": 0, "closed_days": 0}
    for span in _spans(days, found):
        files = found.within(span)
        staged = _read(feed, files, settings)
        manifests = _manifests(feed, span, files, staged)
        # Items first: where a day's events are, the day is whole.
        storage.write_partitions("staged_items", staged.items, manifests)
        storage.write_partitions("staged_events", staged.events, manifests)
        totals["lines"] += sum(manifest["lines"] for manifest in manifests.values())
        totals["closed_days"] += sum(manifest["closed"] for manifest in manifests.values())
    return Artifact(storage.table_uri("staged_events"), {"days": str(days), "source": feed.source, **totals})


def summarize(days: Days, settings: Settings) -> dict[str, Any]:
    """Return what ingest read in some days, from their manifests: days, closed days, lines, items and quirks by name.

    Raises:
        MissingInput: a day wasn't ingested yet.
    """
    storage = Storage(settings)
    manifests = [storage.partition_manifest("staged_events", day) for day in days.dates()]
    return {
        "days": len(days),
        "closed_days": sum(manifest["closed"] for manifest in manifests),
        "lines": sum(manifest["lines"] for manifest in manifests),
        "item_days": sum(manifest["items"] for manifest in manifests),
        "quirks": _added(manifest["quirks"] for manifest in manifests),
    }


def feed_start(settings: Settings) -> date:
    """Return the first day that the feed in force has a file for.

    Raises:
        FeedError: no feed is known, or it has no daily file.
    """
    feed = resolve_feed(settings)
    listed = _list_files(feed)
    if not listed:
        raise FeedError(f"{feed.path}: expected daily files of the feed '{feed.source}', found none. Correct the path.")
    return min(listed)


def restage(rows: pa.Table, settings: Settings) -> pa.Table:
    """Read quarantined rows again from their mended `raw`; schema.STAGED_EVENTS, one row each, in their order.

    `rows` has at least raw, row_id, batch, event_date, event_id and source. Day, batch and place stay what they were,
    and so does the id unless `raw` names one: a mended row takes the old one's place.

    Raises:
        FeedError: a row names somebody who was erased.
    """
    import numpy as np

    is_invoice = np.array(rows["source"].to_pylist(), dtype=object) == invoice_lines.SOURCE  # (rows,)
    parts, places = [STAGED_EVENTS.empty_table()], [np.array([], dtype=np.int64)]
    for chosen, read_again in ((is_invoice, online_retail.restage), (~is_invoice, jsonl.restage)):
        if chosen.any():
            parts.append(read_again(rows.filter(pa.array(chosen)), settings))
            places.append(np.flatnonzero(chosen))
    staged = pa.concat_tables(parts)
    erased = staged.num_rows - without_erased(staged, settings).num_rows
    if erased:
        raise FeedError(
            f"{erased} mended rows name people who were erased on their request. Take these rows out and try again."
        )
    return staged.take(pa.array(np.argsort(np.concatenate(places))))


def _find(feed: Feed, days: Days, settings: Settings) -> _Found:
    """Find and look through every file of the days, before anything is read or written."""
    is_jsonl, limit = feed.source == "jsonl", settings.feed.max_line_bytes
    listed = _list_files(feed)
    _check_late(feed, days, listed)
    main = _scan(days, listed, jsonl.scan if is_jsonl else online_retail.scan, limit)
    item_files = jsonl.list_item_files(feed.path) if is_jsonl else None
    items = None if item_files is None else _scan(days, item_files, jsonl.scan, limit)
    folder = feedback_folder(settings)
    if not (folder / "events").is_dir() or folder == feed.path:
        return _Found(main, [], items)
    return _Found(main, _scan(days, jsonl.list_files(folder), _scan_feedback, limit), items)


def _list_files(feed: Feed) -> dict[date, Path]:
    return jsonl.list_files(feed.path) if feed.source == "jsonl" else online_retail.list_files(feed.path)


def _check_late(feed: Feed, days: Days, listed: dict[date, Path]) -> None:
    last = max(listed, default=date.min)
    if days.end <= last:
        return
    known = f"the last is for {last}" if listed else "the folder has no daily file at all"
    raise FeedLate(
        f"{feed.path}: expected the feed's file for {max(days.start, last + timedelta(days=1))}, found none, and none "
        f"for a later day ({known}). Try again when it was delivered; if the shop was closed, the file of its next "
        "open day will tell."
    )


def _scan(days: Days, listed: dict[date, Path], scan: Callable[..., FeedFile], max_line_bytes: int) -> list[FeedFile]:
    chosen = [(day, path) for day, path in listed.items() if days.start <= day <= days.end]
    steps: Iterable[tuple[date, Path]] = track(chosen, description="looking through the feed", total=len(chosen))
    return [scan(path, day=day, max_line_bytes=max_line_bytes) for day, path in steps]


def _scan_feedback(path: Path, *, day: date, max_line_bytes: int) -> FeedFile:
    return jsonl.scan(path, day=day, max_line_bytes=max_line_bytes, prefix=_FEEDBACK)


def _spans(days: Days, found: _Found) -> list[Days]:
    """Split the days so that the files of each part fit into memory together."""
    sizes: dict[date, int] = {}
    for file in (*found.main, *found.feedback, *(found.items or ())):
        sizes[file.day] = sizes.get(file.day, 0) + file.size
    spans, start, room = [], days.start, _READ_AT_ONCE
    for day in days.dates():
        if sizes.get(day, 0) > room and day > start:
            spans.append(Days(start, day - timedelta(days=1)))
            start, room = day, _READ_AT_ONCE
        room -= sizes.get(day, 0)
    return [*spans, Days(start, days.end)]


def _read(feed: Feed, files: _Found, settings: Settings) -> Staged:
    """Read the files of some days: the shop's own rows first, then the endpoint's, numbered on by day.

    Rows of people who were erased are left out, and so nothing is said of them; the others keep their numbers.
    """
    staged = _read_all(feed, files, settings)
    return replace(staged, events=without_erased(staged.events, settings))


def _read_all(feed: Feed, files: _Found, settings: Settings) -> Staged:
    if feed.source == "jsonl":
        staged = jsonl.read(files.main, settings, has_items=files.items is not None)
        if files.items is not None:
            staged = Staged(staged.events, jsonl.read_items(files.items, settings), staged.quirks)
    elif files.main:
        staged = online_retail.read(files.main, settings)
    else:
        staged = Staged(STAGED_EVENTS.empty_table(), ITEMS_DATED.empty_table(), {})
    if not files.feedback:
        return staged
    feedback = jsonl.read(files.feedback, settings, source=_FEEDBACK_SOURCE)
    events = pa.concat_tables([staged.events, _numbered_on(feedback.events, staged.events)])
    days = staged.quirks.keys() | feedback.quirks.keys()
    quirks = {day: _added((staged.quirks.get(day, {}), feedback.quirks.get(day, {}))) for day in days}
    return Staged(events, staged.items, quirks)


def _numbered_on(events: pa.Table, before: pa.Table) -> pa.Table:
    """Return events with their row numbers going on after those of the same day in `before`."""
    import numpy as np

    rows_before = _per_day(before)
    days, of_day = np.unique(events["event_date"].to_numpy(), return_inverse=True)
    offsets = np.array([rows_before.get(day.item(), 0) for day in days], dtype=np.int64)  # (days,)
    row_ids = pa.array(events["row_id"].to_numpy() + offsets[of_day])
    return events.set_column(events.schema.get_field_index("row_id"), STAGED_EVENTS.field("row_id"), row_ids)


def _manifests(feed: Feed, days: Days, files: _Found, staged: Staged) -> dict[date, dict[str, Any]]:
    lines, items = _per_day(staged.events), _per_day(staged.items)
    sources: dict[date, list[dict[str, Any]]] = {}
    for file in (*files.main, *files.feedback, *(files.items or ())):
        fact = {"name": file.batch, "bytes": file.size, "sha256": file.sha256}
        sources.setdefault(file.day, []).append(fact)
    return {
        day: {
            "closed": not lines.get(day),
            "source": feed.source,
            "lines": lines.get(day, 0),
            "items": items.get(day, 0),
            "quirks": staged.quirks.get(day, {}),
            "files": sources.get(day, []),
        }
        for day in days.dates()
    }


def _per_day(table: pa.Table) -> dict[date, int]:
    return {count["values"]: count["counts"] for count in table["event_date"].value_counts().to_pylist()}


def _added(counts: Iterable[dict[str, int]]) -> dict[str, int]:
    total: dict[str, int] = {}
    for some in counts:
        for name, count in some.items():
            total[name] = total.get(name, 0) + count
    return total
