"""THE LINE as a whole: a step's one name in all its places, its record, its lease, and what the walks return."""

import ast
import inspect
import os
import re
import shutil
import subprocess
import sys
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest

from recflow import cli, pipeline
from recflow.errors import LeaseHeld, MissingInput
from recflow.registry.versions import champion_version
from recflow.runlog import read_records, recorded
from recflow.schema import Days
from recflow.settings import Settings, load_settings
from recflow.storage import Storage
from tests.line_run import DAYS, SMALL, walked
from tests.shops import invoice_lines, write_invoice_days

CHECKOUT = Path(__file__).resolve().parents[1]
LINE = [
    "erase", "ingest", "validate", "build_features", "materialize",
    "build_training_set", "train", "evaluate", "watch_drift", "gate", "publish",
]  # fmt: skip


# -- one name


def _tasks(dag_file: str) -> list[str]:
    """Return the task functions of a DAG file, from its text, with the pipeline function that each calls."""
    tasks = []
    for node in ast.walk(ast.parse((CHECKOUT / "dags" / dag_file).read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef) and any("task" in ast.unparse(each) for each in node.decorator_list):
            imports = [each for each in ast.walk(node) if isinstance(each, ast.ImportFrom)]
            called = [name.name for each in imports if each.module == "recflow.pipeline" for name in each.names]
            if called:
                assert called == [node.name], f"{dag_file}: the task {node.name} runs {called}"
                tasks.append(node.name)
    return tasks


def test_a_step_has_one_name_in_the_line_the_commands_and_the_readme() -> None:
    assert [step.__name__ for step in (*pipeline.DAILY, *pipeline.MODEL, pipeline.publish)] == LINE
    assert [step.value for step in cli.Step] == LINE
    _, _, after = (CHECKOUT / "README.md").read_text(encoding="utf-8").partition("| step | takes |")
    table, _, _ = after.partition("\n\n")
    assert re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE) == LINE


def test_a_step_has_the_same_name_in_airflow() -> None:
    assert _tasks("prepare_data.py") + _tasks("train_model.py") == LINE[:-1]
    assert _tasks("publish.py") == ["publish", "confirm_served"]
    assert _tasks("watch_drift.py") == ["watch_drift"]
    assert _tasks("rollback.py") == ["rollback", "confirm_served"]


def test_every_step_takes_its_subject_and_the_settings() -> None:
    for name in LINE:
        subject, settings = inspect.signature(getattr(pipeline, name)).parameters.values()
        assert (subject.name, subject.annotation) == (("days", Days) if name in LINE[:5] else ("until", date)), name
        assert settings.annotation is Settings


# -- records and leases


@pytest.fixture
def shop(tmp_path: Path) -> tuple[Days, Settings]:
    """Return a few days of a feed that nobody ingested yet."""
    days = write_invoice_days(tmp_path / "feed", invoice_lines(days=3))
    return days, load_settings(home=tmp_path / "var", feed={"path": tmp_path / "feed"})


def test_a_step_leaves_its_record(shop: tuple[Days, Settings]) -> None:
    days, settings = shop
    started = datetime.now(UTC).replace(microsecond=0)
    artifact = pipeline.ingest(days, settings)
    (record,) = read_records(settings.home)
    assert record["step"] == "ingest"
    assert record["subject"] == "2011-01-03..2011-01-05"
    assert record["outcome"] == "done"
    assert record["output"] == artifact.uri
    assert started <= datetime.fromisoformat(record["started"]) <= datetime.now(UTC)
    assert 0 < record["seconds"] < 60
    assert 50 < record["peak_mib"] < 10_000


def test_a_step_that_fails_leaves_its_record_too(shop: tuple[Days, Settings]) -> None:
    days, settings = shop
    with pytest.raises(MissingInput):
        pipeline.validate(days, settings)
    assert [(record["step"], record["outcome"]) for record in read_records(settings.home)] == [("validate", "failed")]


def test_the_peak_is_the_most_that_a_step_held(tmp_path: Path) -> None:
    import time

    for mebibytes in (0, 200):
        with recorded(tmp_path, f"holds {mebibytes}", ""):
            held = bytearray(b"x" * (mebibytes << 20))
            time.sleep(0.2)
            del held
    few, many = (record["peak_mib"] for record in read_records(tmp_path))
    assert 150 < many - few < 300


@pytest.mark.parametrize("name", LINE)
def test_a_step_that_another_run_holds_is_refused_at_once_and_not_recorded(name: str, settings: Settings) -> None:
    step: Any = getattr(pipeline, name)
    subject = DAYS if name in LINE[:5] else DAYS.end
    with Storage(settings).lease(name), pytest.raises(LeaseHeld, match=f"{name}: another run holds"):
        step(subject, settings)
    assert read_records(settings.home) == []


def test_a_whole_line_is_recorded(tmp_path_factory: pytest.TempPathFactory) -> None:
    records = read_records(walked(tmp_path_factory).settings.home)
    assert [record["step"] for record in records] == LINE
    assert {record["outcome"] for record in records} == {"done"}
    subjects = [str(DAYS)] * len(pipeline.DAILY) + [str(DAYS.end)] * (len(pipeline.MODEL) + 1)
    assert [record["subject"] for record in records] == subjects
    views = next(record["views"] for record in records if record["step"] == "build_features")
    assert views["user_purchase_stats"]["rows"] > 0


# -- walks


def test_a_line_that_the_gate_rejects_keeps_the_champion(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    run = walked(tmp_path_factory)
    shutil.copytree(run.settings.home, tmp_path / "var")
    strict = SMALL | {"gate": SMALL["gate"] | {"min_ndcg_any": 0.9999}}
    settings = load_settings(home=tmp_path / "var", feed={"path": run.feed}, **strict)
    verdict = pipeline.line(DAYS, settings)
    assert verdict.manifest["passed"] is False
    assert any("floor 1.000" in sentence for sentence in verdict.manifest["sentences"])
    assert read_records(settings.home)[-1]["step"] == "gate"
    assert champion_version(settings) == "1"


@pytest.mark.parametrize(("given", "expected"), [({}, "1"), ({"OMP_NUM_THREADS": "2"}, "2")])
def test_steps_compute_with_one_thread_unless_told_otherwise_however_they_are_called(
    given: dict[str, str], expected: str
) -> None:
    """A DAG's task imports the line and no command; numpy reads the variable when it is imported."""
    ask = (
        "import os, sys, recflow; assert 'numpy' not in sys.modules; import recflow.pipeline;"
        "from threadpoolctl import threadpool_info;"
        "print(os.environ['OMP_NUM_THREADS'], *{pool['num_threads'] for pool in threadpool_info()})"
    )
    kept = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    found = subprocess.run([sys.executable, "-c", ask], env=kept | given, capture_output=True, text=True, check=True)
    assert found.stdout.split() == [expected, str(min(int(expected), os.cpu_count() or 1))]
