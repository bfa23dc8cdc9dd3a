"""Feedback on a disk that is slow, full, or not there: answers go on, nothing is half written, and it recovers."""

import asyncio
import contextlib
import errno
import json
import os
import resource
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from recflow.serving.feedback import EventLog, commits, erasures_folder, events_folder
from recflow.settings import Settings, load_settings
from tests.serving.feedback_worker import row


def _ids(settings: Settings) -> list[str]:
    files = sorted(events_folder(settings).glob("*.jsonl"))
    return [json.loads(line)["event_id"] for file in files for line in file.read_text().splitlines()]


def _known(log: EventLog, user_id: str = "u") -> list[str]:
    return [event.event_id for event in log.recent(user_id=user_id)]


def _soon(is_true: Callable[[], bool], seconds: float = 10) -> bool:
    deadline = time.monotonic() + seconds
    while not is_true() and time.monotonic() < deadline:
        time.sleep(0.005)
    return is_true()


class SlowDisk:
    """An fsync that waits for the test, and then may fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.is_waiting, self.may_go = threading.Event(), threading.Event()
        self.error: OSError | None = None
        self.syncs = 0
        self._real = os.fsync
        monkeypatch.setattr(os, "fsync", self._fsync)

    def _fsync(self, descriptor: int) -> None:
        self.syncs += 1
        self.is_waiting.set()
        assert self.may_go.wait(20)
        if self.error:
            raise self.error
        self._real(descriptor)


def test_answers_wait_for_no_sync_and_show_nothing_that_may_be_taken_back(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, others = EventLog(settings), EventLog(settings)
    mine.append([row("e1")])
    disk = SlowDisk(monkeypatch)
    disk.error = OSError(errno.EIO, "Input/output error")
    with ThreadPoolExecutor(1) as pool:
        appending = pool.submit(mine.append, [row("e2")])
        assert disk.is_waiting.wait(20)
        assert "e2" in _ids(settings)  # written, but not on disk for good
        began = time.monotonic()
        assert [_known(log) for log in (mine, others)] == [["e1"]] * 2
        assert time.monotonic() - began < 1  # the sync goes on until the test lets it
        disk.may_go.set()
        with pytest.raises(OSError, match="Input/output"):
            appending.result()
    disk.error = None
    assert _ids(settings) == ["e1"]
    assert [_known(log) for log in (mine, others)] == [["e1"]] * 2
    assert others.append([row("e2"), row("e3")]) == (2, 0)
    assert [_known(log) for log in (mine, others)] == [["e1", "e2", "e3"]] * 2


def test_what_waits_together_is_synced_together(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    log = EventLog(settings)
    log.append([row("e0")])
    disk = SlowDisk(monkeypatch)

    async def all_at_once() -> list[Any]:
        first = asyncio.ensure_future(log.append_async([row("e1")]))
        await asyncio.to_thread(disk.is_waiting.wait, 20)
        others = [asyncio.ensure_future(log.append_async([row(f"e{n}"), row(f"e{n - 1}")])) for n in range(2, 17)]
        gone = asyncio.ensure_future(log.append_async([row("gone")]))
        await asyncio.sleep(0)
        gone.cancel()  # its caller left before the write began
        await asyncio.sleep(0)
        disk.may_go.set()
        return await asyncio.gather(first, *others)

    assert asyncio.run(all_at_once()) == [(1, 0)] + [(1, 1)] * 15
    assert disk.syncs == 2
    assert _ids(settings) == [f"e{n}" for n in range(17)]


def test_one_request_that_does_not_fit_fails_alone(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    log = EventLog(settings)
    log.append([row("e0")])
    disk, real = SlowDisk(monkeypatch), os.write

    def nearly_full(descriptor: int, content: bytes) -> int:
        if len(content) > 10_000:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(descriptor, content[: len(content) // 2 + 1])  # and every write is a short one

    monkeypatch.setattr(os, "write", nearly_full)
    with ThreadPoolExecutor(8) as pool:
        first = pool.submit(log.append, [row("e1")])
        assert disk.is_waiting.wait(20)
        large = pool.submit(log.append, [row("large"), row("larger", query="x" * 20_000), row("day", hours=0)])
        small = [pool.submit(log.append, [row(f"e{n}")]) for n in range(2, 6)]
        time.sleep(0.1)
        disk.may_go.set()
        assert [each.result() for each in (first, *small)] == [(1, 0)] * 5
        with pytest.raises(OSError, match="No space"):
            large.result()
    assert sorted(_ids(settings)) == sorted(_known(log)) == [f"e{n}" for n in range(6)]


def test_a_failure_that_is_none_of_the_disk_reaches_the_caller(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = EventLog(settings)
    with pytest.raises(KeyError):
        log.append([{"event_id": "no time"}])
    monkeypatch.setattr(os, "fsync", lambda descriptor: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        log.append([row("e1")])
    monkeypatch.undo()
    log.append([row("e2")])
    assert _known(log) == _ids(settings) == ["e2"]


# -- full


@contextlib.contextmanager
def _small_disk(folder: Path) -> Iterator[Callable[[bool], contextlib.AbstractContextManager[None]]]:
    """Put a small disk at a folder; what is yielded fills it and makes room again."""
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600k", "none", folder], capture_output=True)
    if mounted.returncode == 0:

        @contextlib.contextmanager
        def full() -> Iterator[None]:
            ballast = folder / "ballast"
            with ballast.open("wb", buffering=0) as stream, contextlib.suppress(OSError):
                while True:
                    stream.write(b"x" * 512)
            yield
            ballast.unlink()

        try:
            yield full
        finally:
            subprocess.run(["umount", "--lazy", folder], check=True)  # logs keep a file of theirs mapped
        return

    @contextlib.contextmanager
    def limited() -> Iterator[None]:  # no right to mount: no file of this process may grow
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    yield limited


def test_a_full_disk_refuses_events_keeps_nothing_of_them_and_recovers(tmp_path: Path) -> None:
    with _small_disk(tmp_path / "disk") as full:
        settings = load_settings(home=tmp_path / "disk" / "var")
        log, other = EventLog(settings), EventLog(settings)
        before = [row(f"e{n}") for n in range(20)]
        log.append(before)
        files = {file: file.read_bytes() for file in (settings.home / "landing").rglob("*.jsonl")}
        new_day = row("new day", event_timestamp="2011-04-03T00:00:00.000000+00:00", query="x" * 5_000)
        with full():
            for each in (log, other):
                with pytest.raises(OSError, match=r"No space|too large"):
                    each.append([new_day, row("more", query="x" * 5_000)])
                with pytest.raises(OSError, match=r"No space|too large"):
                    each.forget("u")
                assert {file: file.read_bytes() for file in files} == files
                assert not (events_folder(settings) / "2011-04-03.jsonl").exists()
                assert _known(each) == [event["event_id"] for event in before]
        assert log.append([row("more"), new_day, before[0]]) == (2, 1)
        assert _known(other)[-2:] == ["more", "new day"]
        assert _known(EventLog(settings)) == _known(other)
        log.forget("u")
        assert list(erasures_folder(settings).glob("*.jsonl"))


def test_a_worker_starts_on_a_disk_that_cannot_be_written_and_takes_events_when_it_can(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    EventLog(settings).append([row("e1")])
    (events_folder(settings).parent / ".commits").unlink()
    real = os.open

    def read_only(path: Any, flags: int, *more: Any) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR):
            raise OSError(errno.EROFS, "Read-only file system")
        return real(path, flags, *more)

    monkeypatch.setattr(os, "open", read_only)
    log = EventLog(settings)
    assert _known(log) == ["e1"]
    for refused in (lambda: log.append([row("e2")]), lambda: log.forget("u"), log.follow):
        with pytest.raises(OSError, match="Read-only"):
            refused()
    monkeypatch.undo()
    log.follow()
    EventLog(settings).append([row("e2")])
    assert _known(log) == ["e1", "e2"]


# -- far behind


def test_a_backlog_is_taken_in_beside_the_answers(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    log, other = EventLog(settings), EventLog(settings)
    for part in range(4):
        other.append([row(f"{part}-{n}", query="x" * 400, hours=part) for n in range(1000)])
    other.append([row("last", user_id="v")])
    started: list[threading.Thread] = []
    monkeypatch.setattr(threading.Thread, "start", lambda thread: started.append(thread))
    assert _known(log, "v") == []  # 2 MB: not while somebody waits for an answer
    assert _known(log, "v") == []
    monkeypatch.undo()
    assert len(started) == 1  # not one for every answer
    started[0].start()
    assert _soon(lambda: _known(log, "v") == ["last"])
    assert _known(log) == [f"3-{n}" for n in range(600, 1000)]


def test_a_worker_that_missed_more_than_the_ring_holds_misses_nothing(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commits, "_CHANGES", 8)
    monkeypatch.setattr(commits, "_AT_ONCE", 3)
    log, other = EventLog(settings), EventLog(settings)
    rows = [row(f"e{n}", event_timestamp=f"2011-03-0{n % 7 + 1}T00:00:{n:02d}+00:00") for n in range(30)]
    for each in rows[:20]:
        other.append([each])
    other.forget("w")
    by_time = [each["event_id"] for each in sorted(rows[:20], key=lambda each: each["event_timestamp"])]
    assert _soon(lambda: _known(log) == by_time)
    assert log.append([rows[0]]) == (0, 1)
    other.append(rows[20:])  # seven files in one turn: more than fit at once
    assert _soon(lambda: len(_known(log)) == 30)
    for each in (log, other):
        assert each.append(rows) == (0, 30)


def test_a_folder_that_is_taken_away_is_made_again(settings: Settings) -> None:
    log, other = EventLog(settings), EventLog(settings)
    log.append([row("e1")])
    shutil.rmtree(settings.home / "landing")
    assert log.append([row("e2")]) == (1, 0)
    other.follow()
    assert other.append([row("e3")]) == (1, 0)
    assert _ids(settings) == ["e2", "e3"]
    assert "e3" in _known(log)


def test_a_file_that_was_edited_by_hand_is_read_again(settings: Settings) -> None:
    log, other = EventLog(settings), EventLog(settings)
    log.append([row("e1"), row("e2")])
    file = events_folder(settings) / "2011-04-02.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    aside = file.with_name(".edited")
    aside.write_text(lines[1] + json.dumps(row("by hand")) + "\n")
    aside.replace(file)
    assert log.append([row("by hand"), row("e1"), row("e3")]) == (2, 1)
    assert _ids(settings) == ["e2", "by hand", "e1", "e3"]
    assert sorted(_known(other)) == sorted(_known(log)) == ["by hand", "e1", "e2", "e3"]
