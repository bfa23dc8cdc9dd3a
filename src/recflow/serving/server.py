"""The endpoint as a program of its own: started, waited for, and surely ended with its workers."""

import contextlib
import hashlib
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from recflow.console import log
from recflow.errors import RecflowError
from recflow.programs import end_session, free_port, last_line, settings_environment
from recflow.serving.http.keys import refuse_open_doors
from recflow.settings import Settings

_START_SECONDS = 180.0  # first imports on a busy machine take a minute
_STOP_SECONDS = 30.0  # after the drain: answers under way and writes are finished by then
_POLL_SECONDS = 0.1
_MEMORY = Path("/dev/shm")  # a folder in memory, on Linux


@dataclass(frozen=True)
class Server:
    """A running endpoint."""

    url: str  # http://host:port
    process: subprocess.Popen[bytes]
    log_file: Path
    counters: Path | None = None  # folder of the workers' counters, gone with them

    def stop(self, *, drain_seconds: float = 0.0) -> None:
        """Ask it to end: it finishes what it has begun; what is left of it then is killed."""
        import psutil

        workers: list[psutil.Process] = []
        if self.process.poll() is None:
            workers = psutil.Process(self.process.pid).children(recursive=True)
            self.process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(_STOP_SECONDS + drain_seconds)
        end_session(self.process.pid)
        for worker in workers:  # each is in a session of its own
            with contextlib.suppress(psutil.NoSuchProcess):
                worker.kill()
        self.process.wait()
        if self.counters is not None:
            shutil.rmtree(self.counters, ignore_errors=True)

    def is_ready(self) -> bool:
        """Return whether a version answers."""
        return self._says_ok("/readyz")

    def is_alive(self) -> bool:
        """Return whether it answers at all."""
        return self._says_ok("/livez")

    def _says_ok(self, path: str) -> bool:
        import httpx

        try:
            return httpx.get(self.url + path, timeout=2.0).is_success
        except httpx.HTTPError:
            return False


@contextlib.contextmanager
def running(settings: Settings, *, port: int | None = None, wait_ready: bool = True) -> Iterator[Server]:
    """Start the endpoint, wait until it answers, and end it on leaving.

    Args:
        settings: its home is where the endpoint finds models and puts feedback.
        port: default: that of the settings; 0: a free one.
        wait_ready: wait for a model; else only for the server, which answers 503 until a version is published.

    Raises:
        RecflowError: it ended, or wasn't up in time.
    """
    server = start(settings, port=port)
    try:
        wait_until_up(server, ready=wait_ready)
        yield server
    finally:
        server.stop(drain_seconds=settings.serving.drain_seconds)


def serve(settings: Settings, *, port: int | None = None) -> None:
    """Serve until the process is interrupted or told to end.

    Raises:
        RecflowError: the endpoint couldn't start, or ended by itself.
    """
    ended = signal.signal(signal.SIGTERM, _interrupt)
    try:
        with running(settings, port=port, wait_ready=False) as server:
            log.info("Serving at %s (log: %s). Ctrl-C ends it.", server.url, server.log_file)
            code = server.process.wait()
            raise RecflowError(f"The endpoint ended by itself ({code}): {last_line(server.log_file)}")
    except KeyboardInterrupt:
        log.info("Stopped.")
    finally:
        signal.signal(signal.SIGTERM, ended)


def start(settings: Settings, *, port: int | None = None) -> Server:
    """Start the endpoint's processes in a session of their own and return at once.

    Raises:
        RecflowError: the service's code isn't there; other machines could ask it without a key; the home's user ids
            were made with another key than the one that is set.
    """
    from recflow.privacy import check_home

    # Workers look as well; but BentoML starts one that ends anew, for ever.
    refuse_open_doors(settings)
    check_home(settings)
    folder = Path(__file__).resolve().parents[3] / "services" / "storefront"
    if not (folder / "service.py").is_file():
        raise RecflowError(f"No service lies in {folder}. Run recflow from a checkout, installed with `make setup`.")
    wanted = settings.serving.port if port is None else port
    chosen = wanted or free_port()
    home = settings.home.absolute()
    log_file = home / "logs" / f"endpoint-{chosen}.log"
    log_file.parent.mkdir(parents=True, exist_ok=True)
    counters = _counters(settings, chosen)
    command = [sys.executable, "-m", "bentoml", "serve", "service:Storefront", "--working-dir", str(folder),
               "--host", settings.serving.host, "--port", str(chosen)]  # fmt: skip
    with log_file.open("ab") as output:
        process = subprocess.Popen(
            command,
            env=_environment(settings, counters),
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return Server(f"http://{settings.serving.host}:{chosen}", process, log_file, counters)


def wait_until_up(server: Server, *, ready: bool, seconds: float = _START_SECONDS) -> None:
    """Wait until the endpoint answers, and where `ready` until it has a model.

    Raises:
        RecflowError: it ended, or didn't in time.
    """
    deadline = time.monotonic() + seconds
    while not (server.is_ready() if ready else server.is_alive()):
        code = server.process.poll()
        if code is not None:
            raise RecflowError(f"The endpoint ended while starting ({code}): {last_line(server.log_file)}")
        if time.monotonic() > deadline:
            what = "ready; is a version published? See `recflow models list`" if ready else "up"
            raise RecflowError(
                f"Endpoint {server.url}: not {what}. Waited {seconds:g} s. Its log: {server.log_file}: "
                f"{last_line(server.log_file)}"
            )
        time.sleep(_POLL_SECONDS)


def _counters(settings: Settings, port: int) -> Path:
    """Make the folder in which the workers of a home and port count: in memory where that can be.

    Counters are mapped files with holes in them. On a full disk to count something new would kill the worker, and the
    one that is started in its place.
    """
    home = settings.home.absolute()
    own = _MEMORY / f"recflow-{os.getuid()}"
    try:
        own.mkdir(mode=0o700, exist_ok=True)
        found = own.lstat()
        is_safe = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()  # anybody may make a folder there
    except OSError:
        is_safe = False
    name = hashlib.sha256(str(home).encode()).hexdigest()[:16]
    folder = own / f"{name}-{port}" if is_safe else home / "bentoml" / str(port)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _environment(settings: Settings, bentoml_home: Path) -> dict[str, str]:
    """Return the endpoint's environment: all settings, and where BentoML has its own state, the counters."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RECFLOW_", "BENTOML_"))}
    return (
        {
            # Workers ask again with the next look; MLflow's own tries go on for minutes, and longest after an outage.
            "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
            "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
        }
        | kept
        | settings_environment(settings)
        | {
            "BENTOML_HOME": str(bentoml_home),
            "BENTOML_DO_NOT_TRACK": "True",
            "OTEL_SDK_DISABLED": "true",
            "GLIBC_TUNABLES": os.environ.get("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1"),  # large pages: 3 % less work
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),  # one request is too small for two threads
            "PYTHONUNBUFFERED": "1",
        }
    )


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt
