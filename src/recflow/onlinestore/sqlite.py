"""Feast's SQLite online store: a table per view, a row per entity and feature."""

import contextlib
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from recflow.console import log
from recflow.onlinestore import PROJECT, OnlineUser, StoredView
from recflow.onlinestore.layout import UserLayout, table

_MARK = f"{PROJECT}__mark"  # no view's table: their names have one underscore there
_LOG_MILLISECONDS = 1_000  # readers, which take one, are waited for
_WRITE_SECONDS = 30.0  # a writer waits for another one: a day's batch of rows takes less


class SqliteBackend:
    """A file. Readers aren't blocked by a writer, for the file is in write-ahead mode."""

    def __init__(self, database: Path, views: Sequence[StoredView], *, wait_seconds: float) -> None:
        """Name the file; `wait_seconds` is how long a read may wait for a lock, which a recovery may hold."""
        self._database = database
        self._wait_seconds = wait_seconds
        self._views = views
        self._layout = UserLayout(views)
        self._reads = [f"SELECT feature_name, value FROM {_name(view)} WHERE entity_key = ?" for view in self._user]
        self._connection: sqlite3.Connection | None = None
        self._lock = threading.Lock()  # one connection

    @property
    def _user(self) -> Sequence[StoredView]:
        return self._layout.views

    def users(self, user_ids: Sequence[str]) -> list[OnlineUser | None]:
        """Return what is known of each user; all of it is of one moment."""
        with self._lock:
            try:
                stored = self._stored(self._connected(), user_ids)
            except BaseException:
                self._disconnect()
                raise
        return [self._layout.user(values) for values in stored]

    async def users_async(self, user_ids: Sequence[str]) -> list[OnlineUser | None]:
        """Return the same, read right here."""
        return self.users(user_ids)

    def _stored(self, connection: sqlite3.Connection, user_ids: Sequence[str]) -> list[dict[str, bytes]]:
        execute = connection.execute
        stored = []
        execute("BEGIN")
        for user_id in user_ids:
            key = (self._layout.key(user_id),)
            values: dict[str, bytes] = {}
            for read in self._reads:
                values.update(execute(read, key).fetchall())
            stored.append(values)
        execute("COMMIT")
        return stored

    def _connected(self) -> sqlite3.Connection:
        if self._connection is None:
            # Not read-only: the first reader after a crash brings the file in order. `rw` doesn't make one.
            self._connection = sqlite3.connect(
                f"{self._database.as_uri()}?mode=rw",
                uri=True,
                isolation_level=None,
                timeout=self._wait_seconds,
                check_same_thread=False,
            )
            self._connection.execute("PRAGMA query_only = 1")
        return self._connection

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def forget(self, user_id: str) -> None:
        """Delete a user's rows of all views; what they held is overwritten."""
        with self._writing() as connection:
            for view in self._user:
                connection.execute(f"DELETE FROM {_name(view)} WHERE entity_key = ?", (self._layout.key(user_id),))

    def keep_only(self, present: Mapping[str, Iterable[bytes]]) -> None:
        """Delete the rows of entities that aren't present, and the values of features that the views don't have."""
        with self._writing() as connection:
            connection.execute("CREATE TEMP TABLE present (join_key TEXT, entity_key BLOB)")
            for join_key, keys in present.items():
                connection.executemany("INSERT INTO present VALUES (?, ?)", ((join_key, key) for key in keys))
            connection.execute("CREATE TEMP TABLE declared (view TEXT, feature_name TEXT)")
            declared = ((view.name, name) for view in self._views for name, _ in view.features)
            connection.executemany("INSERT INTO declared VALUES (?, ?)", declared)
            for view in self._views:
                connection.execute(
                    f"DELETE FROM {_name(view)}"
                    " WHERE entity_key NOT IN (SELECT entity_key FROM present WHERE join_key = ?)"
                    " OR feature_name NOT IN (SELECT feature_name FROM declared WHERE view = ?)",
                    (view.join_key, view.name),
                )
        self._write_anew()

    def _write_anew(self) -> None:
        """Write the whole file anew: pages that were split once keep copies of rows that deleting can't overwrite."""
        uri = f"{self._database.as_uri()}?mode=rw"
        with contextlib.closing(sqlite3.connect(uri, uri=True, timeout=_WRITE_SECONDS)) as connection:
            connection.execute("PRAGMA secure_delete = ON")
            connection.execute("VACUUM")
            connection.execute(f"PRAGMA busy_timeout = {_LOG_MILLISECONDS}")
            (is_busy, *_) = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if is_busy:
            log.warning("The online store's log is in use: what was deleted stays in it until it is written over.")

    def mark(self) -> str | None:
        """Return the mark that was set last; None where there is none, or no file."""
        if not self._database.exists():
            return None
        with self._writing() as connection:
            is_there = connection.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (_MARK,)).fetchone()
            row = connection.execute(f"SELECT mark FROM {_MARK}").fetchone() if is_there else None
        return str(row[0]) if row else None

    def set_mark(self, mark: str) -> None:
        """Leave a mark in the file."""
        with self._writing() as connection:
            connection.execute(f"CREATE TABLE IF NOT EXISTS {_MARK} (mark TEXT)")
            connection.execute(f"DELETE FROM {_MARK}")
            connection.execute(f"INSERT INTO {_MARK} VALUES (?)", (mark,))

    @contextlib.contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """Give a connection of its own; what is done with it is one transaction."""
        uri = f"{self._database.as_uri()}?mode=rw"
        with contextlib.closing(sqlite3.connect(uri, uri=True, timeout=_WRITE_SECONDS)) as connection:
            connection.execute("PRAGMA secure_delete = ON")
            with connection:
                yield connection

    def close(self) -> None:
        """Close the reading connection; the next read opens it anew."""
        with self._lock:
            self._disconnect()

    async def aclose(self) -> None:
        """Close nothing: `close` does."""


def _name(view: StoredView) -> str:
    return '"' + table(view).replace('"', '""') + '"'
