"""What all processes of a shop have committed, taken into one worker's memory.

Answers read memory, and before they do they take in what is new: a look at a counter and, where it was raised, a read
of the new lines. They never wait for a disk to sync: the lock that they need is held while a piece is taken in, and
not while anything is written. A backlog is taken in beside them, in pieces.
"""

import contextlib
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, TypeVar

import msgspec

from recflow.console import log
from recflow.privacy import spellings
from recflow.serving.feedback.commits import Change, Files, Key, Ring, Turn
from recflow.serving.feedback.memory import EventIds, Line, Moment, RecentEvent, Shoppers, to_us
from recflow.settings import Settings

Shape = TypeVar("Shape")

_INLINE: Final = 5 << 18  # bytes that an answer takes in itself: the largest request; 1,000 usual events take 4 ms
_INLINE_FILES: Final = 64  # of late events; opening one takes 10 us
_PIECE: Final = 1 << 16  # bytes taken in before answers get their turn: 1 ms
_SWEPT_AT_ONCE: Final = 500  # shoppers: 1 ms
_NEVER: Final = -1  # a generation that there is not


class _Erasure(msgspec.Struct):
    """A line of an erasures file; one that the pipeline is done with names nobody."""

    requested_at: Moment
    user_id: str | None = None


_LINES: Final = msgspec.json.Decoder(Line)
_ERASURES: Final = msgspec.json.Decoder(_Erasure)


@dataclass
class _Followed:
    """A file as far as it was taken in."""

    inode: int
    end: int = 0  # bytes; always behind a line's end
    known_to: int = 0  # bytes; lines before may have been taken in before the file was written anew
    ids: EventIds = field(default_factory=EventIds)


