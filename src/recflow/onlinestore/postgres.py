"""Feast's PostgreSQL online store: a table per view, a row per entity and feature."""

import asyncio
import contextlib
import getpass
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import psycopg
from psycopg import conninfo, sql

from recflow.onlinestore import PROJECT, OnlineUser, StoredView
from recflow.onlinestore.layout import UserLayout, table

_SCHEMA = "public"  # Feast's default
_MARK = sql.Identifier(_SCHEMA, f"{PROJECT}__mark")  # no view's table: their names have one underscore there
_CONNECT_SECONDS = 5  # of steps and scripts; whoever waits in an event loop has a budget of his own
_CANCEL_SECONDS = 1.0  # for a server to hear that an answer isn't wanted any more

Rows = list[tuple[bytes, str, bytes]]


class PostgresBackend:
    """A database."""

    def __init__(self, url: str, views: Sequence[StoredView]) -> None:
        """Take the database's address; nothing is connected to yet."""
        self._url = url
        self._views = views
        self._layout = UserLayout(views)
        read = sql.SQL("SELECT entity_key, feature_name, value FROM {} WHERE entity_key = ANY(%b)")
        self._read = sql.SQL(" UNION ALL ").join(read.format(_table(view)) for view in self._layout.views)
        self._connection: psycopg.Connection | None = None
        self._async_connection: psycopg.AsyncConnection | None = None
        self._lock = threading.Lock()  # one connection
        self._async_lock = asyncio.Lock()  # one read at a time: those that come together are one
        self._ending: set[asyncio.Task[None]] = set()  # the event loop itself holds tasks weakly

    def users(self, user_ids: Sequence[str]) -> list[OnlineUser | None]:
        """Return what is known of each user; all of it is of one moment."""
        keys = [self._layout.key(user_id) for user_id in user_ids]
        with self._connected() as connection:
            rows: Any = connection.execute(self._read, self._parameters(keys), prepare=True, binary=True).fetchall()
        return self._users(keys, rows)

    async def users_async(self, user_ids: Sequence[str]) -> list[OnlineUser | None]:
        """Return the same without holding up the event loop."""
        keys = [self._layout.key(user_id) for user_id in user_ids]
        async with self._async_lock:
            is_kept = self._async_connection is not None
            try:
                rows = await self._rows_async(keys)
            except psycopg.OperationalError:
                if not is_kept:
                    raise
                rows = await self._rows_async(keys)  # the server was started anew and closed what was kept
        return self._users(keys, rows)

    async def _rows_async(self, keys: list[bytes]) -> Rows:
        if self._async_connection is None:
            self._async_connection = await psycopg.AsyncConnection.connect(self._url, autocommit=True)
        connection = self._async_connection
        reading = asyncio.ensure_future(self._fetch(connection, keys))
        try:
            return await asyncio.shield(reading)
        except BaseException:
            # Whatever is still to come over this connection belongs to this read.
            self._async_connection = None
            ending = asyncio.ensure_future(_end(connection, reading))
            self._ending.add(ending)
            ending.add_done_callback(self._ending.discard)
            raise

    async def _fetch(self, connection: psycopg.AsyncConnection, keys: list[bytes]) -> Rows:
        cursor = await connection.execute(self._read, self._parameters(keys), prepare=True, binary=True)
        rows: Any = await cursor.fetchall()
        found: Rows = rows
        return found

    def _parameters(self, keys: list[bytes]) -> list[list[bytes]]:
        return [keys] * len(self._layout.views)

    def _users(self, keys: list[bytes], rows: Rows) -> list[OnlineUser | None]:
        stored: dict[bytes, dict[str, bytes]] = {key: {} for key in keys}
        for key, name, value in rows:
            stored[key][name] = value
        return [self._layout.user(stored[key]) for key in keys]

    def forget(self, user_id: str) -> None:
        """Delete a user's rows of all views."""
        with self._connected() as connection, connection.transaction():
            for view in self._layout.views:
                delete = sql.SQL("DELETE FROM {} WHERE entity_key = %s").format(_table(view))
                connection.execute(delete, (self._layout.key(user_id),))

    def keep_only(self, present: Mapping[str, Iterable[bytes]]) -> None:
        """Delete the rows of entities that aren't present, and the values of features that the views don't have."""
        with self._connected() as connection, connection.transaction(), connection.cursor() as cursor:
            cursor.execute("CREATE TEMP TABLE present (join_key TEXT, entity_key BYTEA) ON COMMIT DROP")
            with cursor.copy("COPY present FROM STDIN") as copy:
                for join_key, keys in present.items():
                    for key in keys:
                        copy.write_row((join_key, key))
            cursor.execute("ANALYZE present")
            for view in self._views:
                delete = sql.SQL(
                    "DELETE FROM {} AS stored WHERE NOT (feature_name = ANY(%s)) OR NOT EXISTS"
                    " (SELECT FROM present WHERE join_key = %s AND present.entity_key = stored.entity_key)"
                )
                declared = [name for name, _ in view.features]
                cursor.execute(delete.format(_table(view)), (declared, view.join_key))

    def mark(self) -> str | None:
        """Return the mark that was set last; None where there is none."""
        try:
            with self._connected() as connection:
                row = connection.execute(sql.SQL("SELECT mark FROM {}").format(_MARK)).fetchone()
        except psycopg.errors.UndefinedTable:
            return None
        return str(row[0]) if row else None

    def set_mark(self, mark: str) -> None:
        """Leave a mark in a table of its own."""
        with self._connected() as connection, connection.transaction():
            connection.execute(sql.SQL("CREATE TABLE IF NOT EXISTS {} (mark TEXT)").format(_MARK))
            connection.execute(sql.SQL("DELETE FROM {}").format(_MARK))
            connection.execute(sql.SQL("INSERT INTO {} VALUES (%s)").format(_MARK), (mark,))

    @contextlib.contextmanager
    def _connected(self) -> Iterator[psycopg.Connection]:
        """Give the connection, each statement of which is a transaction; after an error it isn't used again."""
        with self._lock:
            if self._connection is None:
                self._connection = psycopg.connect(self._url, autocommit=True, connect_timeout=_CONNECT_SECONDS)
            try:
                yield self._connection
            except BaseException:
                self._disconnect()
                raise

    def close(self) -> None:
        """Close the connection of `users` and the others; the next call opens another one."""
        with self._lock:
            self._disconnect()

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    async def aclose(self) -> None:
        """Close the event loop's connection, once the reads that are under way have ended."""
        async with self._async_lock:
            connection, self._async_connection = self._async_connection, None
        if connection is not None:
            await connection.close()
        if self._ending:
            await asyncio.wait(self._ending)


