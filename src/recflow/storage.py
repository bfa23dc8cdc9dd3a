"""Where everything lies, and how it is written: aside first, then put in place in one move.

Two shapes only:

- **tables**, Hive-partitioned Parquet below one URI (`file://`, `s3://`, `gs://`, ... through fsspec), one object per
  table and day: `<lake>/<noun>/event_date=2011-03-01/part-0.parquet`. The manifest lies in the object's own footer, so
  that data and manifest can't disagree. `event_date` is the folder's name and never a column inside.
- **folders**, below the home: `<home>/<noun>/<name>/` with a `manifest.json` (training sets, candidates, reports).
"""

import contextlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any, Protocol

import fsspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recflow.errors import LeaseHeld, MissingInput
from recflow.settings import Settings

_MANIFEST_KEY = b"recflow"
_PART = "part-0.parquet"
_ASIDE = (".writing-", ".retired-")  # names that no reader looks at
_LEFTOVER_SECONDS = 86_400.0  # a day; no step may run for more than half of that

Manifest = Mapping[str, Any]


@dataclass(frozen=True)
class Artifact:
    """What a step hands over: where its output lies and what is in it (JSON values only)."""

    uri: str
    manifest: Manifest = field(default_factory=dict)


class Release(Protocol):
    """A version of the served model with its files at hand, as the registry hands it out."""

    @property
    def version(self) -> str:
        """Return its number in the registry."""

    @property
    def folder(self) -> Path:
        """Return its bundle."""

    @property
    def moments(self) -> Mapping[str, str | None]:
        """Return `trained_at`, `published_at` and `promoted_at` (ISO 8601, UTC), None where unknown."""


