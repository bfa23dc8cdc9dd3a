"""Airflow from the outside: its environment, one run in process, real servers, and when a model is due.

Airflow keeps its state below `<home>/airflow` (SQLite) and its logs below `<home>/logs`. Its own variables of the
caller's environment are left out, so that another Airflow on the machine is never touched. Nothing here imports
Airflow: it is started as a program.
"""

import base64
import json
import os
import re
import secrets
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping
from datetime import UTC, date, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from recflow.console import log
from recflow.errors import RecflowError, SettingsError
from recflow.programs import end_session, last_line, settings_environment, working
from recflow.runlog import read_records
from recflow.settings import Settings
from recflow.storage import Storage, write_json

_POLL_SECONDS = 0.3
_STARTING_TASK = re.compile(rb"\[DAG TEST\] starting task_id=(\w+)")


# -- when a model is due


def training_due(until: date, settings: Settings) -> str | None:
    """Say why a model should be trained on data through a day; None where it shouldn't be yet."""
    verdicts = settings.home / "verdicts"
    judged = sorted(folder.name for folder in verdicts.glob("[0-9]*")) if verdicts.is_dir() else []
    if judged:
        age = (until - date.fromisoformat(judged[-1])).days
        wanted = settings.orchestration.retrain_every_days
        return f"the last verdict is {age} days of data old (every {wanted} days)" if age >= wanted else None
    first = next(iter(Storage(settings).days("events")), until)
    span = (until - first).days + 1
    wanted = settings.orchestration.first_training_days
    return f"no model was judged yet and {span} days of data are there" if span >= wanted else None


# -- failures


def failures_file(settings: Settings) -> Path:
    """Return the file of failed tasks, one JSON line each: where, when, the error's class and its paragraph."""
    return settings.home / "logs" / "failures.jsonl"


def record_failure(failure: Mapping[str, str], settings: Settings) -> None:
    """Keep a failed task's record and, where `orchestration.page_command` is set, tell a person.

    The command gets the paragraph on stdin; that it fails is logged and never raised, the failure itself counts.
    """
    file = failures_file(settings)
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps({"at": datetime.now(UTC).isoformat(timespec="seconds"), **failure}) + "\n")
    command = settings.orchestration.page_command
    if not command:
        return
    seconds = settings.orchestration.page_timeout_seconds
    try:
        subprocess.run(shlex.split(command), input=failure["paragraph"], text=True, check=True, timeout=seconds)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        log.error("Nobody was told: orchestration.page_command failed (%s). Correct the command.", error)


# -- the environment


def airflow_environment(settings: Settings) -> dict[str, str]:
    """Return the variables of Airflow on SQLite for one machine: loopback only, no examples, no telemetry.

    The keys and the admin's password are drawn once and kept, readable by the owner alone.
    """
    home, logs = settings.home.absolute() / "airflow", settings.home.absolute() / "logs"
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    keys = _kept_secrets(home / "secrets.json")
    passwords = home / "passwords.json"
    _write_private(passwords, json.dumps({"admin": keys["admin_password"]}))
    return {
        **settings_environment(settings),
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{home / 'airflow.db'}",
        "AIRFLOW__CORE__DAGS_FOLDER": str(_dags_folder(settings)),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
        "AIRFLOW__CORE__PARALLELISM": "4",  # each is an idle process of 140 MB
        "AIRFLOW__CORE__FERNET_KEY": keys["fernet_key"],
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": "admin:admin",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(passwords),
        "AIRFLOW__API__HOST": "127.0.0.1",
        "AIRFLOW__API__WORKERS": "1",
        "AIRFLOW__API__SECRET_KEY": keys["api_secret_key"],
        "AIRFLOW__API_AUTH__JWT_SECRET": keys["jwt_secret"],
        "AIRFLOW__DAG_PROCESSOR__REFRESH_INTERVAL": "30",
        "AIRFLOW__LOGGING__BASE_LOG_FOLDER": str(logs / "airflow"),
        "AIRFLOW__LOGGING__COLORED_CONSOLE_LOG": "False",
        "SCARF_ANALYTICS": "false",
        "DO_NOT_TRACK": "1",
    }


