"""The requests to be forgotten, which `EventLog.forget` writes: those that are open, and closing those that are done.

<home>/landing/erasures/<UTC date>.jsonl, a request a line:
    {"user_id", "requested_at", "source"}                          open
    {"person", "requested_at", "source", "done_on", "rows"}        done: whose it was can't be told any more
"""

import os
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from recflow.errors import RecflowError
from recflow.serving.feedback.commits import Change, Files, Key, sync_folder
from recflow.serving.feedback.memory import Moment
from recflow.settings import Settings

_ASIDE: Final = ".closing-"  # before the day; no reader looks at names with a dot in front


class Request(NamedTuple):
    """One person's wish to be forgotten."""

    user_id: str
    requested_at: datetime  # UTC; what happens later isn't meant


class _Line(msgspec.Struct, omit_defaults=True):
    requested_at: Moment
    source: str
    user_id: str | None = None
    person: str | None = None  # a keyed hash of the user_id
    done_on: str | None = None  # YYYY-MM-DD, UTC
    rows: dict[str, int] | None = None  # that were taken out, by table

    @property
    def request(self) -> Request | None:
        """Return the wish while it is open."""
        return None if self.user_id is None else Request(self.user_id, self.requested_at)


_LINES: Final = msgspec.json.Decoder(_Line)


def open_requests(settings: Settings) -> list[Request]:
    """Return the requests that weren't honoured yet, oldest first.

    Raises:
        RecflowError: a line is no request.
    """
    return [line.request for line in _lines(settings) if line.request]


def list_requests(settings: Settings) -> list[dict[str, Any]]:
    """Return every request, oldest first, without a word of whose it is.

    Raises:
        RecflowError: a line is no request.
    """
    return [
        {
            "requested_at": line.requested_at.isoformat(timespec="seconds"),
            "source": line.source,
            "done_on": line.done_on or "",
            "rows": sum((line.rows or {}).values()),
        }
        for line in _lines(settings)
    ]


def close_requests(done: Mapping[Request, Mapping[str, Any]], settings: Settings) -> None:
    """Put today's date and the given `person` and `rows` in the place of the users' ids.

    Requests that came in meanwhile stay open.

    Raises:
        OSError: the disk refuses; the file it was about is as it was.
    """
    files = Files(settings)
    for day in files.days("erasures"):
        key = Key("erasures", day)
        with files.turn() as turn:
            state = turn.cut_torn(key)
            for left in files.folders["erasures"].glob(f"{_ASIDE}*"):  # of a process that was killed; it has ids
                left.unlink()
            lines = list(_read(files.path(key)))
            if state is None or not any(line.request in done for line in lines):
                continue
            content = b"".join(msgspec.json.encode(_closed(line, done)) + b"\n" for line in lines)
            aside = files.folders["erasures"] / f"{_ASIDE}{day}"
            try:
                inode = _write(aside, content)
                turn.begin()
                aside.replace(files.path(key))
                sync_folder(aside.parent)
                turn.announce({key: Change(len(content), len(content), inode)})
            except OSError:
                aside.unlink(missing_ok=True)
                raise


def _closed(line: _Line, done: Mapping[Request, Mapping[str, Any]]) -> _Line:
    if line.request is None or line.request not in done:
        return line
    today = datetime.now(UTC).date().isoformat()
    return _Line(line.requested_at, line.source, done_on=today, **done[line.request])


def _lines(settings: Settings) -> Iterator[_Line]:
    files = Files(settings)
    for day in files.days("erasures"):
        yield from _read(files.path(Key("erasures", day)))


def _read(path: Path) -> Iterator[_Line]:
    """Read a file's lines; a last one without its end was never acknowledged and is none."""
    *lines, _ = path.read_bytes().split(b"\n")
    for number, text in enumerate(lines, start=1):
        try:
            line = _LINES.decode(text)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            line = None
        if line is None or (line.user_id is None) == (line.person is None):
            raise RecflowError(
                f"{path} line {number}: expected a JSON object with user_id, requested_at and source, found something "
                "else. Correct the line, so that nobody's request is passed over."
            )
        yield line


def _write(path: Path, content: bytes) -> int:
    """Write a file for good; return its inode."""
    with path.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
        return os.fstat(stream.fileno()).st_ino