class Storage:
    """Tables and folders of one shop."""

    def __init__(self, settings: Settings) -> None:
        """Open the storage that the settings name; nothing is created before the first write."""
        self.home = settings.home.absolute()
        self.lake_uri = (settings.lake_uri or (self.home / "lake").as_uri()).rstrip("/")
        self.filesystem, self._root = fsspec.core.url_to_fs(self.lake_uri)
        self._is_local = "file" in _protocols(self.filesystem)

    # -- tables

    def table_uri(self, noun: str) -> str:
        """Return the folder of a table, as a path that the filesystem understands."""
        return f"{self._root}/{noun}"

    def partition_uri(self, noun: str, day: date) -> str:
        """Return the one object of a table's day."""
        return f"{self._root}/{noun}/event_date={day}/{_PART}"

    def days(self, noun: str) -> list[date]:
        """Return the days that a table has, oldest first."""
        try:
            folders = self.filesystem.ls(self.table_uri(noun), detail=False, refresh=True)
        except FileNotFoundError:
            return []
        names = (folder.rstrip("/").rsplit("/", 1)[-1] for folder in folders)
        days = sorted(date.fromisoformat(name.partition("=")[2]) for name in names if name.startswith("event_date="))
        # A run that was killed may leave a folder without its object; an object store has no empty folders.
        return [day for day in days if Path(self.partition_uri(noun, day)).exists()] if self._is_local else days

    def write_partition(self, noun: str, day: date, table: pa.Table, manifest: Manifest) -> Artifact:
        """Put one day of a table in place, whole or not at all; an earlier object of that day is replaced."""
        table = table.drop_columns([name for name in ("event_date",) if name in table.column_names])
        table = table.replace_schema_metadata({_MANIFEST_KEY: json.dumps(manifest, sort_keys=True, default=str)})
        target = self.partition_uri(noun, day)
        # A leading dot: readers of `event_date=*` never list what is still being written.
        aside = f"{self._root}/{noun}/.writing-{day}-{uuid.uuid4().hex}"
        self.filesystem.makedirs(self.table_uri(noun), exist_ok=True)
        try:
            with self.filesystem.open(aside, "wb") as stream:
                pq.write_table(table, stream, compression="zstd")
            self.filesystem.makedirs(target.rsplit("/", 1)[0], exist_ok=True)
            if self._is_local:
                Path(aside).replace(target)
            else:
                self.filesystem.mv(aside, target)
        except BaseException:
            with contextlib.suppress(OSError):
                self.filesystem.rm(aside)
            self._remove_if_empty(target.rsplit("/", 1)[0])
            raise
        return Artifact(target, manifest)

    def write_partitions(self, noun: str, table: pa.Table, manifests: Mapping[date, Manifest]) -> dict[date, Artifact]:
        """Put many days in place, each whole.

        `table` has an `event_date` column; a day of `manifests` without rows is written empty.

        Raises:
            ValueError: the table has rows of a day that has no manifest; nothing was written.
        """
        strays = set(pc.unique(table["event_date"]).to_pylist()) - set(manifests)
        if strays:
            raise ValueError(f"{noun}: rows of {', '.join(map(str, strays))}, which are none of the days to write")
        ordered = table.sort_by("event_date") if table.num_rows else table
        dates = ordered["event_date"].to_numpy(zero_copy_only=False) if ordered.num_rows else None
        written = {}
        for day, manifest in manifests.items():
            first, last = (
                (0, 0) if dates is None else (dates.searchsorted(day_key(day), side) for side in ("left", "right"))
            )
            written[day] = self.write_partition(noun, day, ordered.slice(first, last - first), manifest)
        return written

    def read_partition(self, noun: str, day: date) -> pa.Table:
        """Return one day of a table, with `event_date`.

        Raises:
            MissingInput: the table has no such day.
        """
        return self.read_partitions(noun, [day])

    def read_partitions(self, noun: str, days: Iterable[date], columns: Sequence[str] | None = None) -> pa.Table:
        """Return the given days of a table below each other, with `event_date`; all columns, or those that are named.

        Raises:
            MissingInput: no day was given, or the table lacks one.
        """
        parts = []
        for day in days:
            with self._open(noun, day) as stream:
                part = pq.read_table(stream, columns=columns and [*columns]).replace_schema_metadata()
            parts.append(part.append_column("event_date", pa.repeat(pa.scalar(day, pa.date32()), part.num_rows)))
        if not parts:
            raise MissingInput(f"{noun}: no day was asked for.")
        return pa.concat_tables(parts)

    def partition_manifest(self, noun: str, day: date) -> dict[str, Any]:
        """Return the manifest of a table's day, read from the object's footer alone.

        Raises:
            MissingInput: the table has no such day.
        """
        with self._open(noun, day) as stream:
            metadata = pq.read_schema(stream).metadata or {}
        return dict(json.loads(metadata.get(_MANIFEST_KEY, b"{}")))

    def drop_partition(self, noun: str, day: date) -> None:
        """Take a day out of a table; no error where it has none."""
        with contextlib.suppress(FileNotFoundError):
            self.filesystem.rm(self.partition_uri(noun, day).rsplit("/", 1)[0], recursive=True)

    def _open(self, noun: str, day: date) -> Any:
        try:
            return self.filesystem.open(self.partition_uri(noun, day), "rb")
        except FileNotFoundError as error:
            raise MissingInput(
                f"{noun} {day}: not there yet below {self.lake_uri}. Run the step that makes it first."
            ) from error

    def _remove_if_empty(self, folder: str) -> None:
        with contextlib.suppress(OSError):
            if not self.filesystem.ls(folder):
                self.filesystem.rmdir(folder)

    # -- folders

    def folder(self, noun: str, name: str) -> Path:
        """Return where a folder artifact lies or would lie."""
        return self.home / noun / name

    def read_folder(self, noun: str, name: str) -> Artifact:
        """Return a folder artifact with its manifest.

        Raises:
            MissingInput: there is no such folder, or it was never finished.
        """
        path = self.folder(noun, name)
        try:
            manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise MissingInput(
                f"{noun} {name}: not there yet below {self.home}. Run the step that makes it first."
            ) from error
        return Artifact(str(path), manifest)

    @contextlib.contextmanager
    def writing_folder(self, noun: str, name: str) -> Iterator[tuple[Path, dict[str, Any]]]:
        """Give an empty folder and a manifest to fill; on leaving, put them in place in one move.

        On an error the folder goes and what was in place before stays.
        """
        target = self.folder(noun, name)
        aside = target.parent / f".writing-{name}-{uuid.uuid4().hex}"
        aside.mkdir(parents=True)
        manifest: dict[str, Any] = {}
        try:
            yield aside, manifest
            text = json.dumps(manifest, indent=2, sort_keys=True, default=str)
            (aside / "manifest.json").write_text(text + "\n", encoding="utf-8")
            replace_folder(aside, target)
        finally:
            shutil.rmtree(aside, ignore_errors=True)

    def clear_leftovers(self) -> None:
        """Remove what killed runs left aside on local disks: hidden names that are older than any step runs."""
        roots = [self.home, Path(self._root)] if self._is_local else [self.home]
        for path in (path for root in roots for path in root.glob("*/.*") if path.name.startswith(_ASIDE)):
            with contextlib.suppress(OSError):
                if time.time() - path.stat().st_mtime < _LEFTOVER_SECONDS:
                    continue
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    # -- leases

    @contextlib.contextmanager
    def lease(self, name: str, *, wait_seconds: float = 0) -> Iterator[None]:
        """Hold the right to run `name` alone; the operating system gives it back when the process dies.

        Raises:
            LeaseHeld: another run has it and didn't finish within `wait_seconds`.
        """
        from filelock import FileLock, Timeout

        lock = self.home / "leases" / f"{name}.lock"
        lock.parent.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(lock, timeout=wait_seconds):
                yield
        except Timeout as error:
            raise LeaseHeld(
                f"{name}: another run holds {lock}. Wait until it ends, then run this one again."
            ) from error


