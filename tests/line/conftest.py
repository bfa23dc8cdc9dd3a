"""One server of mortal steps for a session, and one home for it to work on, put back after each module."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from recflow.serving.feedback import EventLog
from recflow.settings import Settings
from tests.line_run import LATER, LineRun, walked

CHECKOUT = Path(__file__).resolve().parents[2]
USERS = ["12346.0", "12349.0", "12351.0", "a-stranger"]
FORGOTTEN = USERS[2]


@dataclass(frozen=True)
class Ground:
    """The session's home at its own place, which MLflow and Feast know by its path, and the server that works on it."""

    run: LineRun
    server: "subprocess.Popen[str]"
    kept: Path  # copies of the home by name

    @property
    def settings(self) -> Settings:
        """Return the home's settings."""
        return self.run.settings

    def keep(self, name: str) -> None:
        """Copy the home as it is now."""
        shutil.copytree(self.settings.home, self.kept / name)

    def put_back(self, name: str) -> None:
        """Bring the home to what it was when it was kept."""
        shutil.rmtree(self.settings.home)
        shutil.copytree(self.kept / name, self.settings.home)
        for signal_file in ("held", "go"):
            (self.settings.home.parent / signal_file).unlink(missing_ok=True)

    def start(self, ask: str, **request: Any) -> None:
        """Ask the server for something without waiting for its answer."""
        assert self.server.stdin is not None
        days = [str(LATER.start), str(LATER.end)]
        self.server.stdin.write(json.dumps({"ask": ask, "days": days, "users": USERS, **request}) + "\n")
        self.server.stdin.flush()

    def answer(self) -> dict[str, Any]:
        """Return the server's answer to what was asked last."""
        assert self.server.stdout is not None
        return dict(json.loads(self.server.stdout.readline()))

    def ask_to_forget(self) -> None:
        """Leave a request for one of the users, as the endpoint does."""
        log = EventLog(self.settings)
        log.forget(FORGOTTEN, now=datetime(2012, 1, 1, tzinfo=UTC))
        log.close()

    def ask(self, ask: str, **request: Any) -> dict[str, Any]:
        """Ask the server for something that has to succeed; return the answer."""
        self.start(ask, **request)
        answer = self.answer()
        assert "error" not in answer, answer["error"]
        return answer

    def held(self) -> int:
        """Wait until the step that was started with `hold_at` stands still; return its process id."""
        file = self.settings.home.parent / "held"
        deadline = time.monotonic() + 60
        while not file.exists() or not file.read_text():
            assert time.monotonic() < deadline, "the step never came so far"
            time.sleep(0.02)
        return int(file.read_text())

    def let_go(self) -> dict[str, Any]:
        """Let the held step go on; return its answer."""
        (self.settings.home.parent / "go").touch()
        answer = self.answer()
        for signal_file in ("held", "go"):
            (self.settings.home.parent / signal_file).unlink(missing_ok=True)
        return answer


@pytest.fixture(scope="session")
def mortal(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[tuple[LineRun, subprocess.Popen[str]]]":
    """Return the session's line, and the server that runs steps on its home."""
    run = walked(tmp_path_factory)
    command = [sys.executable, "-m", "tests.line.mortal", str(run.settings.home), str(run.feed)]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RECFLOW_")}
    server = subprocess.Popen(
        command, env=kept | {"OMP_NUM_THREADS": "1"}, cwd=CHECKOUT, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    with server:
        yield run, server
        assert server.stdin is not None
        server.stdin.close()


@pytest.fixture(scope="module")
def ground(
    mortal: "tuple[LineRun, subprocess.Popen[str]]", tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Ground]:
    """Return the home as the line left it; it is that again when the module's tests are done."""
    ground = Ground(*mortal, kept=tmp_path_factory.mktemp("kept"))
    ground.keep("pristine")
    yield ground
    ground.put_back("pristine")
    shutil.rmtree(ground.kept)
