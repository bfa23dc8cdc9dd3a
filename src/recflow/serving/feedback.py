"""What happens in the shop -> the landing zone, on disk before the answer, and in the next answer.

Accepted events are appended to `<home>/landing/feedback/events/<UTC date of the event>.jsonl`, the JSON Lines feed's
shape: `ingest` of that day reads them beside the main source. One write and one fsync a request and day; a lock on
the folder orders the workers, each of which follows what the others append.

A process that dies in a write leaves at most one line without its end. It was never acknowledged: the next writer, or
the next start, cuts it off.
"""

import contextlib
import fcntl
import json
import os
import threading
import uuid
from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from recflow.console import log
from recflow.serving.types import Event, RejectedEvent
from recflow.settings import Settings

HISTORY_TYPES = frozenset({"purchase", "return", "view", "click", "add_to_cart"})  # what a model's history holds
SOURCE = "storefront"
_EARLIEST = datetime(2000, 1, 1, tzinfo=UTC)  # older ones are clocks that were never set


class RecentEvent(NamedTuple):
    """An event of a shopper since the snapshot, as far as the model looks at it."""

    event_id: str
    timestamp_us: int  # UTC
    item_id: str
    event_type: str
    quantity: float  # pieces


class Appended(NamedTuple):
    """What became of the events of one request."""

    accepted: int
    duplicates: int


@dataclass
class _Followed:
    """A day's file as far as it was read."""

    offset: int = 0  # bytes; always behind a line's end
    event_ids: set[str] = field(default_factory=set)


def judge_events(
    raw_events: Sequence[Any], *, now: datetime, max_future_seconds: float
) -> tuple[list[dict[str, Any]], list[RejectedEvent]]:
    """Raw events -> canonical rows (names of `schema.EVENTS`, nulls left out) and the rejected, each with its reasons.

    Where an event has no time it happened `now`; times before 2000 or more than `max_future_seconds` after `now` are
    refused. Past years are fine: shops send late, and histories are replayed.
    """
    rows, rejected = [], []
    for index, raw in enumerate(raw_events):
        try:
            event = Event.model_validate(raw)
            moment = (event.event_timestamp or now).astimezone(UTC)
            errors = _errors_of_time(moment, now, max_future_seconds)
        except ValidationError as error:
            errors = [
                {"path": field_path(detail["loc"]), "message": detail["msg"]}
                for detail in error.errors(include_url=False, include_context=False, include_input=False)
            ]
        except OverflowError:  # an offset carries a time over the calendar's edge
            errors = [{"path": "event_timestamp", "message": "is no moment of this calendar in UTC"}]
        if errors:
            event_id = raw.get("event_id") if isinstance(raw, dict) else None
            shown = field_path([event_id]) if isinstance(event_id, str) else None
            rejected.append(RejectedEvent(index=index, event_id=shown, errors=errors))
            continue
        row = event.model_dump(exclude_none=True)
        row["event_id"] = event.event_id or uuid.uuid4().hex
        row["event_timestamp"] = moment.isoformat(timespec="microseconds")
        row["source"] = SOURCE
        rows.append(row)
    return rows, rejected


def field_path(parts: Sequence[int | str]) -> str:
    """Return a field's path as ASCII of bounded length: names that callers made up come back in it."""
    return ".".join(str(part) for part in parts)[:128].encode("ascii", "backslashreplace").decode("ascii")


def _errors_of_time(moment: datetime, now: datetime, max_future_seconds: float) -> list[dict[str, str]]:
    if moment > now + timedelta(seconds=max_future_seconds):
        return [
            {"path": "event_timestamp", "message": f"lies more than {max_future_seconds:g} s after {now.isoformat()}"}
        ]
    if moment < _EARLIEST:
        return [{"path": "event_timestamp", "message": f"lies before {_EARLIEST.date()}"}]
    return []


