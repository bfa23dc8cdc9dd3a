"""How the processes of one shop's feedback write in turns and tell each other what is good to read.

One small file, `<home>/landing/feedback/.commits`, does both. Whoever holds its lock may write; what a turn has put on
disk is noted in a ring of the newest changes, and then the counter before the ring is raised. Readers map the file: a
look at the counter costs no system call, and lines are read only up to where a change says that they are good. So
nobody reads what a writer is still writing, or takes back because the disk is full.

A process may die anywhere in its turn. The operating system lets go of the lock, and the mark that the turn was begun
is still there: the next writer goes over the files, cuts off an unfinished line, and takes in and announces the lines
that are whole. Those were never acknowledged; they are kept because nobody can tell any more.

The home must lie on a local disk: network filesystems don't keep mapped files in step.
"""

import contextlib
import fcntl
import mmap
import os
import sys
from collections.abc import Iterator, Mapping
from datetime import date
from pathlib import Path
from typing import Final, Literal, NamedTuple

from recflow.console import log
from recflow.settings import Settings

Kind = Literal["events", "erasures"]
_KINDS: Final[tuple[Kind, ...]] = ("events", "erasures")

_MAGIC: Final = int.from_bytes(b"recflow1", "little")
_GENERATION, _IS_BEGUN, _RING = 1, 2, 4  # places in the file, in words of 8 bytes; the magic number is at 0
_WORDS: Final = 4  # of a change: kind and day, start, end, inode
_CHANGES: Final = 8_192  # in the ring: a worker looks at least once a second, and no disk syncs so often
_AT_ONCE: Final = 1_024  # changes written before the counter is raised: what a reader may miss while it reads
_SIZE: Final = 8 * (_RING + _CHANGES * _WORDS)
_BLOCK: Final = 65_536  # bytes


class Key(NamedTuple):
    """One file: `<folder of its kind>/<day>.jsonl`."""

    kind: Kind
    day: str  # YYYY-MM-DD, UTC


class Change(NamedTuple):
    """A file is good to read up to `end`; what is new begins at `start` or, where the inode is new, at 0."""

    start: int  # bytes
    end: int
    inode: int


def events_folder(settings: Settings) -> Path:
    """Return the folder of the events' files, one for each UTC day on which something happened."""
    return settings.home.absolute() / "landing" / "feedback" / "events"


def erasures_folder(settings: Settings) -> Path:
    """Return the folder of the requests to be forgotten: `{"user_id", "requested_at", "source"}` a line."""
    return settings.home.absolute() / "landing" / "erasures"


