"""What may import what: the contracts of `.importlinter` over src, and the shells around it."""

import ast
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# Shell -> what it may import besides the standard library and its own files. An entry covers all below it.
GROUND = {
    f"recflow.{name}" for name in ("console", "errors", "featurestore", "onlinestore", "schema", "settings", "storage")
}
SHELLS = {
    "dags": {"airflow", "recflow.pipeline", "recflow.orchestration", *GROUND},
    "services/storefront": {"bentoml", "opentelemetry", "recflow.serving", "recflow.registry", *GROUND},
    "services/floors": {"bentoml", "starlette", "pydantic"},
    "feature_repo": {"feast", "recflow.features", *GROUND},
}


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache", "--config", folder / ".importlinter"],
        cwd=folder,
        env={"PYTHONPATH": str(folder / "src"), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_contracts_are_kept() -> None:
    result = lint(ROOT)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(
    ("module", "line", "contract"),
    [
        ("monitoring/drift.py", "from recflow.features import build", "the line, its stages"),
        ("metrics.py", "from recflow.evaluation import gate", "the kernel"),
        ("storage.py", "from recflow import engine", "Inside the ground"),
        ("serving/bundle.py", "import torch", "torch and lightning"),
        ("serving/bundle.py", "import faiss", "faiss in retrieval/ only"),
        ("training/fit.py", "import mlflow", "mlflow in registry/ only"),
        ("training/fit.py", "import lightgbm", "lightgbm in models/trees.py only"),
        ("features/build.py", "import recflow_tasks", "Nothing in src imports dags"),
    ],
)
def test_a_broken_contract_is_seen(tmp_path: Path, module: str, line: str, contract: str) -> None:
    shutil.copytree(ROOT / "src" / "recflow", tmp_path / "src" / "recflow")
    shutil.copy(ROOT / ".importlinter", tmp_path)
    with (tmp_path / "src" / "recflow" / module).open("a", encoding="utf-8") as stream:
        stream.write(f"\n\ndef _hidden() -> None:\n    {line}\n")
    result = lint(tmp_path)
    assert result.returncode != 0
    broken = result.stdout.partition("Broken contracts")[2]
    assert contract in " ".join(broken.split())


def imported(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            # `from recflow import featurestore` names a module
            is_package = node.module == "recflow"
            yield from (f"recflow.{alias.name}" for alias in node.names) if is_package else [str(node.module)]


@pytest.mark.parametrize("shell", SHELLS)
def test_a_shell_imports_what_is_its_own(shell: str) -> None:
    files = sorted((ROOT / shell).glob("*.py"))
    assert files
    siblings = {file.stem for file in files}
    for file in files:
        for name in imported(file):
            parts = name.split(".")
            covers = {".".join(parts[:depth]) for depth in range(1, len(parts) + 1)}
            allowed = parts[0] in sys.stdlib_module_names or parts[0] in siblings or covers & SHELLS[shell]
            assert allowed, f"{shell}/{file.name} imports {name}"
