"""Programs that recflow starts beside itself: each in a session of its own, and surely ended with all its children."""

import contextlib
import json
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
from pydantic import BaseModel, SecretStr

from recflow.console import log
from recflow.settings import Settings

_POLL_SECONDS = 0.1
_PLAIN_EVERY_SECONDS = 30.0
_ERROR_LINE = re.compile(r"[\w.]+(Error|Exception): ")  # the last line of a traceback


def settings_environment(settings: Settings) -> dict[str, str]:
    """Return the `RECFLOW_*` variables that give another process these settings; paths become absolute.

    Only what was set by somebody: some steps tell a default from a choice.
    """
    return {**dict(_variables(settings, "RECFLOW_")), "RECFLOW_HOME": str(settings.home.absolute())}


def _variables(section: BaseModel, prefix: str) -> Iterator[tuple[str, str]]:
    for name in type(section).model_fields:
        value, variable = getattr(section, name), prefix + name.upper()
        if isinstance(value, BaseModel):
            yield from _variables(value, variable + "__")
        elif name not in section.model_fields_set or value is None:
            continue
        elif isinstance(value, Path):
            yield variable, str(value.absolute())
        elif isinstance(value, SecretStr):
            yield variable, value.get_secret_value()
        else:
            plain = section.model_dump(mode="json", include={name})[name]
            yield variable, json.dumps(plain) if isinstance(plain, list | dict) else str(plain)


def end_session(session: int, *, grace_seconds: float = 10.0) -> None:
    """End every process of a session: asked first, killed after `grace_seconds`.

    A session outlives its leader and also holds children that made process groups of their own, as Airflow's tasks
    do; that is why neither the leader's pid nor its group is enough.
    """
    for number, seconds in ((signal.SIGTERM, grace_seconds), (signal.SIGKILL, grace_seconds)):
        members = _members(session)
        for member in members:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.send_signal(number)
        deadline = time.monotonic() + seconds
        while _members(session) and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)
        if not _members(session):
            return
    log.error("Session %d: processes are left after SIGKILL: %s.", session, [each.pid for each in _members(session)])


def _members(session: int) -> list[psutil.Process]:
    """Return the living processes of a session; zombies wait for their parent and count as dead."""
    members = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE:
                members.append(process)
    return members


def free_port() -> int:
    """Return a port of the loopback that nothing listens at just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def is_port_free(host: str, port: int) -> bool:
    """Return whether nothing listens at a port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # what a closed one left isn't somebody
        try:
            probe.bind((host, port))
        except OSError:
            return False
        return True


@contextlib.contextmanager
def working(what: str) -> Iterator[Callable[[str], None]]:
    """Show that something is at work: a spinner on a terminal, a line now and then elsewhere.

    What is yielded takes the new words for what is being done; call it at least every few seconds.
    """
    if sys.stderr.isatty():
        from rich.console import Console

        with Console(stderr=True).status(what) as status:
            yield lambda words: status.update(words)
        return
    started = last = time.monotonic()

    def say(words: str) -> None:
        nonlocal last
        if time.monotonic() - last >= _PLAIN_EVERY_SECONDS:
            last = time.monotonic()
            log.info("  %s (%.0f s)", words, last - started)

    yield say


def last_line(file: Path) -> str:
    """Return the last line of a log that names an error, else the last that says anything."""
    lines = [line.strip() for line in file.read_text("utf-8", errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if _ERROR_LINE.match(line)]
    return (errors or lines or ["it wrote nothing."])[-1]
