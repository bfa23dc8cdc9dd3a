"""A file of sequences -> what an epoch of training costs here and in other libraries, and how good it gets.

Every training is a process of its own with one thread, one after the other; each library lives in an environment of its
own below the home, made once. What can't be installed says so in its row.
"""

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recflow.bench.peers import libraries
from recflow.console import log
from recflow.errors import RecflowError
from recflow.programs import last_line
from recflow.settings import Settings
from recflow.storage import write_json

OURS = ("recflow", "recflow-float32", "recflow-graph")
PEERS = ("rectools-sasrec", "rectools-esasrec", "recbole-sasrec")
TARGETS = (0.035, 0.055)  # NDCG@10 of validation on Amazon Beauty: about item-kNN's, and well beyond it

# RecBole 1.2 calls what later versions of these three took away.
_REQUIREMENTS = {
    "rectools": ("rectools[torch]==0.19.0",),
    "recbole": ("recbole==1.2.1", "numpy<2", "pandas<2.3", "scipy<1.14"),
}
_FLOOR = ("floor_products_cpu_seconds", "floor_softmax_cpu_seconds")


def bench_train(
    data: Path,
    settings: Settings,
    *,
    attributes: Path | None = None,
    peers: Sequence[str] = PEERS,
    epochs: int = 3,
    length: int = 20,
    width: int = 64,
    targets: Sequence[float] = TARGETS,
    max_minutes: float = 10.0,
    seed: int = 0,
    json_path: Path | None = None,
) -> dict[str, list[dict[str, Any]]]:
    """Train recflow's model and its peers in turn; return a row each, and how close ours is to the machine's floor.

    Args:
        data: a line a user: its id, then its items, oldest first; the last item is never looked at, the one before it
            is what is validated on.
        settings: their home keeps the peers' environments.
        attributes: JSON object of item ids and lists of attribute ids, for recflow's rows; peers learn from ids alone.
        peers: of `PEERS`.
        epochs: of each; the first is warm-up where there are more.
        length: newest items that are read.
        width: numbers of an embedding.
        targets: NDCG@10 of validation whose CPU seconds are told.
        max_minutes: by the clock, for each training; the epochs until then count.
        seed: of all that is drawn; each library draws in its own way.
        json_path: where to write the same as JSON.

    Raises:
        RecflowError: a peer isn't known, or there is no such file.
    """
    unknown = sorted(set(peers) - set(PEERS))
    if unknown:
        raise RecflowError(f"Unknown peer '{unknown[0]}'; expected some of {', '.join(PEERS)}, or none.")
    if not data.is_file():
        raise RecflowError(f"{data}: no such file; expected a line a user: its id, its items. Name another.")
    home = settings.home.absolute() / "bench" / "peers"
    options = {
        "data": str(data.absolute()),
        "attributes": None if attributes is None else str(attributes.absolute()),
        "epochs": epochs,
        "length": length,
        "width": width,
        "seed": seed,
    }
    lines: dict[str, list[dict[str, Any]]] = {}
    notes: dict[str, str] = {}
    for name in (*OURS, *peers):
        log.info("%s", name)
        lines[name], notes[name] = _trained(name, options, home, max_minutes=max_minutes)
    rows = [summarize(name, lines[name], targets=targets) for name in lines]
    found = {
        "models": _with_ratios(rows),
        "floor": [row for name in OURS if (row := floor_row(name, lines[name]))],
        "notes": [{"model": name, "note": notes[name] or _versions(lines[name])} for name in lines],
    }
    if json_path:
        write_json(json_path, {"options": options, "targets": list(targets), **found})
    return found


def parse_lines(text: str) -> list[dict[str, Any]]:
    """Return the lines of a training's file; a last one that was cut off counts for nothing."""
    whole = text[: text.rfind("\n") + 1]
    return [json.loads(line) for line in whole.splitlines()]


def summarize(name: str, lines: Sequence[dict[str, Any]], *, targets: Sequence[float]) -> dict[str, Any]:
    """Return a training's row: CPU seconds an epoch without the first one, and until each target was reached."""
    epochs = [line for line in lines if "cpu_seconds" in line]
    seconds = [line["cpu_seconds"] for line in epochs]
    settled = seconds[1:] or seconds
    row: dict[str, Any] = {
        "model": name,
        "cpu_s_per_epoch": round(sum(settled) / len(settled), 3) if settled else None,
        "epochs": len(epochs),
        "ndcg_at_10": round(max(line["ndcg_at_10"] for line in epochs), 4) if epochs else None,
    }
    for target in targets:
        first = next((n for n, line in enumerate(epochs, start=1) if line["ndcg_at_10"] >= target), None)
        row[f"cpu_s_to_{target}"] = None if first is None else round(sum(seconds[:first]), 3)
    row["peak_mb"] = epochs[-1]["peak_memory_mb"] if epochs else None
    return row


