"""A server of steps that die on request: `python mortal.py HOME FEED`, a JSON request a line, a JSON answer a line.

All libraries are imported once; each request runs in a fork of this process, which never did anything else, so that
a step starts at once and can be killed wherever it is. A step dies before its n-th change of a kind to the home:

- `write`: a file is opened, and half a word left in it;
- `move`, `remove` and `make`: of names;
- `statement`: of SQLite, that writes.
"""

import hashlib
import json
import os
import signal
import sqlite3
import sys
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow.parquet
import safetensors.numpy

from recflow import onlinestore, pipeline
from recflow.schema import Days
from recflow.settings import Settings
from recflow.storage import Storage, content_hash
from tests.line_run import small_settings

Place = list[Any]  # [kind, n]: before the n-th change of that kind

_KINDS = {  # audit events of names, as the kind of change that they are
    "os.rename": "move", "os.remove": "remove", "os.rmdir": "remove", "os.mkdir": "make", "os.link": "make",
    "os.symlink": "make", "os.truncate": "make",
}  # fmt: skip
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_STATEMENTS = ("INSERT", "UPDATE", "DELETE", "REPLACE", "CREATE", "ALTER", "DROP", "COMMIT")
_TABLES = (
    "staged_events", "staged_items", "events", "items", "quarantine", "catalogue", "user_purchase_stats",
    "item_sales_stats", "user_history", "state_user", "state_item", "state_user_items",
)  # fmt: skip
_FOLDERS = ("training_sets", "candidates", "evaluations", "drift_reports", "verdicts", "bundles", "validation_reports")
_OF_THE_CLOCK = {"seconds", "started", "created", "trained_at"}  # keys that two equal runs differ in


