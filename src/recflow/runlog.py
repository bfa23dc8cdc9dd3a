"""The record of every step that ran: when, for which days, how long, how much memory, how it ended.

One JSON line a run in `<home>/runs/steps.jsonl`; the demo's summary and `recflow bench` read it.
"""

import contextlib
import json
import os
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from recflow.console import log

_SAMPLE_SECONDS = 0.05


@contextlib.contextmanager
def recorded(home: Path, step: str, subject: str) -> Iterator[dict[str, Any]]:
    """Time a step and watch its memory; what the caller puts into the given dict is kept with the record.

    Peak memory is the process's own resident set (MiB), sampled while the step runs.
    """
    facts: dict[str, Any] = {}
    started, clock = datetime.now(UTC), time.monotonic()
    stop, peak = threading.Event(), [0]

    def watch() -> None:
        process = psutil.Process()
        while True:
            peak[0] = max(peak[0], process.memory_info().rss)
            if stop.wait(_SAMPLE_SECONDS):
                return

    watcher = threading.Thread(target=watch, daemon=True, name=f"memory of {step}")
    watcher.start()
    outcome = "failed"
    log.info("%s %s ...", step, subject)
    try:
        yield facts
        outcome = "done"
    finally:
        stop.set()
        watcher.join()
        seconds = time.monotonic() - clock
        record = {
            "step": step,
            "subject": subject,
            "outcome": outcome,
            "started": started.isoformat(timespec="seconds"),
            "seconds": round(seconds, 3),
            "peak_mib": round(peak[0] / 2**20),
            "pid": os.getpid(),
            **facts,
        }
        _append(home / "runs" / "steps.jsonl", record)
        log.info("%s %s: %s in %.1f s, peak %d MiB", step, subject, outcome, seconds, record["peak_mib"])


def read_records(home: Path) -> list[dict[str, Any]]:
    """Return all records, oldest first; a line that a full disk cut short is passed over."""
    file = home / "runs" / "steps.jsonl"
    records = []
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else []:
        with contextlib.suppress(json.JSONDecodeError):
            records.append(json.loads(line))
    return records


def _append(file: Path, record: dict[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    line = json.dumps(record, default=str).encode() + b"\n"
    with file.open("a+b") as stream:
        if stream.tell():
            stream.seek(-1, os.SEEK_END)
            line = line if stream.read() == b"\n" else b"\n" + line  # the last run was cut off in its own
        stream.write(line)  # one write below PIPE_BUF: lines don't interleave
