"""What people set over the API: a JSON file below the home, put in place in one move, read when it changed."""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Generic, TypeVar

from pydantic import TypeAdapter

from recflow.errors import RecflowError
from recflow.storage import write_json

T = TypeVar("T")


class KeptFile(Generic[T]):
    """One value of a shop; whichever worker wrote it, all have it. A look costs microseconds."""

    def __init__(self, file: Path, shape: TypeAdapter[T], *, empty: T) -> None:
        """Take the place, what lies there, and the value before there is a file; nothing is read yet."""
        self._file = file
        self._shape = shape
        self._empty = empty
        self._kept: tuple[tuple[int, int, int] | None, T] = (None, empty)  # inode, time, size -> the value read then

    def read(self) -> T:
        """Return the value as the newest file has it; the same object until there is a newer one.

        Raises:
            RecflowError: the file can't be read.
        """
        try:
            stat = self._file.stat()
        except FileNotFoundError:
            self._kept = (None, self._empty)
            return self._empty
        seen, value = self._kept
        found = (stat.st_ino, stat.st_mtime_ns, stat.st_size)
        if found != seen:
            try:
                value = self._shape.validate_json(self._file.read_bytes())
            except (OSError, ValueError) as error:
                raise RecflowError(
                    f"{self._file}: expected {self._file.stem}, found {type(error).__name__}. Post them again, or "
                    "remove it."
                ) from error
            self._kept = (found, value)
        return value

    def write(self, value: T) -> None:
        """Put a value in place; on disk when this returns. To be held `alone` from the read that it rests on."""
        write_json(self._file, json.loads(self._shape.dump_json(value)))
        for place in (self._file, self._file.parent):  # the move itself must be on disk, too
            descriptor = os.open(place, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the right to write."""
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with Path(f"{self._file}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # the system lets go of it when its holder dies
            yield
