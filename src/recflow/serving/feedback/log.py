"""The feedback of a shop as one worker sees it: appends durably, once per `event_id`; knows the shoppers at once.

Any thread or task may append. One thread writes: what waits at the same time goes to disk in one write and one fsync a
file, for the fsync is what costs. It takes in what other processes committed before it writes, and so knows all ids.
"""

import asyncio
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import msgspec

from recflow.serving.feedback.commits import Files, Key
from recflow.serving.feedback.follower import Follower
from recflow.serving.feedback.judging import SOURCE
from recflow.serving.feedback.memory import RecentEvent
from recflow.settings import Settings


class Appended(NamedTuple):
    """What became of the events of one request."""

    accepted: int
    duplicates: int


class _Encoded(NamedTuple):
    """An event on its way to disk."""

    day: str  # YYYY-MM-DD, UTC
    mark: int  # hash of the event id
    line: bytes


class _Request(NamedTuple):
    events: list[_Encoded]
    result: "Future[Appended]"


class EventLog:
    """The feedback folder of a shop; one object a process."""

    def __init__(self, settings: Settings) -> None:
        """Take in the newest days that are there; a torn last line is cut off."""
        self._follower = Follower(Files(settings), settings)
        self._waiting: list[_Request] = []
        self._is_flushing = False
        self._queueing = threading.Lock()  # held for microseconds
        self._thread = ThreadPoolExecutor(1, "events")

    def append(self, rows: Sequence[dict[str, Any]]) -> Appended:
        """Put canonical rows on disk; known ids count as duplicates. What waits at the same time is written together.

        Raises:
            OSError: the disk refuses; nothing of the request was kept.
        """
        return self._submit(rows).result()

    async def append_async(self, rows: Sequence[dict[str, Any]]) -> Appended:
        """Do as `append` does without holding up the loop.

        Raises:
            OSError: the disk refuses; nothing of the request was kept.
        """
        return await asyncio.wrap_future(self._submit(rows))

    def forget(self, user_id: str, *, now: datetime | None = None) -> datetime:
        """Ask for a user's erasure, durably, and let go of the user in every worker; return the moment (UTC).

        What happened up to that moment counts no more, whenever it comes in; what happens later counts. The moment is
        `now` or, where the shopper's clock is ahead, that of the user's newest event.

        Raises:
            OSError: the disk refuses; nothing was forgotten.
        """
        with self._follower.turn() as turn:
            newest = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=self._follower.newest_us(user_id) or 0)
            moment = max(newest, (now or datetime.now(UTC)).astimezone(UTC))
            key = Key("erasures", moment.date().isoformat())
            self._follower.bring_up(turn, key)
            row = {"user_id": user_id, "requested_at": moment.isoformat(timespec="microseconds"), "source": SOURCE}
            turn.append({key: msgspec.json.encode(row) + b"\n"})
        self._follower.follow_ring()
        return moment

    def recent(self, *, user_id: str | None = None, session_id: str | None = None) -> list[RecentEvent]:
        """Return the newest events of a user or of a session, oldest first, each once: of all workers, up to now."""
        return self._follower.recent(user_id, session_id)

    def shown(self, *, user_id: str | None = None, session_id: str | None = None, since_us: int) -> dict[str, int]:
        """Return how often each item was shown to a user or in a session, at or after a moment (microseconds, UTC)."""
        return self._follower.shown(user_id, session_id, since_us)

    def queries(self, *, user_id: str | None = None, session_id: str | None = None) -> list[str]:
        """Return what a user or a session searched for lately, the newest first, each once."""
        return self._follower.queries(user_id, session_id)

    def catch_up(self) -> None:
        """Take in what any worker committed: what `recent` and `shown` do first. No news cost 0.1 us."""
        self._follower.catch_up()

    def follow(self) -> None:
        """Take in what any worker committed, however much, and tidy up: to be called every few seconds, off the loop.

        Raises:
            OSError: the disk refuses.
        """
        self._follower.follow()

    def close(self) -> None:
        """Finish what is being written."""
        self._thread.shutdown()

    # -- the writing thread

    def _submit(self, rows: Sequence[dict[str, Any]]) -> "Future[Appended]":
        events = [
            _Encoded(row["event_timestamp"][:10], hash(row["event_id"]), msgspec.json.encode(row) + b"\n")
            for row in rows
        ]
        request = _Request(events, Future())
        with self._queueing:
            self._waiting.append(request)
            is_first, self._is_flushing = not self._is_flushing, True
        if is_first:
            self._thread.submit(self._flush)
        return request.result

    def _flush(self) -> None:
        while True:
            with self._queueing:
                waiting, self._waiting = self._waiting, []
                if not waiting:
                    self._is_flushing = False
                    return
            # A caller who left before the write began is not written for.
            if requests := [request for request in waiting if request.result.set_running_or_notify_cancel()]:
                self._commit(requests)

    def _commit(self, requests: list[_Request]) -> None:
        """Write what waits together; where the disk refuses that, each by itself: a small one may still fit."""
        try:
            results = self._write([request.events for request in requests])
        except OSError as error:
            if len(requests) == 1:
                requests[0].result.set_exception(error)
            else:
                for request in requests:
                    self._commit([request])
        except BaseException as error:  # nobody waits for ever
            for request in requests:
                request.result.set_exception(error)
        else:
            for request, result in zip(requests, results, strict=True):
                request.result.set_result(result)

    def _write(self, requests: list[list[_Encoded]]) -> list[Appended]:
        with self._follower.turn() as turn:
            for day in sorted({event.day for events in requests for event in events}):
                self._follower.bring_up(turn, Key("events", day))
            known = self._follower.known({event.mark for events in requests for event in events})
            lines: dict[Key, list[bytes]] = {}
            results = []
            for events in requests:
                accepted = 0
                for event in events:
                    if event.mark not in known:
                        known.add(event.mark)
                        accepted += 1
                        lines.setdefault(Key("events", event.day), []).append(event.line)
                results.append(Appended(accepted, len(events) - accepted))
            if lines:
                turn.append({key: b"".join(parts) for key, parts in lines.items()})
        self._follower.let_go()
        return results
