"""The ibis backend by name; nothing else connects to one."""

from collections.abc import Sequence
from datetime import date
from typing import TYPE_CHECKING

from recflow.errors import MissingInput
from recflow.settings import Settings
from recflow.storage import Storage

if TYPE_CHECKING:
    import ibis.expr.types as ir
    from ibis.backends.duckdb import Backend


def connect(settings: Settings) -> "Backend":
    """Open an in-memory engine that reads the lake; sessions are in UTC.

    Spilling and its memory are left to the engine's defaults, threads to the cores of the machine.
    """
    import ibis

    backend = ibis.duckdb.connect()
    backend.raw_sql("SET TimeZone = 'UTC'")
    storage = Storage(settings)
    if not storage.lake_uri.startswith("file://"):
        backend.register_filesystem(storage.filesystem)
    return backend


def read_table(
    backend: "Backend", storage: Storage, noun: str, days: Sequence[date], *, union_by_name: bool = False
) -> "ir.Table":
    """Return the given days of a lake table as an expression, with `event_date`.

    With `union_by_name` a column that only some days have is null on the others.

    Raises:
        MissingInput: no day was given.
    """
    if not days:
        raise MissingInput(f"{noun}: no day to read. Run the step that makes it first.")
    protocol = "" if storage.lake_uri.startswith("file://") else storage.lake_uri.split("://")[0] + "://"
    files = [protocol + storage.partition_uri(noun, day) for day in days]
    return backend.read_parquet(files, hive_partitioning=True, union_by_name=union_by_name)