def floor_row(name: str, lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return what the machine's rates allow an epoch to cost, and its share of what one does; empty where unknown."""
    epochs = [line for line in lines if _FLOOR[0] in line]
    if not epochs:
        return {}
    seconds = [line["cpu_seconds"] for line in epochs]
    spent = sum(seconds[1:] or seconds) / len(seconds[1:] or seconds)
    last = epochs[-1]
    return {
        "model": name,
        "gflop_per_epoch": round(last["gflop"], 1),
        "gflop_per_s": round(last["gflop_per_second"], 1),
        "floor_products_cpu_s": round(last[_FLOOR[0]], 2),
        "floor_softmax_cpu_s": round(last[_FLOOR[1]], 2),
        "cpu_s_per_epoch": round(spent, 2),
        "floor_share": round(sum(last[part] for part in _FLOOR) / spent, 2),
    }


def _versions(lines: Sequence[dict[str, Any]]) -> str:
    versions: dict[str, str] = next((line["versions"] for line in lines if "versions" in line), {})
    return ", ".join(f"{package} {version}" for package, version in versions.items())


def _with_ratios(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    own = rows[0]["cpu_s_per_epoch"]
    for row in rows:
        cost = row["cpu_s_per_epoch"]
        row["x_recflow"] = round(cost / own, 2) if own and cost else None
    return rows


# -- processes and environments


def _trained(name: str, options: dict[str, Any], home: Path, *, max_minutes: float) -> tuple[list[dict[str, Any]], str]:
    """Return the lines that a training wrote, and what went wrong with it."""
    scratch = home / "scratch" / name
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    out, log_file = scratch / "epochs.jsonl", scratch / "log.txt"
    try:
        command = _command(name, home)
    except RecflowError as error:
        return [], str(error)
    command += [name, json.dumps({**options, "out": str(out), "scratch": str(scratch)})]
    note = ""
    try:
        with log_file.open("wb") as output:
            done = subprocess.run(
                command,
                cwd=scratch,
                env=_variables(name),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                timeout=60 * max_minutes,
                check=False,
            )
        if done.returncode:
            note = last_line(log_file)
    except subprocess.TimeoutExpired:
        note = f"stopped after {max_minutes:g} minutes"
    lines = parse_lines(out.read_text(encoding="utf-8")) if out.is_file() else []
    return lines, note


def _command(name: str, home: Path) -> list[str]:
    if name in OURS:
        return [sys.executable, "-m", "recflow.bench.peers.ours"]
    return [str(_environment(name.partition("-")[0], home)), str(Path(libraries.__file__))]


def _variables(name: str) -> dict[str, str]:
    # A peer must find no package but its own environment's.
    kept = {key: value for key, value in os.environ.items() if name in OURS or not key.startswith("PYTHON")}
    return {**kept, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def _environment(library: str, home: Path) -> Path:
    """Return the Python of a peer's environment, which is made where it isn't there or is of other requirements.

    Raises:
        RecflowError: it can't be made here.
    """
    # The build of torch that recflow runs on: what is compared is the libraries.
    torch = f"torch=={importlib.metadata.version('torch').partition('+')[0]}"
    wanted = "\n".join([*_REQUIREMENTS[library], torch, ""])
    folder = home / library
    python, made_of = folder / "bin" / "python", folder / "requirements.txt"
    if made_of.is_file() and made_of.read_text(encoding="utf-8") == wanted:
        return python
    uv = shutil.which("uv", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
    if uv is None:
        raise RecflowError("not installed: there is no uv to install it with")
    log.info("installing %s, once", library)
    shutil.rmtree(folder, ignore_errors=True)
    _install([uv, "venv", "--quiet", "--python", sys.executable, str(folder)])
    requirements = wanted.split()
    _install([uv, "pip", "install", "--quiet", "--compile-bytecode", "--python", str(python), *requirements])
    made_of.write_text(wanted, encoding="utf-8")
    return python


def _install(command: list[str]) -> None:
    # uv looks for local wheels where pip is told to.
    links = os.environ.get("UV_FIND_LINKS") or ",".join(os.environ.get("PIP_FIND_LINKS", "").split())
    variables = {**os.environ, **({"UV_FIND_LINKS": links} if links else {})}
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RecflowError(f"not installed: {(done.stderr.strip().splitlines() or ['no reason given'])[-1].strip()}")