def day_key(day: date) -> Any:
    """Return a day as numpy compares it."""
    import numpy as np

    return np.datetime64(day, "D")


def replace_folder(source: Path, target: Path) -> None:
    """Put a finished folder in the place of another; readers see the old one or the new one.

    Where the filesystem can't exchange two names in one call, readers may for an instant see neither.
    """
    if not target.exists():
        source.rename(target)
        return
    retired = target.parent / f".retired-{target.name}-{uuid.uuid4().hex}"
    if _exchange(source, target):
        source.rename(retired)
    else:
        target.rename(retired)
        source.rename(target)
    shutil.rmtree(retired, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two names in one system call (Linux); return False, with nothing changed, where that can't be done."""
    import ctypes

    here, exchange = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of linux/fcntl.h and linux/fs.h
    try:
        rename = ctypes.CDLL(None).renameat2
    except (AttributeError, OSError):
        return False
    return bool(rename(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0)


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file aside and put it in place in one move."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.parent / f".writing-{path.name}-{uuid.uuid4().hex}"
    try:
        aside.write_text(json.dumps(content, indent=2, sort_keys=True, default=str) + "\n", encoding="utf-8")
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def content_hash(table: pa.Table) -> str:
    """Return a hash of a table's rows in their order, the same for equal rows however they were chunked."""
    import hashlib

    import numpy as np

    sink = pa.BufferOutputStream()
    combined = table.combine_chunks().replace_schema_metadata()
    rows = pa.array(np.arange(combined.num_rows))
    for place, name in enumerate(combined.column_names):
        if combined[name].null_count:  # what lies under a null may be anything; `take` leaves zeros there
            combined = combined.set_column(place, combined.field(place), combined[name].take(rows).combine_chunks())
    with pa.ipc.new_stream(sink, combined.schema) as writer:
        writer.write_table(combined)
    return hashlib.sha256(sink.getvalue()).hexdigest()[:16]


def _protocols(filesystem: fsspec.AbstractFileSystem) -> tuple[str, ...]:
    protocol = filesystem.protocol
    return (protocol,) if isinstance(protocol, str) else tuple(protocol)
