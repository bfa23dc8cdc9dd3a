"""Airflow's real servers on this machine: API server, scheduler and DAG processor, on the loopback only.

The triggerer isn't started: no task of the line defers, and approvals wait in the scheduler. `airflow standalone`
isn't used: killing it leaves its children.
"""

import contextlib
import json
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from recflow.console import log
from recflow.errors import RecflowError
from recflow.orchestration import airflow_environment, airflow_program, complete_environment, migrate
from recflow.programs import end_session, free_port, last_line, working
from recflow.settings import Settings
from recflow.storage import write_json

START_SECONDS = 120.0  # healthy after 16 to 24 s on two cores; several times that on a busy machine

_POLL_SECONDS = 0.5
_PROGRAMS: Mapping[str, tuple[str, ...]] = {
    "api-server": ("api-server",),
    "scheduler": ("scheduler", "--skip-serve-logs"),  # that server would listen on every interface
    "dag-processor": ("dag-processor",),
}


@dataclass(frozen=True)
class Servers:
    """What runs: the address of the web page and the REST API, the admin's password, and the programs by name."""

    address: str
    password: str = field(repr=False)
    programs: Mapping[str, "subprocess.Popen[bytes]"]


def start_servers(settings: Settings) -> Servers:
    """Start Airflow's servers and wait until all of them are healthy; those of an earlier start are ended first.

    Raises:
        RecflowError: a server ended, or isn't healthy after `START_SECONDS`; none is left running.
    """
    stop_servers(settings)
    variables = airflow_environment(settings)
    migrate(variables)
    address = f"http://127.0.0.1:{settings.orchestration.port or free_port()}"
    variables |= {
        "AIRFLOW__API__PORT": address.rpartition(":")[2],
        "AIRFLOW__API__BASE_URL": address,
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{address}/execution/",
    }
    running: dict[str, subprocess.Popen[bytes]] = {}
    try:
        for name, arguments in _PROGRAMS.items():
            running[name] = _start(name, arguments, variables, settings)
            _keep(running, settings)
        _wait_until_healthy(address, running, settings)
    except BaseException:
        stop_servers(settings)
        _reap(running)
        raise
    home = Path(variables["AIRFLOW_HOME"])
    return Servers(address, json.loads((home / "passwords.json").read_text(encoding="utf-8"))["admin"], running)


def stop_servers(settings: Settings) -> None:
    """End the servers of this home with all their tasks, whoever started them; nothing where none run."""
    file = _state_file(settings)
    if not file.exists():
        return
    for name, started in json.loads(file.read_text(encoding="utf-8")).items():
        if _is_ours(started, settings):
            log.debug("ending %s", name)
            end_session(started["pid"])
    file.unlink()


@contextlib.contextmanager
def servers(settings: Settings) -> Iterator[Servers]:
    """Hold the servers while a block runs."""
    started = start_servers(settings)
    try:
        yield started
    finally:
        stop_servers(settings)
        _reap(started.programs)


def _reap(programs: Mapping[str, "subprocess.Popen[bytes]"]) -> None:
    """Take note of the end of programs that this process started, so that none stays as a zombie."""
    for program in programs.values():
        program.wait()


def _start(
    name: str, arguments: tuple[str, ...], variables: Mapping[str, str], settings: Settings
) -> "subprocess.Popen[bytes]":
    output = _log_file(name, settings)
    output.parent.mkdir(parents=True, exist_ok=True)
    with output.open("ab") as stream:
        return subprocess.Popen(
            [*airflow_program(), *arguments], env=complete_environment(variables), cwd=variables["AIRFLOW_HOME"],
            stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, start_new_session=True,
        )  # fmt: skip


def _wait_until_healthy(address: str, running: Mapping[str, "subprocess.Popen[bytes]"], settings: Settings) -> None:
    deadline = time.monotonic() + START_SECONDS
    with working("airflow: starting") as say:
        while unhealthy := _unhealthy(address):
            for name, program in running.items():
                if program.poll() is not None:
                    output = _log_file(name, settings)
                    raise RecflowError(
                        f"Airflow's {name}: expected it to run, found it ended with {program.returncode}: "
                        f"{last_line(output)} See {output}."
                    )
            if time.monotonic() > deadline:
                raise RecflowError(
                    f"Airflow at {address}: expected it healthy within {START_SECONDS:.0f} s, found "
                    f"{' and '.join(unhealthy)} not. See the logs in {_log_file('', settings).parent}."
                )
            say(f"airflow: waiting for {' and '.join(unhealthy)}")
            time.sleep(_POLL_SECONDS)


def _unhealthy(address: str) -> list[str]:
    """Return the parts of Airflow that don't say they are healthy."""
    import httpx

    try:
        health: dict[str, Any] = httpx.get(f"{address}/api/v2/monitor/health", timeout=5).raise_for_status().json()
    except (httpx.HTTPError, ValueError):
        return ["api-server"]
    wanted = ("metadatabase", "scheduler", "dag_processor")
    return [part for part in wanted if health[part]["status"] != "healthy"]


def _keep(running: Mapping[str, "subprocess.Popen[bytes]"], settings: Settings) -> None:
    """Write down who runs, so that another process can end them too."""
    state = {}
    for name, program in running.items():
        with contextlib.suppress(psutil.NoSuchProcess):
            state[name] = {"pid": program.pid, "created": psutil.Process(program.pid).create_time()}
    write_json(_state_file(settings), state)


def _is_ours(started: Mapping[str, Any], settings: Settings) -> bool:
    """Tell a server's session from that of a stranger who got its number after a restart of the machine."""
    try:
        leader = psutil.Process(started["pid"])
    except psutil.NoSuchProcess:
        # It ended, but its children may live on in the session.
        return bool(psutil.boot_time() < _state_file(settings).stat().st_mtime)
    return bool(abs(leader.create_time() - started["created"]) < 1.0)


def _state_file(settings: Settings) -> Path:
    return settings.home.absolute() / "airflow" / "servers.json"


def _log_file(name: str, settings: Settings) -> Path:
    return settings.home.absolute() / "logs" / f"airflow-{name}.log"