class Follower:
    """One worker's knowledge of the shop's feedback; any thread may ask."""

    def __init__(self, files: Files, settings: Settings) -> None:
        """Take in the newest days that are there; a torn last line is cut off."""
        self._files = files
        self._days_held = settings.serving.feedback_days
        self._shoppers = Shoppers(
            shoppers_held=settings.serving.session_users,
            events_held=settings.features.history_length,
            shown_held=settings.serving.shown_held,
        )
        self._days: dict[str, _Followed] = {}  # of events, the newest ones
        self._older: OrderedDict[str, _Followed] = OrderedDict()  # those written to lately, for their ids
        self._erasures: dict[str, _Followed] = {}
        self._ring: Ring | None = None
        self._seen = _NEVER
        self._is_following = False
        self._writing = threading.Lock()  # held over fsync
        self._reading = threading.Lock()  # held while a piece is taken in; answers wait for this one only
        try:
            with self.turn():
                pass
        except OSError as error:  # recommendations don't need a disk that can be written
            log.error("The feedback folder can't be written: %s. Events are refused until it can.", error)
            self._follow_to(self._listed())

    # -- what is known

    def recent(self, user_id: str | None, session_id: str | None) -> list[RecentEvent]:
        """Return the newest events of a user or of a session, oldest first, each once."""
        self.catch_up()
        with self._reading:
            return self._shoppers.recent(user_id, session_id)

    def shown(self, user_id: str | None, session_id: str | None, since_us: int) -> dict[str, int]:
        """Return how often each item was shown to a user or in a session, at or after a moment (microseconds, UTC)."""
        self.catch_up()
        with self._reading:
            return self._shoppers.shown(user_id, session_id, since_us)

    def queries(self, user_id: str | None, session_id: str | None) -> list[str]:
        """Return what a user or a session searched for lately, the newest first, each once."""
        self.catch_up()
        with self._reading:
            return self._shoppers.queries(user_id, session_id)

    def newest_us(self, user_id: str) -> int | None:
        """Return when the newest thing known of a user happened (microseconds, UTC)."""
        with self._reading:
            return max(
                (moment for each in spellings(user_id) if (moment := self._shoppers.newest_us(each)) is not None),
                default=None,
            )

    def known(self, marks: set[int]) -> set[int]:
        """Return which of these hashes are those of events that there are."""
        with self._reading:
            files = (*self._days.values(), *self._older.values())
            return {mark for followed in files for mark in followed.ids.among(marks)}

    # -- keeping up

    def catch_up(self) -> None:
        """Take in what any process committed since; where that is much, have it taken in beside the answers."""
        ring = self._ring
        if ring is None or ring.generation == self._seen:
            return
        with self._reading:
            found = ring.since(self._seen) if ring is self._ring else None
            if found and self._is_little(found[1]):
                try:
                    for key, change in found[1].items():
                        self._read_on(key, change, _INLINE)
                    self._seen = max(self._seen, found[0])
                except OSError as error:  # answers go on with what is known
                    log.error("Feedback can't be read on: %s", error)
            elif not self._is_following:
                self._is_following = True
                threading.Thread(target=self._follow_beside, name="follow", daemon=True).start()

    def follow(self) -> None:
        """Take in what any process committed since, however much; finish what one of them died in.

        What was erased is taken out of memory for good, too: until then it is only left out of what is returned.
        """
        ring = self._ring
        if ring is None or ring.is_begun or ring.inode != self._files.commits_inode():
            with self.turn():
                pass
        else:
            self.follow_ring()
        with self._reading:
            unswept = self._shoppers.unswept()
        for first in range(0, len(unswept), _SWEPT_AT_ONCE):
            with self._reading:
                self._shoppers.sweep(unswept[first : first + _SWEPT_AT_ONCE])
            time.sleep(0)  # answers go first

    def follow_ring(self) -> bool:
        """Take in all that was committed, piece by piece; return False where the ring doesn't reach back."""
        ring = self._ring
        while ring is not None and ring.generation != self._seen:
            found = ring.since(self._seen)
            if found is None:
                return False
            self._follow_to(found[1])
            with self._reading:
                if ring is self._ring:
                    self._seen = max(self._seen, found[0])
        return True

    @contextlib.contextmanager
    def turn(self) -> Iterator[Turn]:
        """Wait for this process's turn to write; when it comes, all that others committed is taken in.

        Raises:
            OSError: the disk refuses.
        """
        with self._writing, self._files.turn() as turn:
            if self._ring is None or self._ring.inode != turn.inode:
                with self._reading:
                    self._ring, self._seen = turn.ring(), _NEVER
            if turn.is_unsettled or not self.follow_ring():
                changes = self._listed(turn)
                self._follow_to(changes)
                if turn.is_unsettled:
                    turn.settle({key: change._replace(start=change.end) for key, change in changes.items()})
                with self._reading:
                    self._seen = self._ring.generation
            yield turn

    def bring_up(self, turn: Turn, key: Key) -> None:
        """Make sure that a file that is written next is known to its end, whoever had their hands in it."""
        state, followed = self._files.state(key), self._followed(key)
        if state is None or (followed and (followed.end, followed.inode) == (state.end, state.inode)):
            return
        state = turn.cut_torn(key) or state
        if followed is None and key.kind == "events" and not self._is_held(key.day):  # only its ids matter
            older = _Followed(state.inode, state.end)
            text = self._files.read(key, state.inode, 0, state.end) or b""
            older.ids.add(hash(line.event_id) for line in _parse(text, _LINES, key))
            with self._reading:
                self._older[key.day] = older
        else:
            self._follow_to({key: state})

    def let_go(self) -> None:
        """Let go of the older days that were written to longest ago."""
        with self._reading:
            while len(self._older) > self._days_held:
                self._older.popitem(last=False)

    # -- taking in

    def _listed(self, turn: Turn | None = None) -> dict[Key, Change]:
        """Return the files that count, as they are now; unfinished lines are cut off where a turn is given."""
        keys = [Key("erasures", day) for day in self._files.days("erasures")]
        keys += [Key("events", day) for day in self._files.days("events")[-self._days_held :]]
        states = {key: turn.cut_torn(key) if turn else self._files.state(key) for key in keys}
        return {key: state for key, state in states.items() if state}

    def _follow_beside(self) -> None:
        try:
            if not self.follow_ring():
                with self.turn():
                    pass
        except OSError as error:
            log.error("Feedback can't be read on: %s", error)
        finally:
            self._is_following = False

    def _follow_to(self, changes: Mapping[Key, Change]) -> None:
        for key, change in changes.items():
            is_done = False
            while not is_done:
                with self._reading:
                    is_done = self._read_on(key, change, _PIECE)
                if not is_done:
                    time.sleep(0)  # answers go first

    def _read_on(self, key: Key, change: Change, limit: int) -> bool:
        """Take in a file's next lines, about `limit` bytes; return whether that was all of the change."""
        followed = self._followed(key) or self._begun(key, change.inode)
        if followed is None:  # an older day: what is new in it counts, the file itself isn't kept up with
            text = self._files.read(key, change.inode, change.start, change.end)
            self._take(key, text or b"", None)
            return True
        if followed.inode != change.inode:  # written anew: all of it
            followed.inode, followed.end, followed.known_to, followed.ids = change.inode, 0, change.end, EventIds()
        if followed.end >= change.end:
            return True
        text = self._files.read(key, change.inode, followed.end, min(change.end, followed.end + limit))
        if text and b"\n" not in text:  # one line longer than a piece
            text = self._files.read(key, change.inode, followed.end, change.end)
        whole = text[: text.rfind(b"\n") + 1] if text else b""
        if not whole:  # replaced meanwhile: a newer change says so
            return True
        self._take(key, whole, followed)
        followed.end += len(whole)
        return followed.end >= change.end

    def _take(self, key: Key, text: bytes, followed: _Followed | None) -> None:
        if key.kind == "erasures":
            until: dict[str, int] = {}
            for request in _parse(text, _ERASURES, key):
                for user_id in spellings(request.user_id) if request.user_id is not None else ():
                    until[user_id] = max(to_us(request.requested_at), until.get(user_id, 0))
            self._shoppers.erase(until)
            return
        lines = _parse(text, _LINES, key)
        if followed:
            followed.ids.add([hash(line.event_id) for line in lines])
        # Of an older day two threads may take in the same lines.
        self._shoppers.take(lines, again=followed is None or followed.end < followed.known_to)

    def _followed(self, key: Key) -> _Followed | None:
        if key.kind == "erasures":
            return self._erasures.get(key.day)
        return self._days.get(key.day) or self._older.get(key.day)

    def _begun(self, key: Key, inode: int) -> _Followed | None:
        """Start to follow a file that wasn't known, unless it is of an older day than those held."""
        if key.kind == "erasures":
            return self._erasures.setdefault(key.day, _Followed(inode))
        if not self._is_held(key.day):
            return None
        if len(self._days) >= self._days_held:
            del self._days[min(self._days)]
        return self._days.setdefault(key.day, _Followed(inode))

    def _is_held(self, day: str) -> bool:
        return len(self._days) < self._days_held or day >= min(self._days)

    def _is_little(self, changes: Mapping[Key, Change]) -> bool:
        ahead = 0
        for key, change in changes.items():
            followed = self._followed(key)
            start = change.start if followed is None else followed.end if followed.inode == change.inode else 0
            ahead += change.end - start
        return ahead <= _INLINE and len(changes) <= _INLINE_FILES


def _parse(text: bytes, decoder: "msgspec.json.Decoder[Shape]", key: Key) -> list[Shape]:
    try:
        return decoder.decode_lines(text)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        pass
    found = []
    for line in text.split(b"\n"):
        try:
            found += [decoder.decode(line)] if line.strip() else []
        except (msgspec.MsgspecError, UnicodeDecodeError):
            log.warning("%s/%s: skipped a line that is none of %s.", key.kind, key.day, key.kind)
    return found
