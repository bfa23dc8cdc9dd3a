"""erase: people who asked to be forgotten -> nothing that they did is left in any table of the lake, or comes back.

Their rows go, sales included: a row with its moment, item and price would still be theirs for whoever has the shop's
books (ADR 9). First they are listed, so that ingest keeps them out from then on; then each day of each table that has
rows of them is written again, whole. A run that was killed is gone on with by the next one.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from datetime import date, datetime
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from recflow.erasures import Counts, Erased, unread
from recflow.privacy import spellings
from recflow.settings import Settings
from recflow.storage import Manifest, Storage

EVENTS: Final = ("staged_events", "fixed_events", "quarantine", "events")
# Built of `events`, and therefore again once those are rid of somebody.
SNAPSHOTS: Final = ("user_purchase_stats", "user_history", "state_user", "state_user_items")
_SLIM: Final = ("user_id", "event_timestamp")
_WRITERS: Final = ("replay", "ingest", "validate", "build_training_set")  # steps that mustn't be at work meanwhile


def take_out(
    requests: Sequence[tuple[str, datetime]],
    settings: Settings,
    *,
    elsewhere: Sequence[Callable[[Mapping[str, datetime], Erased], Any]] = (),
) -> Erased:
    """List people as erased and take out the rows of what they did; return the list, with what there was of them.

    Args:
        requests: user_id and the moment (UTC) up to which nothing stays; people may ask twice.
        settings: where the lake is.
        elsewhere: take people out of what is no table of the lake, given the moment by user_id in every spelling, and
            the list; called while no step writes.

    Raises:
        LeaseHeld: a step that could bring the rows back is at work.
    """
    storage = Storage(settings)
    moments = dict(sorted(requests, key=lambda request: request[1]))
    with ExitStack() as alone:
        for step in _WRITERS:
            alone.enter_context(storage.lease(step))
        erased = Erased.load(settings).with_people(moments, lambda fresh: _count(fresh, storage))
        erased.save(settings)
        for noun in EVENTS:
            for day in storage.days(noun):
                _take_out(noun, day, erased, storage)
        for forget in elsewhere:
            forget({each: until for user_id, until in moments.items() for each in spellings(user_id)}, erased)
    return erased


def summarize(done: Collection[Mapping[str, Any]]) -> dict[str, Any]:
    """Return how many people were erased, and how many rows there were of them by table."""
    rows_of = {facts["person"]: facts["rows"] for facts in done}
    tables = sorted({noun for rows in rows_of.values() for noun in rows})
    return {
        "persons": len(rows_of),
        "rows": {noun: sum(rows.get(noun, 0) for rows in rows_of.values()) for noun in tables},
    }


def _take_out(noun: str, day: date, erased: Erased, storage: Storage) -> None:
    """Write a day of a table without the rows of erased people; a day that has none stays as it is."""
    rows, is_theirs = _rows_of(noun, day, erased, storage)
    if pc.any(is_theirs).as_py():
        kept = rows.filter(pc.invert(is_theirs))
        manifest = storage.partition_manifest(noun, day)
        manifest["erased"] = manifest.get("erased", 0) + rows.num_rows - kept.num_rows
        storage.write_partition(noun, day, kept, _recounted(manifest, kept))


def _rows_of(noun: str, day: date, erased: Erased, storage: Storage) -> tuple[pa.Table, pa.Array]:
    """Return a day's rows, of some columns where that is enough, and which of them are erased people's."""
    if noun != "fixed_events":
        columns = _SLIM if noun == "events" else (*_SLIM, "parse_error")
        slim = storage.read_partitions(noun, [day], columns)
        is_theirs = erased.rows_of(slim)
        if not pc.any(is_theirs).as_py() and (noun == "events" or not pc.any(unread(slim)).as_py()):
            return slim, is_theirs
    rows = storage.read_partition(noun, day)
    return rows, erased.rows_of(rows)


def _recounted(manifest: Manifest, rows: pa.Table) -> Manifest:
    """Count what is in quarantine again: it is listed from there. Other figures go on saying what once came in."""
    if "rule" not in rows.column_names:
        return manifest
    counts = {count["values"]: count["counts"] for count in pc.value_counts(rows["rule"]).to_pylist()}
    return {**manifest, "quarantined": rows.num_rows, "quarantined_by_rule": counts}


def _count(erased: Erased, storage: Storage) -> Counts:
    """Count what there is of people in each table."""
    counts: dict[str, dict[str, int]] = {}
    for noun in (*EVENTS, *SNAPSHOTS):
        for persons in _named(noun, erased, storage):
            for count in pc.value_counts(persons.drop_null()).to_pylist():
                of_person = counts.setdefault(count["values"], {})
                of_person[noun] = of_person.get(noun, 0) + count["counts"]
    return counts


def _named(noun: str, erased: Erased, storage: Storage) -> Iterator[pa.Array]:
    """Yield whom the rows of each day of a table name, of rows that are to go."""
    for day in storage.days(noun):
        if noun in SNAPSHOTS:
            yield erased.persons(storage.read_partitions(noun, [day], ["user_id"]))
        else:
            rows, is_theirs = _rows_of(noun, day, erased, storage)
            if pc.any(is_theirs).as_py():
                yield erased.persons(rows.filter(is_theirs))