class EventLog:
    """The feedback folder of a shop: appends durably, once per `event_id`, and knows each shopper's newest events."""

    def __init__(self, settings: Settings) -> None:
        """Read the newest days that are there; a torn last line is cut off."""
        self.folder = settings.home.absolute() / "landing" / "feedback" / "events"
        self.folder.mkdir(parents=True, exist_ok=True)
        self._days_held = settings.serving.feedback_days
        self._shoppers_held = settings.serving.session_users
        self._events_held = settings.features.history_length
        self._files: dict[str, _Followed] = {}
        self._recent: OrderedDict[tuple[str, str], deque[RecentEvent]] = OrderedDict()
        self._writing = threading.Lock()  # held over fsync
        self._reading = threading.Lock()  # held for microseconds: answers wait for this one only
        with self._writing, self._alone():
            self._follow(cut_torn=True)

    def append(self, rows: Sequence[dict[str, Any]]) -> Appended:
        """Put canonical rows on disk, then into the shoppers' newest events; known ids count as duplicates.

        Raises:
            OSError: the disk refuses; nothing of the request was kept.
        """
        with self._writing, self._alone():
            by_file: dict[str, list[dict[str, Any]]] = {}
            for row in rows:
                by_file.setdefault(f"{row['event_timestamp'][:10]}.jsonl", []).append(row)
            self._follow(also=by_file, cut_torn=True)
            fresh: dict[str, list[dict[str, Any]]] = {}
            in_request: set[str] = set()
            for name, candidates in by_file.items():
                for row in candidates:
                    if row["event_id"] not in in_request and not self._is_known(row["event_id"]):
                        in_request.add(row["event_id"])
                        fresh.setdefault(name, []).append(row)
            self._write(fresh)
            for name, written in fresh.items():
                self._remember(self._files[name], written)
            self._forget_old_days()
        accepted = sum(len(written) for written in fresh.values())
        return Appended(accepted, len(rows) - accepted)

    def follow(self) -> None:
        """Take in what other processes appended since."""
        with self._writing:
            self._follow(cut_torn=False)
            self._forget_old_days()

    def recent(self, *, user_id: str | None = None, session_id: str | None = None) -> list[RecentEvent]:
        """Return the newest events of a user or of a session, oldest first, each once."""
        with self._reading:
            events = {
                event.event_id: event
                for key in (("user", user_id), ("session", session_id))
                if key[1] is not None
                for event in self._recent.get((key[0], key[1]), ())
            }
        return sorted(events.values(), key=lambda event: event.timestamp_us)

    # -- files

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        # The operating system lets go of the lock when its holder dies.
        descriptor = os.open(self.folder.parent / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _follow(self, *, also: Sequence[str] | dict[str, Any] = (), cut_torn: bool) -> None:
        """Read on in the newest days and in `also`; `cut_torn` only while no other process can be writing."""
        names = sorted(path.name for path in self.folder.glob("*.jsonl"))
        for name in {*names[-self._days_held :], *also}:
            followed = self._files.setdefault(name, _Followed())
            path = self.folder / name
            if not path.exists():
                continue
            size = path.stat().st_size
            if size > followed.offset:
                with path.open("rb") as stream:
                    stream.seek(followed.offset)
                    text = stream.read()
                whole = text[: text.rfind(b"\n") + 1]
                followed.offset += len(whole)
                self._remember(followed, _parse(whole, name))
            if cut_torn and size > followed.offset:
                log.warning("%s: cut off %d bytes of a line that was never finished.", name, size - followed.offset)
                os.truncate(path, followed.offset)

    def _write(self, fresh: dict[str, list[dict[str, Any]]]) -> None:
        begun: list[tuple[int, int]] = []
        try:
            for name, rows in fresh.items():
                is_new = not (self.folder / name).exists()
                descriptor = os.open(self.folder / name, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
                begun.append((descriptor, self._files[name].offset))
                lines = b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)
                _write_all(descriptor, lines)
                os.fsync(descriptor)
                if is_new:
                    _sync_folder(self.folder)
        except OSError:
            for descriptor, offset in begun:  # whole or not at all, over all its days
                with contextlib.suppress(OSError):
                    os.ftruncate(descriptor, offset)
            raise
        else:
            for name, (descriptor, _) in zip(fresh, begun, strict=True):
                self._files[name].offset = os.fstat(descriptor).st_size
        finally:
            for descriptor, _ in begun:
                os.close(descriptor)

    # -- memory

    def _is_known(self, event_id: str) -> bool:
        return any(event_id in file.event_ids for file in self._files.values())

    def _remember(self, followed: _Followed, rows: Sequence[dict[str, Any]]) -> None:
        followed.event_ids.update(row["event_id"] for row in rows)
        with self._reading:
            for row in rows:
                if row["event_type"] not in HISTORY_TYPES or row.get("item_id") is None:
                    continue
                moment = datetime.fromisoformat(row["event_timestamp"])
                event = RecentEvent(
                    row["event_id"], to_us(moment), row["item_id"], row["event_type"], float(row.get("quantity") or 1)
                )
                for key in (("user", row.get("user_id")), ("session", row.get("session_id"))):
                    if key[1] is not None:
                        self._recent.setdefault((key[0], key[1]), deque(maxlen=self._events_held)).append(event)
                        self._recent.move_to_end((key[0], key[1]))
            while len(self._recent) > self._shoppers_held:
                self._recent.popitem(last=False)

    def _forget_old_days(self) -> None:
        for name in sorted(self._files)[: -self._days_held]:
            del self._files[name]


def to_us(moment: datetime) -> int:
    """Return a moment as microseconds since 1970 UTC, exactly."""
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


def _parse(text: bytes, name: str) -> list[dict[str, Any]]:
    rows = []
    for line in text.splitlines():
        try:
            row = json.loads(line)
            datetime.fromisoformat(row["event_timestamp"])
            if not isinstance(row["event_id"], str) or not isinstance(row["event_type"], str):
                raise TypeError
            rows.append(row)
        except (ValueError, KeyError, TypeError):
            log.warning("%s: skipped a line that is no event; ingest will quarantine it.", name)
    return rows


def _write_all(descriptor: int, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[os.write(descriptor, view) :]


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
