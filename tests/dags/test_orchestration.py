import json
import os
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

import psutil
import pytest

from recflow.errors import RecflowError, SettingsError
from recflow.orchestration import airflow_environment, complete_environment, failures_file, migrate, run_dag
from recflow.programs import end_session, free_port, is_port_free, last_line, settings_environment
from recflow.settings import Settings, load_settings


def test_another_process_gets_the_very_same_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = load_settings(
        home=tmp_path / "var",
        online_retail_dir=tmp_path / "csv",
        training={"max_epochs": 3},
        serving={
            "rules": {
                "blocked_item_ids": ["85123A", "a,b"],
                "pins": [{"placement": "home", "position": 1, "item_id": "22423", "country": "Germany"}],
            }
        },
        orchestration={"first_day": date(2011, 1, 3), "page_command": "mail -s 'it broke' ops"},
    )
    for name, value in settings_environment(chosen).items():
        monkeypatch.setenv(name, value)
    assert load_settings() == chosen


def test_what_nobody_set_stays_unset_elsewhere(settings: Settings) -> None:
    # Ingest reads the remembered feed unless somebody chose `feed.source`.
    assert set(settings_environment(settings)) == {"RECFLOW_HOME"}


def test_paths_do_not_depend_on_where_the_other_process_starts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert settings_environment(load_settings())["RECFLOW_HOME"] == str(tmp_path / "var")


def test_keys_are_drawn_once_and_readable_by_the_owner_alone(settings: Settings) -> None:
    first, second = airflow_environment(settings), airflow_environment(settings)
    assert first == second
    assert len(first["AIRFLOW__API_AUTH__JWT_SECRET"]) == 128
    for name in ("secrets.json", "passwords.json"):
        file = settings.home / "airflow" / name
        assert file.stat().st_mode & 0o077 == 0
    other = load_settings(home=settings.home / "other")
    assert airflow_environment(other)["AIRFLOW__API_AUTH__JWT_SECRET"] != first["AIRFLOW__API_AUTH__JWT_SECRET"]


def test_another_airflow_on_the_machine_is_left_alone(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__DATABASE__SQL_ALCHEMY_CONN", "postgresql://elsewhere/airflow")
    monkeypatch.setenv("AIRFLOW_HOME", "/opt/airflow")
    monkeypatch.setenv("AIRFLOW__DATABASE__SQL_ALCHEMY_CONN_ASYNC", "postgresql://elsewhere/airflow")
    environment = complete_environment(airflow_environment(settings))
    assert not [name for name, value in environment.items() if "elsewhere" in value or value == "/opt/airflow"]
    assert environment["PATH"] == os.environ["PATH"]


def test_a_missing_dags_folder_is_named(tmp_path: Path) -> None:
    settings = load_settings(home=tmp_path / "var", orchestration={"dags_dir": tmp_path / "nowhere"})
    with pytest.raises(SettingsError, match=r"nowhere.*orchestration\.dags_dir"):
        airflow_environment(settings)


def test_a_migration_that_fails_says_so_and_is_tried_again(tmp_path: Path) -> None:
    home = tmp_path / "airflow"
    home.mkdir()
    variables = {
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{tmp_path}/no/such/folder",
    }
    with pytest.raises(RecflowError, match=r"expected `airflow db migrate` to end with 0.*migrate\.log"):
        migrate(variables)
    assert not (home / "migrated.json").exists()


def test_a_failed_run_ends_with_the_tasks_own_message(airflow_home: Settings) -> None:
    with pytest.raises(RecflowError, match=r"prepare_data\.ingest failed for good: No feed is known.*Log: .*\.log"):
        run_dag("prepare_data", {"start": "2011-01-03"}, airflow_home)
    kept = [json.loads(line) for line in failures_file(airflow_home).read_text().splitlines()]
    assert [(each["task_id"], each["error"]) for each in kept] == [("ingest", "FeedError")]


def test_params_are_refused_before_anything_runs(airflow_home: Settings) -> None:
    with pytest.raises(RecflowError, match="Invalid input for param start: 'Monday' is not a 'date'"):
        run_dag("prepare_data", {"start": "Monday"}, airflow_home)


def test_a_session_is_ended_with_children_that_went_their_own_way() -> None:
    # Like Airflow's tasks: a process group of its own, and a leader that is gone.
    leader = """
import os, signal, subprocess, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], preexec_fn=os.setpgrp)
print(child.pid, flush=True)
"""
    program = subprocess.Popen(
        [sys.executable, "-c", leader], stdout=subprocess.PIPE, start_new_session=True, text=True
    )
    assert program.stdout is not None
    with program.stdout:
        child = psutil.Process(int(program.stdout.readline()))
    program.wait()
    assert child.is_running()
    assert os.getpgid(child.pid) != program.pid
    end_session(program.pid, grace_seconds=2)
    deadline = time.monotonic() + 5
    while child.is_running() and child.status() != psutil.STATUS_ZOMBIE and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def test_a_program_that_ignores_being_asked_is_killed() -> None:
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(600)"
    program = subprocess.Popen([sys.executable, "-c", deaf], stdout=subprocess.PIPE, start_new_session=True)
    assert program.stdout is not None
    with program.stdout:
        program.stdout.readline()
    end_session(program.pid, grace_seconds=0.3)
    assert program.wait(5) == -9


def test_a_port_is_free_until_somebody_listens() -> None:
    import socket

    port = free_port()
    assert is_port_free("127.0.0.1", port)
    with socket.create_server(("127.0.0.1", port)):
        assert not is_port_free("127.0.0.1", port)


def test_the_last_line_of_a_log_is_the_error_where_there_is_one(tmp_path: Path) -> None:
    file = tmp_path / "log"
    file.write_text(
        "starting\nTraceback (most recent call last):\nshop.errors.ClosedError: closed today\nDagRun failed\n\n"
    )
    assert last_line(file) == "shop.errors.ClosedError: closed today"
    file.write_text("starting\nstopped\n")
    assert last_line(file) == "stopped"
