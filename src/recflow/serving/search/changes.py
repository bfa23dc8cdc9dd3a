"""What the shop said over the API of items since the served catalogue was made: in `<home>/items.db`.

A line says what is new of an item; what it doesn't name stays as it was. Each line is on disk when `put` returns, and
every worker reads on from the last one that it knows. A catalogue that has an item as the line says it, or that has the
item and is of a later day, makes the line mean nothing: the file may keep it, no answer looks at it.
"""

import contextlib
import json
import sqlite3
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from recflow.errors import RecflowError
from recflow.settings import Settings

_BUSY_SECONDS = 5.0  # for another process's write, which takes milliseconds
_TABLES = """
CREATE TABLE IF NOT EXISTS items (
    item_id TEXT PRIMARY KEY, number INTEGER NOT NULL, put_us INTEGER NOT NULL, fields TEXT NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS items_by_number ON items (number);
CREATE TABLE IF NOT EXISTS facts (dropped INTEGER NOT NULL);
"""


class TooManyChanges(RecflowError):
    """As many items differ from the catalogue as may."""


class Change(NamedTuple):
    """What was said of one item."""

    item_id: str
    fields: Mapping[str, Any]  # names of `schema.ITEMS`; only what was named
    put_us: int  # when it was said last, microseconds since 1970 (UTC)


Changes = Mapping[str, Change]  # by item_id


class ItemChanges:
    """The lines of a shop; any thread may ask."""

    def __init__(self, settings: Settings) -> None:
        """Take the place; nothing is read yet."""
        self._file = settings.home.absolute() / "items.db"
        self._most = settings.search.max_changed_items
        self._state: tuple[int, int, int] = (0, 0, 0)  # inode, last number and rounds of dropping that are known
        self._known: Changes = {}

    def all(self) -> Changes:
        """Return what was said, whichever process was told; the same object until there is news.

        Raises:
            RecflowError: the file can't be read.
        """
        if not self._file.exists():
            if self._known:
                self._state, self._known = (0, 0, 0), {}
            return self._known
        with self._open() as connection:
            if not connection.execute("SELECT count(*) FROM sqlite_master WHERE name = 'facts'").fetchone()[0]:
                return self._known  # another process is making it
            last = connection.execute("SELECT coalesce(max(number), 0) FROM items").fetchone()[0]
            dropped = connection.execute("SELECT coalesce(max(dropped), 0) FROM facts").fetchone()[0]
            state, before = (self._file.stat().st_ino, last, dropped), self._state
            if state == before:
                return self._known
            goes_on = (state[0], dropped) == (before[0], before[2]) and last >= before[1]
            known = dict(self._known) if goes_on else {}
            rows = connection.execute(
                "SELECT item_id, fields, put_us FROM items WHERE number > ? ORDER BY number",
                (before[1] if goes_on else 0,),
            )
            for item_id, fields, put_us in rows:
                known[item_id] = Change(item_id, json.loads(fields), put_us)
        self._state, self._known = state, known
        return known

    def put(
        self,
        lines: Sequence[Mapping[str, Any]],
        *,
        held: Callable[[Sequence[Change]], Collection[str]] = lambda changes: (),
        now_us: int | None = None,
    ) -> None:
        """Take lines, each with its `item_id` as the catalogue writes it; on disk when this returns.

        Args:
            lines: in order: of two lines of one item the later one adds to the earlier one.
            held: changes -> ids of those that the served catalogue makes mean nothing; they go where room is needed.
            now_us: microseconds since 1970 (UTC).

        Raises:
            TooManyChanges: there would be more than `search.max_changed_items`; nothing was taken.
            RecflowError: the file can't be read or written.
        """
        moment = time.time_ns() // 1000 if now_us is None else now_us
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with self._open() as connection:
            connection.executescript(_TABLES)
            connection.execute("BEGIN IMMEDIATE")
            number = connection.execute("SELECT coalesce(max(number), 0) FROM items").fetchone()[0]
            for line in lines:
                number += 1
                fields = {name: value for name, value in line.items() if name != "item_id"}
                found = connection.execute("SELECT fields FROM items WHERE item_id = ?", (line["item_id"],)).fetchone()
                fields = (json.loads(found[0]) if found else {}) | fields
                connection.execute(
                    "INSERT OR REPLACE INTO items VALUES (?, ?, ?, ?)",
                    (line["item_id"], number, moment, json.dumps(fields)),
                )
            self._make_room(connection, held)
            connection.execute("COMMIT")

    def _make_room(self, connection: sqlite3.Connection, held: Callable[[Sequence[Change]], Collection[str]]) -> None:
        """Let go of what means nothing any more where there is too much.

        Raises:
            TooManyChanges: too much is left.
        """
        count = connection.execute("SELECT count(*) FROM items").fetchone()[0]
        if count <= self._most:
            return
        rows = connection.execute("SELECT item_id, fields, put_us FROM items").fetchall()
        gone = held([Change(item_id, json.loads(fields), put_us) for item_id, fields, put_us in rows])
        if count - len(gone) > self._most:
            raise TooManyChanges(
                f"At most {self._most} items can differ from the served catalogue; with these it would be "
                f"{count - len(gone)}. Have the feed bring them, or raise search.max_changed_items."
            )
        connection.executemany("DELETE FROM items WHERE item_id = ?", [(item_id,) for item_id in gone])
        connection.execute("INSERT INTO facts SELECT coalesce(max(dropped), 0) + 1 FROM facts")

    @contextlib.contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        try:
            connection = sqlite3.connect(self._file, timeout=_BUSY_SECONDS, isolation_level=None)
            try:
                connection.execute("PRAGMA synchronous = EXTRA")  # the journal's end must be on disk, too
                yield connection
            finally:
                connection.close()
        except (sqlite3.Error, ValueError, OSError) as error:
            raise RecflowError(
                f"{self._file}: expected what was said of items, found {type(error).__name__}. Remove it and put them "
                "again."
            ) from error