async def _end(connection: psycopg.AsyncConnection, reading: "asyncio.Future[Rows]") -> None:
    """End a read that nobody waits for any more, and its connection."""
    # The first call asks the server to stop, for which psycopg waits seconds; the second closes the connection.
    for _ in range(2):
        reading.cancel()
        await asyncio.wait([reading], timeout=_CANCEL_SECONDS)
    if reading.done() and not reading.cancelled():
        reading.exception()  # taken notice of, or asyncio complains
    await connection.close()


def feast_config(url: str) -> dict[str, Any]:
    """Return the address as Feast's configuration spells it."""
    parts: dict[str, Any] = conninfo.conninfo_to_dict(url)
    user = str(parts.get("user", getpass.getuser()))  # as libpq has it
    return {
        "type": "postgres",
        "host": str(parts.get("host", "localhost")),
        "port": int(parts.get("port", 5432)),
        "database": str(parts.get("dbname", user)),
        "user": user,
        "password": str(parts.get("password", "")),
        "db_schema": _SCHEMA,
        "sslmode": str(parts.get("sslmode", "prefer")),
        **{f"{name}_path": str(parts[name]) for name in ("sslkey", "sslcert", "sslrootcert") if parts.get(name)},
    }


def _table(view: StoredView) -> sql.Identifier:
    return sql.Identifier(_SCHEMA, table(view))
