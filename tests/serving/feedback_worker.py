"""A process that appends and reads as a worker of the endpoint does; the tests tell it what to do over a pipe."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from recflow.serving.feedback import EventLog
from recflow.serving.feedback.commits import Turn
from recflow.settings import load_settings

_CONTEXT = get_context("spawn")


def row(event_id: str, *, hours: float = 12, **more: Any) -> dict[str, Any]:
    """Return a canonical row of 2 April 2011."""
    moment = datetime(2011, 4, 2, int(hours), int(hours % 1 * 60), tzinfo=UTC)
    return {
        "event_id": event_id, "event_timestamp": moment.isoformat(timespec="microseconds"), "event_type": "view",
        "user_id": "u", "item_id": "A", "source": "storefront",
    } | more  # fmt: skip


class Worker:
    """The tests' side of the process."""

    def __init__(self, home: Path) -> None:
        self._pipe, theirs = _CONTEXT.Pipe()
        self.process = _CONTEXT.Process(target=_serve, args=(home, theirs), daemon=True)
        self.process.start()
        theirs.close()

    def ask(self, command: str, *arguments: Any) -> Any:
        self.tell(command, *arguments)
        return self.hear()

    def tell(self, command: str, *arguments: Any) -> None:
        self._pipe.send((command, *arguments))

    def hear(self) -> Any:
        """Return the next answer.

        Raises:
            EOFError: the process is gone.
        """
        try:
            return self._pipe.recv()
        except ConnectionResetError as error:
            raise EOFError from error

    def stop(self) -> None:
        self.process.kill()
        self.process.join()
        self.process.close()
        self._pipe.close()


@contextmanager
def workers(home: Path, count: int) -> Iterator[list[Worker]]:
    """Start processes, wait until all are up, and end them on leaving."""
    started = [Worker(home) for _ in range(count)]
    try:
        for worker in started:
            assert worker.ask("recent", "nobody") == []
        yield started
    finally:
        for worker in started:
            worker.stop()


def _serve(home: Path, pipe: Connection) -> None:
    log = EventLog(load_settings(home=home))
    commands: dict[str, Callable[..., Any]] = {
        "recent": lambda user_id: [event.event_id for event in log.recent(user_id=user_id)],
        "shown": lambda user_id: log.shown(user_id=user_id, since_us=0),
        "append": lambda rows: log.append(rows),
        "forget": lambda user_id, now: log.forget(user_id, now=now),
        "die": _die,
    }
    while True:
        command, *arguments = pipe.recv()
        if command == "append for ever":
            _append_for_ever(log, pipe, *arguments)
        pipe.send(commands[command](*arguments))


def _append_for_ever(log: EventLog, pipe: Connection, name: str) -> None:
    """Acknowledge request by request from two threads; every other event is sent by others as well."""
    sending = threading.Lock()

    def go(part: int) -> None:
        for number in range(1_000_000):
            ids = [f"{name}-{part}-{number}", f"shared-{number}"]
            log.append([row(event_id, user_id=name) for event_id in ids])
            with sending:
                pipe.send(ids)

    for part in range(2):
        threading.Thread(target=go, args=(part,), daemon=True).start()
    signal.pause()


def _die(point: str) -> bool:
    """Make sure that the next append kills this process at a point of its way."""

    def kill(*_: Any, **__: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    write = os.write

    def write_most(descriptor: int, content: bytes) -> None:
        write(descriptor, content[:-10])
        kill()

    if point == "in the middle of the write":
        os.write = write_most  # type: ignore[assignment]
    elif point == "before the sync":
        os.fsync = kill
    elif point == "before it is announced":
        Turn.announce = kill  # type: ignore[method-assign]
    else:
        announce = Turn.announce

        def announce_and_die(*arguments: Any) -> None:
            announce(*arguments)
            kill()

        Turn.announce = announce_and_die  # type: ignore[method-assign]
    return True
