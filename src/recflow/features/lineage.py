"""Which snapshots are out of date, found without reading history.

Every partition of the state carries in its footer the hash of the day's inputs and a chain: the hash of the chain of
the day before and of those inputs. A day that was replaced, came late or was computed by other expressions breaks the
chain from there on; so does a rebuild that was killed half-way. Only footers are read (0.2 ms each), and the inputs
of those days whose object is newer than their snapshot.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Final

import pyarrow as pa

from recflow.errors import MissingInput
from recflow.schema import Days
from recflow.storage import Manifest, Storage, content_hash

INPUTS: Final = ("events", "items")
COMMITTED: Final = "state_user"  # written last: a day is done when it is there
_MOMENTS: Final = ("mtime", "LastModified", "last_modified", "updated", "created")  # as fsspec's filesystems call it
_ABSENT: Final = "absent"


@dataclass(frozen=True)
class Work:
    """What has to be computed: every day from `start` through `end`; none where `start` is None."""

    first: date  # the first day of all
    start: date | None
    end: date
    chain: str  # of the day before `start`


def outstanding(days: Days, storage: Storage, definition: str) -> Work:
    """Return the days to compute so that all snapshots through the last of `days`, and those after it, hold.

    Raises:
        MissingInput: validated events of the last day aren't there.
    """
    available = storage.days("events")
    if days.end not in available:
        raise MissingInput(
            f"events {days.end}: no validated events below {storage.lake_uri}, so features can't be built for {days}. "
            f"Run `recflow run ingest` and `recflow run validate` for that day first."
        )
    first = available[0]
    built = set(storage.days(COMMITTED))
    last = max([days.end, *built])
    written = {noun: _written(storage, noun) for noun in (*INPUTS, COMMITTED)}
    chain, day = definition, first
    while day <= last and day in built:
        manifest = storage.partition_manifest(COMMITTED, day)
        hashes = dict(manifest.get("inputs", {}))
        for noun in INPUTS:
            present = written[noun].get(day)
            # Newer than its snapshot: read it. Gone, or there at last: the hash says so without reading.
            if present is None or hashes.get(noun) == _ABSENT or present >= written[COMMITTED][day]:
                hashes[noun] = _hash_of(storage, noun, day)
        expected = _next_chain(chain, hashes)
        if manifest.get("chain") != expected:
            break
        chain, day = expected, day + timedelta(days=1)
    return Work(first, day if day <= last else None, last, chain)


def day_manifest(chain: str, inputs: Mapping[str, pa.Table | None]) -> Manifest:
    """Return what every partition of a day carries, given the chain of the day before and the day's inputs."""
    hashes = {noun: _ABSENT if table is None else content_hash(table) for noun, table in inputs.items()}
    return {"chain": _next_chain(chain, hashes), "inputs": hashes}


def _hash_of(storage: Storage, noun: str, day: date) -> str:
    try:
        return content_hash(storage.read_partition(noun, day))
    except MissingInput:
        return _ABSENT


def _next_chain(chain: str, hashes: Mapping[str, str]) -> str:
    joined = "|".join([chain, *(hashes.get(noun, "") for noun in INPUTS)])
    return hashlib.sha256(joined.encode()).hexdigest()[:16]


def _written(storage: Storage, noun: str) -> dict[date, float]:
    """Return when each day of a table was put in place, from one listing; infinite where the storage doesn't say."""
    found = {}
    try:
        listing = storage.filesystem.find(storage.table_uri(noun), detail=True)
    except FileNotFoundError:
        return {}
    for path, entry in listing.items():
        folder = path.rsplit("/", 2)[-2]
        if folder.startswith("event_date=") and path.endswith(".parquet"):
            moment = next((entry[key] for key in _MOMENTS if entry.get(key)), float("inf"))
            seconds = moment.timestamp() if isinstance(moment, datetime) else float(moment)
            found[date.fromisoformat(folder.partition("=")[2])] = seconds
    return found
