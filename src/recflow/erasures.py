"""The list of people who were erased: what they did up to a moment stays out of recflow, however often it comes again.

    <home>/privacy/erasure.key    random, readable by its owner alone
    <home>/privacy/erased.json    person -> until when, and how many rows there were of them by table

A `person` is a hash of a user's id under that key: it tells whether an id is on the list, and nobody's id. What an
erased person does later counts like anybody's.
"""

import json
import os
import secrets
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

import pyarrow as pa
import pyarrow.compute as pc

from recflow.errors import MissingInput
from recflow.privacy import canonical, keyed_hash
from recflow.schema import TIMESTAMP
from recflow.settings import Settings
from recflow.storage import write_json

_KEY_BYTES: Final = 32
_BETWEEN_WORDS: Final = r'[\s",:;{}\[\]\\]+'

Counts = Mapping[str, Mapping[str, int]]  # person -> table -> rows


class Entry(NamedTuple):
    """One erased person."""

    until: datetime  # UTC; what happened up to then stays out
    rows: Mapping[str, int] | None  # that there were by table; None: not counted yet


class Erased:
    """The list of the erased, and the key by which an id is found on it."""

    def __init__(self, key: bytes, entries: Mapping[str, Entry]) -> None:
        """Take the key, and the entries by person."""
        self._key = key
        self.entries = dict(entries)
        self._persons = pa.array(list(self.entries), pa.string())
        self._moments = pa.array([entry.until for entry in self.entries.values()], TIMESTAMP)
        self._known: dict[str, str | None] = {}  # user_id -> person; None: not listed

    @classmethod
    def load(cls, settings: Settings) -> Self:
        """Read the list and its key; where there is neither, make a key.

        Raises:
            MissingInput: there is a list, and its key is gone.
        """
        file, key_file = _files(settings)
        listed = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        if not key_file.exists():
            if listed:
                raise MissingInput(
                    f"{file}: expected its key in {key_file}, found none: nobody on the list can be told any more, and "
                    "old files would bring them back. Put the key back from your backup."
                )
            _make_key(key_file)
        entries = {
            person: Entry(datetime.fromisoformat(entry["until"]), entry["rows"]) for person, entry in listed.items()
        }
        return cls(bytes.fromhex(key_file.read_text(encoding="ascii")), entries)

    def save(self, settings: Settings) -> None:
        """Put the list in place."""
        listed = {
            person: {"until": entry.until.isoformat(), "rows": entry.rows} for person, entry in self.entries.items()
        }
        write_json(_files(settings)[0], listed)

    def with_people(self, moments: Mapping[str, datetime], count: Callable[["Erased"], Counts]) -> "Erased":
        """Return the list with people on it too, and how many rows `count` finds of each.

        Who is listed up to that moment already, by a run that was killed, keeps the count that it made: by now some of
        the rows are gone.

        Args:
            moments: user_id -> the moment up to which nothing stays.
            count: called with a list of those alone who aren't counted yet.
        """
        entries = dict(self.entries)
        for user_id, until in moments.items():
            person = self.person(user_id)
            if person not in entries or entries[person].until < until:
                entries[person] = Entry(until, None)
        fresh = {person: entry for person, entry in entries.items() if entry.rows is None}
        counts = count(Erased(self._key, fresh)) if fresh else {}
        counted = {person: entry._replace(rows=counts.get(person, {})) for person, entry in fresh.items()}
        return Erased(self._key, entries | counted)

    def person(self, user_id: str) -> str:
        """Return the hash that stands for an id."""
        return keyed_hash(canonical(user_id), self._key).hex()

    def facts(self, user_id: str) -> dict[str, Any]:
        """Return what may be kept of an erasure: the person, and how many rows there were by table."""
        person = self.person(user_id)
        return {"person": person, "rows": dict(self.entries[person].rows or {})}

    def persons(self, table: pa.Table) -> pa.Array:
        """Return for each row the erased person whom it names, null where it names none.

        A row names people by its `user_id`; where the row couldn't be read, by the words of its `raw`; and a mended one
        by those of the text that it replaces, too.
        """
        found = self._listed(table["user_id"].combine_chunks())
        if "raw" in table.column_names:
            found = self._or_by_words(found, table["raw"], unread(table))
        if "replaced_raw" in table.column_names:
            found = self._or_by_words(found, table["replaced_raw"], pc.is_null(found))
        return found

    def rows_of(self, table: pa.Table) -> pa.Array:
        """Return which rows are of erased people, and of no later moment than stays out.

        Args:
            table: `user_id`, `event_timestamp`, `event_date` and what `persons` looks at; a row without a moment counts
                as of its day's start.
        """
        until = self._moments.take(pc.index_in(self.persons(table), self._persons))
        moment = pc.coalesce(table["event_timestamp"], table["event_date"].cast(TIMESTAMP)).combine_chunks()
        return pc.fill_null(pc.less_equal(moment, until), False)

    def _listed(self, user_ids: pa.Array) -> pa.Array:
        encoded = user_ids.dictionary_encode()
        names = encoded.dictionary.to_pylist()
        for name in names:
            if name not in self._known:
                person = self.person(name)
                self._known[name] = person if person in self.entries else None
        return pa.array([self._known[name] for name in names], pa.string()).take(encoded.indices)

    def _or_by_words(self, found: pa.Array, texts: pa.ChunkedArray, is_wanted: pa.Array) -> pa.Array:
        """Fill in the wanted rows from the words of their texts."""
        import numpy as np

        rows = np.flatnonzero(is_wanted.to_numpy(zero_copy_only=False))
        if not len(rows):
            return found
        words = pc.split_pattern_regex(texts.take(pa.array(rows)).combine_chunks(), _BETWEEN_WORDS)
        named = self._listed(pc.list_flatten(words))
        of_row = rows[pc.list_parent_indices(words).filter(named.is_valid()).to_numpy()]
        filled = found.to_numpy(zero_copy_only=False).copy()
        filled[of_row] = named.drop_null().to_numpy(zero_copy_only=False)
        return pa.array(filled, pa.string())


def unread(table: pa.Table) -> pa.Array:
    """Return which staged rows couldn't be read so far that they would name a user."""
    return pc.and_(pc.is_null(table["user_id"]), pc.is_valid(table["parse_error"])).combine_chunks()


def without_erased(events: pa.Table, settings: Settings) -> pa.Table:
    """Return staged events but those of erased people."""
    if not _files(settings)[0].exists():
        return events
    return events.filter(pc.invert(Erased.load(settings).rows_of(events)))


def _files(settings: Settings) -> tuple[Path, Path]:
    folder = settings.home.absolute() / "privacy"
    return folder / "erased.json", folder / "erasure.key"


def _make_key(file: Path) -> None:
    """Write a random key aside, on disk before anybody can use it, and put it in place in one move."""
    file.parent.mkdir(parents=True, exist_ok=True)
    aside = file.with_name(f".writing-{file.name}-{secrets.token_hex(8)}")
    try:
        with os.fdopen(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
            stream.write(secrets.token_hex(_KEY_BYTES))
            stream.flush()
            os.fsync(stream.fileno())
        aside.replace(file)
    finally:
        aside.unlink(missing_ok=True)