class Files:
    """The two folders and the file of commits of one shop."""

    def __init__(self, settings: Settings) -> None:
        """Name them; nothing is created before the first turn."""
        self.folders: dict[Kind, Path] = {"events": events_folder(settings), "erasures": erasures_folder(settings)}
        self._commits = self.folders["events"].parent / ".commits"

    def path(self, key: Key) -> Path:
        """Return a file's place."""
        return self.folders[key.kind] / f"{key.day}.jsonl"

    def state(self, key: Key) -> Change | None:
        """Return what lies there now, as a change that starts at 0; None where there is no such file."""
        try:
            found = self.path(key).stat()
        except FileNotFoundError:
            return None
        return Change(0, found.st_size, found.st_ino)

    def days(self, kind: Kind) -> list[str]:
        """Return the days that have a file, oldest first."""
        try:
            names = os.listdir(self.folders[kind])  # noqa: PTH208  # names only, of hundreds of files
        except FileNotFoundError:
            return []
        return sorted(name[:-6] for name in names if name.endswith(".jsonl") and _is_day(name[:-6]))

    def read(self, key: Key, inode: int, start: int, end: int) -> bytes | None:
        """Return a range of bytes; None where the file was replaced since."""
        try:
            descriptor = os.open(self.path(key), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            return os.pread(descriptor, end - start, start) if os.fstat(descriptor).st_ino == inode else None
        finally:
            os.close(descriptor)

    def commits_inode(self) -> int | None:
        """Return which file of commits lies there; None: none."""
        try:
            return self._commits.stat().st_ino
        except FileNotFoundError:
            return None

    @contextlib.contextmanager
    def turn(self) -> Iterator["Turn"]:
        """Wait until no other process writes, and keep it so.

        Raises:
            OSError: the disk refuses.
        """
        for folder in self.folders.values():
            _make_folder(folder)
        descriptor = os.open(self._commits, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield Turn(self, descriptor)
        finally:
            fcntl.flock(descriptor, fcntl.LOCK_UN)  # closing isn't enough: a mapping keeps the file open
            os.close(descriptor)


class Ring:
    """The newest changes, mapped into memory."""

    def __init__(self, descriptor: int) -> None:
        """Map an open file of commits."""
        self.inode = os.fstat(descriptor).st_ino
        self._words = memoryview(mmap.mmap(descriptor, _SIZE, prot=mmap.PROT_READ)).cast("Q")

    @property
    def generation(self) -> int:
        """Return how many changes there were so far."""
        return self._words[_GENERATION]

    @property
    def is_begun(self) -> bool:
        """Return whether somebody is writing, or died doing so."""
        return bool(self._words[_IS_BEGUN])

    def since(self, seen: int) -> tuple[int, dict[Key, Change]] | None:
        """Return the generation and what changed since `seen`, one change a file; None: too long ago to tell."""
        generation = self.generation
        if seen < 0 or not 0 <= generation - seen <= _CHANGES - _AT_ONCE:
            return None
        changes: dict[int, Change] = {}
        for number in range(seen, generation):
            at = _RING + number % _CHANGES * _WORDS
            packed, start, end, inode = self._words[at : at + _WORDS]
            earlier = changes.get(packed)
            changes[packed] = Change(earlier.start if earlier and earlier.inode == inode else start, end, inode)
        if self.generation - seen > _CHANGES - _AT_ONCE:  # writers went on meanwhile and may have come round
            return None
        return generation, {_unpacked(packed): change for packed, change in changes.items()}


class Turn:
    """What a process may do while no other one writes."""

    def __init__(self, files: Files, descriptor: int) -> None:
        """Make sure of the file's shape; `descriptor` holds the lock."""
        self._files = files
        self._descriptor = descriptor
        self.inode = os.fstat(descriptor).st_ino  # of the file of commits
        if os.fstat(descriptor).st_size != _SIZE or self._word(0) != _MAGIC:
            # All bytes are written: a hole in a mapped file would kill its readers once the disk is full.
            os.ftruncate(descriptor, 0)
            write_all(descriptor, _bytes(_MAGIC, 0, 1).ljust(_SIZE, b"\0"))
            os.fsync(descriptor)
        self.is_unsettled = bool(self._word(_IS_BEGUN))  # somebody died writing, or this is the first turn ever

    def ring(self) -> Ring:
        """Return the newest changes; they can be read when the turn is over, too."""
        return Ring(self._descriptor)

    def begin(self) -> None:
        """Mark that files are about to be written."""
        self._put(_IS_BEGUN, 1)

    def end(self) -> None:
        """Take the mark back: the files are as they were."""
        self._put(_IS_BEGUN, int(self.is_unsettled))

    def settle(self, changes: Mapping[Key, Change]) -> None:
        """Announce what became of the files that somebody died writing."""
        self.is_unsettled = False
        self.announce(changes)

    def announce(self, changes: Mapping[Key, Change]) -> None:
        """Let all processes read what is on disk now; this turn's mark is gone then."""
        generation = self._word(_GENERATION)
        for number, (key, change) in enumerate(changes.items(), start=1):
            self._put(_RING + generation % _CHANGES * _WORDS, _packed(key), *change)
            generation += 1
            if number % _AT_ONCE == 0:
                self._put(_GENERATION, generation)
        self._put(_GENERATION, generation, int(self.is_unsettled))

    def append(self, lines: Mapping[Key, bytes]) -> None:
        """Append whole lines to files, durably, over all of them or not at all, and announce them.

        Raises:
            OSError: the disk refuses; the files are as they were.
        """
        begun: list[tuple[Key, int, int, bool]] = []
        try:
            self.begin()
            for key, content in lines.items():
                descriptor, size, is_new = self._open(key)
                begun.append((key, descriptor, size, is_new))
                write_all(descriptor, content)
                os.fsync(descriptor)
                if is_new:
                    sync_folder(self._files.folders[key.kind])
            self.announce(
                {
                    key: Change(size, size + len(lines[key]), os.fstat(descriptor).st_ino)
                    for key, descriptor, size, _ in begun
                }
            )
        except BaseException:
            self._take_back(begun)
            raise
        finally:
            for _, descriptor, _, _ in begun:
                os.close(descriptor)

    def cut_torn(self, key: Key) -> Change | None:
        """Cut off a last line without its end; return what is there then."""
        state = self._files.state(key)
        if state is None or not state.end:
            return state
        path = self._files.path(key)
        with path.open("r+b") as stream:
            size = _whole_lines(stream.fileno(), state.end)
            if size < state.end:
                log.warning("%s: cut off %d bytes of a line that was never finished.", path.name, state.end - size)
                stream.truncate(size)
        return state._replace(end=size)

    def _open(self, key: Key) -> tuple[int, int, bool]:
        path, flags = self._files.path(key), os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC
        try:
            descriptor, is_new = os.open(path, flags), False
        except FileNotFoundError:
            descriptor, is_new = os.open(path, flags | os.O_CREAT, 0o644), True
        return descriptor, os.fstat(descriptor).st_size, is_new

    def _take_back(self, begun: list[tuple[Key, int, int, bool]]) -> None:
        is_done = True
        for key, descriptor, size, is_new in begun:
            try:
                os.ftruncate(descriptor, size)
                if is_new:
                    self._files.path(key).unlink()
            except OSError:
                is_done = False
        if is_done:  # else the mark stays, and the next writer goes over the files
            with contextlib.suppress(OSError):
                self.end()

    def _word(self, place: int) -> int:
        return int.from_bytes(os.pread(self._descriptor, 8, place * 8), sys.byteorder)

    def _put(self, place: int, *words: int) -> None:
        content = _bytes(*words)
        if os.pwrite(self._descriptor, content, place * 8) != len(content):
            raise OSError("the file of commits can't be written")


def write_all(descriptor: int, content: bytes) -> None:
    """Write all of it, in as many writes as the system wants."""
    view = memoryview(content)
    while view:
        view = view[os.write(descriptor, view) :]


def sync_folder(folder: Path) -> None:
    """Put on disk which files a folder has."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _make_folder(folder: Path) -> None:
    if not folder.is_dir():
        _make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)


def _whole_lines(descriptor: int, size: int) -> int:
    """Return where the last line that has its end ends."""
    while size:
        start = max(0, size - _BLOCK)
        at = os.pread(descriptor, size - start, start).rfind(b"\n")
        if at >= 0:
            return start + at + 1
        size = start
    return 0


def _bytes(*words: int) -> bytes:
    return b"".join(word.to_bytes(8, sys.byteorder) for word in words)


def _packed(key: Key) -> int:
    return _KINDS.index(key.kind) << 32 | date.fromisoformat(key.day).toordinal()


def _unpacked(word: int) -> Key:
    return Key(_KINDS[word >> 32], date.fromordinal(word & 0xFFFF_FFFF).isoformat())


def _is_day(name: str) -> bool:
    try:
        return date.fromisoformat(name).isoformat() == name
    except ValueError:
        return False
