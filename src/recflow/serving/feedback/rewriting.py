"""Taking people's lines out of the events files while the shop goes on writing to them."""

import contextlib
import fcntl
import math
import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, Final

import msgspec

from recflow.serving.feedback.commits import Change, Files, Key, sync_folder
from recflow.serving.feedback.memory import Moment, to_us
from recflow.settings import Settings

_ASIDE: Final = ".rewriting-"  # before the day; no reader looks at names with a dot in front


class _Owner(msgspec.Struct, gc=False):
    """Of a line, whose it is."""

    user_id: str | None = None
    event_timestamp: Moment | None = None


_OWNERS: Final = msgspec.json.Decoder(_Owner)


def rewrite_without(settings: Settings, user_ids: Collection[str]) -> int:
    """Take users' lines out of all events files; return how many there were.

    Each file is written aside and put in place in one move; while the bulk of it is copied, the endpoint writes on.
    Every worker reads the new file from its start. What workers still hold of the users in memory is what `forget`
    lets go of: ask for the erasure first.

    Args:
        settings: whose home it is.
        user_ids: who; a mapping of user_id to a moment keeps what happened after it.

    Raises:
        OSError: the disk refuses; the file it was about is as it was, those of earlier days are done.
    """
    until = {user_id: math.inf for user_id in user_ids}
    if isinstance(user_ids, Mapping):
        until = {user_id: to_us(moment) for user_id, moment in user_ids.items()}
    files = Files(settings)
    folder = files.folders["events"]
    if not folder.is_dir():
        return 0
    with _alone(folder):
        for left in folder.glob(f"{_ASIDE}*"):  # of a process that was killed
            left.unlink()
        keys = [Key("events", day) for day in files.days("events")]
        return sum(_rewrite(files, key, until) for key in keys if until)


def _rewrite(files: Files, key: Key, until: Mapping[str, float]) -> int:
    path = files.path(key)
    aside = path.parent / f"{_ASIDE}{key.day}"
    with path.open("rb") as old:
        with files.turn() as turn:  # up to here nobody takes anything back any more
            state = turn.cut_torn(key)
        if state is None or state.inode != os.fstat(old.fileno()).st_ino:
            return 0  # gone meanwhile
        if not any(_is_of(line, until) for line in _lines(old, state.end)):
            return 0
        try:
            with aside.open("wb") as new:
                old.seek(0)
                removed = _copy(old, new, state.end, until)
                new.flush()
                os.fsync(new.fileno())
                with files.turn() as turn:
                    state = turn.cut_torn(key) or state
                    removed += _copy(old, new, state.end, until)
                    new.flush()
                    os.fsync(new.fileno())
                    size, inode = new.tell(), os.fstat(new.fileno()).st_ino
                    turn.begin()
                    aside.replace(path)
                    sync_folder(path.parent)
                    turn.announce({key: Change(size, size, inode)})
        except OSError:
            aside.unlink(missing_ok=True)
            raise
    return removed


def _copy(old: BinaryIO, new: BinaryIO, end: int, until: Mapping[str, float]) -> int:
    removed = 0
    for line in _lines(old, end):
        if _is_of(line, until):
            removed += 1
        else:
            new.write(line)
    return removed


def _lines(stream: BinaryIO, end: int) -> Iterator[bytes]:
    while stream.tell() < end:
        yield stream.readline()


def _is_of(line: bytes, until: Mapping[str, float]) -> bool:
    try:
        owner = _OWNERS.decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return any(msgspec.json.encode(user_id) in line for user_id in until)  # no event, but somebody's name
    moment = until.get(owner.user_id) if owner.user_id is not None else None
    if moment is None:
        return False
    return owner.event_timestamp is None or to_us(owner.event_timestamp) <= moment


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Let one process at a time rewrite; the endpoint's writers don't wait for this."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