class Changes:
    """Counts a process's changes to a home by kind, and ends or holds it before one of them."""

    def __init__(self, home: Path, *, die_at: Place | None, hold_at: Place | None) -> None:
        self.home, self.die_at, self.hold_at = str(home), die_at, hold_at
        self.counts: Counter[str] = Counter()
        self._is_acting = False
        sys.addaudithook(self._audit)
        sqlite3.connect = sqlite3.dbapi2.connect = self._traced(sqlite3.connect)
        # Written by native code, which raises no audit event.
        for module, name in ((pyarrow.parquet, "write_table"), (safetensors.numpy, "save_file")):
            setattr(module, name, self._announced(getattr(module, name)))

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            self._open(arguments[0], arguments[2])
        # Inside a tree that is being removed names are relative to an open folder.
        elif event in _KINDS and (self._is_ours(arguments[0]) or arguments[-1] != -1):
            self._change(_KINDS[event])

    def _open(self, path: Any, flags: Any) -> None:
        if isinstance(flags, int) and flags & _WRITING and self._is_ours(path):
            self._change("write", lambda: _write_half(path, flags))

    def _traced(self, connect: Callable[..., sqlite3.Connection]) -> Callable[..., sqlite3.Connection]:
        def connect_and_trace(*arguments: Any, **options: Any) -> sqlite3.Connection:
            connection = connect(*arguments, **options)
            connection.set_trace_callback(self._statement)
            return connection

        return connect_and_trace

    def _announced(self, write: Callable[..., Any]) -> Callable[..., Any]:
        def announce_and_write(content: Any, where: Any, *arguments: Any, **options: Any) -> Any:
            self._open(where, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            return write(content, where, *arguments, **options)

        return announce_and_write

    def _statement(self, statement: str) -> None:
        if statement.lstrip().upper().startswith(_STATEMENTS):
            self._change("statement")

    def _is_ours(self, path: Any) -> bool:
        return (
            isinstance(path, str | os.PathLike) and f"{path}".startswith(self.home) and not f"{path}".endswith(".lock")
        )

    def _change(self, kind: str, before_death: Callable[[], None] | None = None) -> None:
        if self._is_acting:
            return
        self.counts[kind] += 1
        self._is_acting = True
        here = [kind, self.counts[kind]]
        if here == self.die_at:
            if before_death:
                before_death()
            os.kill(os.getpid(), signal.SIGKILL)
        if here == self.hold_at:
            Path(self.home, "..", "held").write_text(str(os.getpid()), encoding="utf-8")
            while not Path(self.home, "..", "go").exists():
                time.sleep(0.02)
        self._is_acting = False


def _write_half(path: Any, flags: int) -> None:
    os.write(os.open(path, flags if flags & os.O_RDWR else flags | os.O_WRONLY, 0o644), b"hal")


# -- what can be asked for


def run(request: dict[str, Any], settings: Settings) -> dict[str, Any]:
    """Run a step; answer how many changes it made, by kind."""
    changes = Changes(settings.home, die_at=request.get("die_at"), hold_at=request.get("hold_at"))
    step = getattr(pipeline, request["step"])
    days = [date.fromisoformat(text) for text in request["days"]]
    step(Days(days[0], days[-1]) if step in pipeline.DAILY else days[-1], settings)
    return {"changes": dict(changes.counts)}


def observe(request: dict[str, Any], settings: Settings) -> dict[str, Any]:
    """Look at a home as its readers do; whatever is in place has to be readable."""
    from recflow.registry.versions import champion
    from recflow.serving.batch import recommend_batch
    from recflow.serving.feedback.erasures import list_requests

    storage, served = Storage(settings), champion(settings)
    assert served is not None
    answers = recommend_batch(request["users"], k=5, new_only=False, settings=settings, champion=served)
    return {
        "partitions": {
            f"{noun}/{day}": _hash(Path(storage.partition_uri(noun, day)))
            for noun in _TABLES
            for day in storage.days(noun)
        },
        "folders": {
            f"{noun}/{path.name}": _folder(storage, noun, path.name)
            for noun in _FOLDERS
            for path in sorted((settings.home / noun).glob("[!.]*"))
        },
        "online": [
            [user.features, [user.item_ids, user.event_types, user.timestamps_us, user.quantities]]
            for user in onlinestore.open_reader(settings).users(request["users"])
        ],
        "requests": list_requests(settings),
        "champion": [served.content_hash, json.loads((served.folder / "bundle.json").read_text())["until"]],
        "answers": content_hash(answers.select(["user_id", "item_id", "rank"])),
    }


def _folder(storage: Storage, noun: str, name: str) -> dict[str, Any]:
    artifact = storage.read_folder(noun, name)
    files = [path for path in Path(artifact.uri).rglob("*") if path.is_file()]
    return {str(path.relative_to(artifact.uri)): _content(path) for path in sorted(files)}


def _content(file: Path) -> Any:
    if file.suffix == ".json":
        return _timeless(json.loads(file.read_text(encoding="utf-8")))
    if file.suffix == ".html":
        return "</html>" in file.read_text(encoding="utf-8").lower()  # random ids inside; whole to the end
    return _hash(file)


def _hash(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _timeless(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _timeless(value) for key, value in content.items() if key not in _OF_THE_CLOCK}
    return [_timeless(entry) for entry in content] if isinstance(content, list) else content


# -- the server


def _import_everything() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import duckdb  # noqa: F401
        import evidently.presets  # noqa: F401
        import feast.infra.offline_stores.duckdb
        import feast.infra.online_stores.sqlite
        import feast.metrics  # noqa: F401
        import great_expectations.expectations  # noqa: F401
        import ibis.backends.duckdb  # noqa: F401
        import matplotlib.pyplot  # noqa: F401
        import mlflow.store.model_registry.sqlalchemy_store
        import mlflow.store.tracking.sqlalchemy_store
        import mlflow.tracking  # noqa: F401
        import pandas  # noqa: F401
        import pytorch_lightning  # noqa: F401
        import wordllama  # noqa: F401

        import recflow.evaluation.evaluate
        import recflow.evaluation.gate
        import recflow.events.erase
        import recflow.events.ingest
        import recflow.features.materialize
        import recflow.monitoring.drift
        import recflow.registry.versions
        import recflow.serving.batch
        import recflow.training.erase
        import recflow.training.fit
        import recflow.training.ranker
        import recflow.validation.validate  # noqa: F401


def _answer_in_a_fork(request: dict[str, Any], settings: Settings) -> dict[str, Any]:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        try:
            answer = {"run": run, "observe": observe}[request["ask"]](request, settings)
        except BaseException as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        with os.fdopen(writing, "w") as stream:
            json.dump(answer, stream, default=str)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as stream:
        text = stream.read()
    _, status = os.waitpid(child, 0)
    killed = os.WTERMSIG(status) if os.WIFSIGNALED(status) else None
    return {"killed_by": killed, **(json.loads(text) if text else {})}


def main() -> None:
    """Answer requests until there are no more."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    settings = small_settings(Path(sys.argv[1]), Path(sys.argv[2]))
    _import_everything()
    assert threading.active_count() == 1, "a fork of a process with threads may hang"
    for line in sys.stdin:
        request = json.loads(line)
        json.dump(_answer_in_a_fork(request, settings), answers)
        answers.write("\n")
        answers.flush()


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
