"""What is deleted from the SQLite store is gone from its bytes, too."""

import contextlib
import random
import sqlite3
from pathlib import Path

from recflow.onlinestore import StoredView
from recflow.onlinestore.layout import entity_key, table
from recflow.onlinestore.sqlite import SqliteBackend

VIEW = StoredView("user_purchase_stats", "user_id", (("one", "STRING"), ("other", "STRING")))
USERS = [f"user-{number:05d}" for number in range(2000)]
GONE = USERS[::7]


def _written_often(database: Path) -> None:
    """Write values that get shorter and longer, as Feast does: pages are split, rows move, copies stay behind."""
    rng = random.Random(0)
    keys = [(entity_key(VIEW.join_key, user), name) for user in USERS for name, _ in VIEW.features]
    with contextlib.closing(sqlite3.connect(database)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        columns = "entity_key BLOB, feature_name TEXT, value BLOB, PRIMARY KEY(entity_key, feature_name)"
        connection.execute(f'CREATE TABLE "{table(VIEW)}" ({columns})')
        for length in (20, 60, 5, 200):
            rng.shuffle(keys)
            rows = [(*key, b"v" * length) for key in keys]
            with connection:
                connection.executemany(
                    f'INSERT INTO "{table(VIEW)}" VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET value = excluded.value',
                    rows,
                )


def _named(database: Path) -> set[str]:
    content = b"".join(file.read_bytes() for file in database.parent.iterdir())
    return {user for user in USERS if user.encode() in content}


def test_who_is_not_kept_is_in_no_byte_of_the_store(tmp_path: Path) -> None:
    database = tmp_path / "online.db"
    _written_often(database)
    kept = set(USERS) - set(GONE)
    backend = SqliteBackend(database, [VIEW], wait_seconds=1)
    assert _named(database) == set(USERS)
    backend.keep_only({VIEW.join_key: [entity_key(VIEW.join_key, user) for user in kept]})
    assert _named(database) == kept


def test_rows_are_read_while_the_store_is_tidied(tmp_path: Path) -> None:
    database = tmp_path / "online.db"
    _written_often(database)
    with contextlib.closing(sqlite3.connect(database, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        count = f'SELECT count(*) FROM "{table(VIEW)}"'
        assert reader.execute(count).fetchone() == (2 * len(USERS),)
        backend = SqliteBackend(database, [VIEW], wait_seconds=1)
        backend.keep_only({VIEW.join_key: [entity_key(VIEW.join_key, USERS[0])]})
        assert reader.execute(count).fetchone() == (2 * len(USERS),)  # of the moment that it began at
        reader.execute("COMMIT")
        assert reader.execute(count).fetchone() == (2,)
