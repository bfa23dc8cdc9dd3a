"""Real Redis and PostgreSQL servers for tests, on the loopback: each can be stopped, killed, frozen and started again.

Where a server isn't installed the test is skipped; in continuous integration (`CI=true`) it fails.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from recflow.programs import free_port

_START_SECONDS = 30.0
_DEBIAN = "/usr/lib/postgresql"  # Debian puts the server's programs there and not on the path


class Server:
    """A server process with its children, a folder and a port; both stay the same over restarts."""

    def __init__(
        self,
        command: list[str],
        url: str,
        *,
        answers: Callable[[str], None],
        clear: Callable[[str], None],
        log: Path,
        account: str | None,
    ) -> None:
        self.url = url
        self._command, self._answers, self._clear, self._log = command, answers, clear, log
        self._account = account
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start, and wait until it answers."""
        with self._log.open("ab") as stream:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                start_new_session=True,
                user=self._account,
                group=self._account,
            )
        deadline = time.monotonic() + _START_SECONDS
        while True:
            try:
                return self._answers(self.url)
            except Exception:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    self.kill()
                    raise AssertionError(f"{self._command[0]} doesn't answer:\n{self._log.read_text()}") from None
            time.sleep(0.05)

    def clear(self) -> None:
        """Take out whatever tests have put in."""
        self._clear(self.url)

    def stop(self) -> None:
        """End it in order; its data stay."""
        self._end(signal.SIGINT)  # PostgreSQL's fast shutdown; Redis takes it like SIGTERM

    def kill(self) -> None:
        """Kill it: connections break, nothing is said."""
        self._end(signal.SIGKILL)

    def pause(self) -> None:
        """Freeze it: connections stay and the port takes new ones, but nothing is answered."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        self._signal(signal.SIGCONT)

    def _end(self, number: int) -> None:
        if self._process is None:
            return
        family = self._family()
        self._signal(number)
        if number != signal.SIGKILL:
            self._signal(signal.SIGCONT)  # a frozen one would never hear
        self._process.wait(timeout=_START_SECONDS)
        deadline = time.monotonic() + _START_SECONDS
        while any(map(_is_alive, family)):
            assert time.monotonic() < deadline, family
            time.sleep(0.01)
        self._process = None

    def _signal(self, number: int) -> None:
        # The children are named, for PostgreSQL's are in sessions of their own. It ends them itself when asked to end.
        for process in self._family() if number != signal.SIGINT else self._family()[:1]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    def _family(self) -> list[psutil.Process]:
        assert self._process is not None
        try:
            parent = psutil.Process(self._process.pid)
            return [parent, *parent.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []


@contextlib.contextmanager
def redis_server() -> Iterator[Server]:
    """Run a Redis that keeps everything in memory: after a restart it is empty."""
    program = _program("redis-server", "redis-server")

    def answers(url: str) -> None:
        import redis

        with redis.Redis.from_url(url, socket_timeout=1) as client:
            client.ping()

    def clear(url: str) -> None:
        import redis

        with redis.Redis.from_url(url) as client:
            client.flushall()

    with _folder(None) as folder:
        port = free_port()
        command = [program, "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder)]
        command += ["--save", "", "--appendonly", "no"]
        url = f"redis://127.0.0.1:{port}/0"
        with _running(Server(command, url, answers=answers, clear=clear, log=folder / "log", account=None)) as server:
            yield server


@contextlib.contextmanager
def postgres_server() -> Iterator[Server]:
    """Run a PostgreSQL that trusts everybody on the loopback; after a restart its data are there."""
    program, initdb = _program("postgres", "postgresql"), _program("initdb", "postgresql")
    account = "postgres" if os.getuid() == 0 else None  # it refuses to run as root

    def answers(url: str) -> None:
        import psycopg

        psycopg.connect(url, connect_timeout=2).close()

    def clear(url: str) -> None:
        import psycopg

        with psycopg.connect(url) as connection:
            connection.execute("DROP SCHEMA public CASCADE")
            connection.execute("CREATE SCHEMA public")

    with _folder(account) as folder:
        port = free_port()
        subprocess.run(
            [initdb, "-D", folder / "data", "-U", "recflow", "--auth=trust", "--no-sync", "--encoding=UTF8"],
            check=True,
            capture_output=True,
            cwd=folder,
            user=account,
            group=account,
        )
        command = [program, "-D", str(folder / "data"), "-p", str(port)]
        for setting in ("listen_addresses=127.0.0.1", f"unix_socket_directories={folder}", "fsync=off"):
            command += ["-c", setting]
        url = f"postgresql://recflow@127.0.0.1:{port}/postgres?sslmode=disable"
        with _running(
            Server(command, url, answers=answers, clear=clear, log=folder / "log", account=account)
        ) as server:
            yield server


@contextlib.contextmanager
def _running(server: Server) -> Iterator[Server]:
    server.start()
    try:
        yield server
    finally:
        server.stop()


def _is_alive(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.status() != psutil.STATUS_ZOMBIE  # whose parent was killed waits for init to notice
    return False


@contextlib.contextmanager
def _folder(account: str | None) -> Iterator[Path]:
    # Not pytest's: root alone may enter that one.
    with tempfile.TemporaryDirectory(prefix="recflow-server-") as name:
        if account:
            shutil.chown(name, account, account)
        yield Path(name)


def _program(name: str, package: str) -> str:
    known = [shutil.which(name), *map(str, sorted(Path(_DEBIAN).glob(f"*/bin/{name}"), reverse=True))]
    found = next(filter(None, known), None)
    if found is None:
        why = f"{name} isn't installed: apt-get install {package}"
        if os.environ.get("CI") == "true":
            pytest.fail(why)
        pytest.skip(why)
    return found
