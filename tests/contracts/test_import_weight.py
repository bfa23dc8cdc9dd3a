"""The line and the command line start light: what is heavy is imported by the step that needs it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = {
    *("airflow", "bentoml", "duckdb", "evidently", "faiss", "feast", "great_expectations", "ibis", "lightgbm"),
    *("lightning", "matplotlib", "mlflow", "pandas", "pyspark", "pytorch_lightning", "scipy", "sklearn", "torch"),
    "wordllama",
}
HELP_SECONDS = 0.5  # of a processor: the promise for `recflow --help`, whatever else the machine does

PROBE = """
import json, resource, sys
{code}
usage = resource.getrusage(resource.RUSAGE_SELF)
sys.stderr.write(json.dumps({{"modules": sorted(sys.modules), "seconds": usage.ru_utime + usage.ru_stime}}))
"""
HELP = """
sys.argv = ["recflow", "--help"]
from recflow.cli import main
try:
    main()
except SystemExit as end:
    assert not end.code
"""


def probe(code: str, cwd: Path) -> tuple[set[str], float, str]:
    """Run code in a fresh interpreter; return its modules, processor seconds and output."""
    result = subprocess.run(
        [sys.executable, "-c", PROBE.format(code=code)], cwd=cwd, capture_output=True, text=True, check=True
    )
    facts = json.loads(result.stderr.splitlines()[-1])
    return set(facts["modules"]), facts["seconds"], result.stdout


@pytest.mark.parametrize(
    "module",
    [
        "recflow.pipeline",
        "recflow.orchestration",
        "recflow.storage, recflow.runlog, recflow.engine, recflow.featurestore",
    ],
)
def test_importing_the_line_pulls_in_nothing_heavy(module: str, tmp_path: Path) -> None:
    modules, _, _ = probe(f"import {module}", tmp_path)
    assert HEAVY & modules == set()


def test_help_is_quick_and_pulls_in_nothing_heavy(tmp_path: Path) -> None:
    modules, seconds, output = probe(HELP, tmp_path)
    assert HEAVY & modules == set()
    assert "recommend" in output
    assert min(seconds, probe(HELP, tmp_path)[1]) < HELP_SECONDS  # the first may have had to compile