def complete_environment(variables: Mapping[str, str]) -> dict[str, str]:
    """Return the caller's environment with Airflow's and recflow's variables replaced by the given ones."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW_", "RECFLOW_"))}
    return kept | dict(variables)


def _dags_folder(settings: Settings) -> Path:
    folder = settings.orchestration.dags_dir or Path(__file__).resolve().parents[2] / "dags"
    if not folder.is_dir():
        raise SettingsError(
            f"DAG files: expected a folder at {folder}, found none. Set orchestration.dags_dir to the `dags` folder "
            "of the checkout."
        )
    return folder.absolute()


def _kept_secrets(file: Path) -> dict[str, str]:
    """Return the secrets of this home, drawn by whoever comes first."""
    drawn = {
        "fernet_key": base64.urlsafe_b64encode(secrets.token_bytes(32)).decode(),
        "api_secret_key": secrets.token_hex(32),
        "jwt_secret": secrets.token_hex(64),
        "admin_password": secrets.token_urlsafe(16),
    }
    if not file.exists():
        aside = file.with_name(f".writing-{file.name}-{secrets.token_hex(8)}")
        _write_private(aside, json.dumps(drawn))
        try:
            file.hardlink_to(aside)  # fails where another process was first: then its secrets count
        except FileExistsError:
            log.debug("%s: drawn by another process in the same moment.", file)
        finally:
            aside.unlink()
    return dict(json.loads(file.read_text(encoding="utf-8")))


def _write_private(file: Path, text: str) -> None:
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
        stream.write(text)


# -- programs


def migrate(variables: Mapping[str, str]) -> None:
    """Bring Airflow's database to the installed version; nothing is done where that was done before.

    Raises:
        RecflowError: the migration failed; the message names its log.
    """
    home = Path(variables["AIRFLOW_HOME"])
    marker, wanted = home / "migrated.json", {"airflow": version("apache-airflow")}
    if marker.exists() and (home / "airflow.db").exists() and json.loads(marker.read_text("utf-8")) == wanted:
        return
    output = home / "migrate.log"
    with output.open("wb") as stream, working("airflow: database"):
        ended = subprocess.run(
            [*airflow_program(), "db", "migrate"],
            env=complete_environment(variables), cwd=home, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream,
            check=False,
        )  # fmt: skip
    if ended.returncode:
        raise RecflowError(
            f"Airflow's database below {home}: expected `airflow db migrate` to end with 0, found {ended.returncode}: "
            f"{last_line(output)} See {output}."
        )
    write_json(marker, wanted)


def airflow_program() -> list[str]:
    """Return the command line that starts this environment's Airflow, whatever PATH says."""
    return [sys.executable, "-m", "airflow"]


def run_dag(dag_id: str, conf: Mapping[str, Any], settings: Settings) -> Path:
    """Run a DAG once, all its tasks in one process without servers; return the log of the run.

    Finished steps are reported as they come in; all other output goes to `<home>/logs/dags`.

    Raises:
        RecflowError: a task failed; the message is that task's own.
    """
    variables = airflow_environment(settings)
    migrate(variables)
    moment = datetime.now(UTC)
    output = settings.home.absolute() / "logs" / "dags" / f"{dag_id}-{moment:%Y%m%dT%H%M%S}.log"
    output.parent.mkdir(parents=True, exist_ok=True)
    failed_before = len(_failures(settings))
    with output.open("wb") as stream:
        program = subprocess.Popen(
            [*airflow_program(), "dags", "test", dag_id, "--conf", json.dumps(dict(conf))],
            env=complete_environment(variables), cwd=variables["AIRFLOW_HOME"],
            stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, start_new_session=True,
        )  # fmt: skip
        try:
            _report_progress(dag_id, program, output, settings)
        finally:
            end_session(program.pid)
            program.wait()
    if program.returncode:
        failures = [failure for failure in _failures(settings)[failed_before:] if failure["dag_id"] == dag_id]
        cause = failures[0]["paragraph"] if failures else f"{dag_id}: {last_line(output)}"
        raise RecflowError(f"{cause} Log: {output}.")
    return output


def _report_progress(dag_id: str, program: "subprocess.Popen[bytes]", output: Path, settings: Settings) -> None:
    """Wait for a run's end; name the task at work, and each step as it is done."""
    reported = len(read_records(settings.home))
    with working(dag_id) as say, output.open("rb") as stream:
        while True:
            ended = program.poll() is not None
            started = _STARTING_TASK.findall(stream.read())
            if started:
                say(f"{dag_id}: {started[-1].decode()}")
            for record in read_records(settings.home)[reported:]:
                reported += 1
                log.info("  %s %s: %s in %.1f s, peak %d MiB", *(
                    record[name] for name in ("step", "subject", "outcome", "seconds", "peak_mib")
                ))  # fmt: skip
            if ended:
                return
            time.sleep(_POLL_SECONDS)


def _failures(settings: Settings) -> list[dict[str, str]]:
    file = failures_file(settings)
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()] if file.exists() else []
