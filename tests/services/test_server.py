"""A server that can't start says why; one that is up is surely ended."""

import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from recflow.errors import RecflowError
from recflow.serving.server import Server, wait_until_up


def _program(code: str, tmp_path: Path) -> Server:
    log_file = tmp_path / "endpoint.log"
    with socket.socket() as probe, log_file.open("wb") as output:
        probe.bind(("127.0.0.1", 0))  # a port at which nobody listens
        url = f"http://127.0.0.1:{probe.getsockname()[1]}"
        process = subprocess.Popen([sys.executable, "-c", code], stdout=output, stderr=output, start_new_session=True)
    return Server(url, process, log_file)


def test_a_server_that_ends_while_starting_is_told_with_its_last_words(tmp_path: Path) -> None:
    server = _program("raise SystemExit('the port is taken')", tmp_path)
    with pytest.raises(RecflowError, match=r"ended while starting \(1\): the port is taken"):
        wait_until_up(server, ready=False, seconds=30)
    server.stop()


def test_a_server_that_never_gets_ready_is_told_what_it_waits_for(tmp_path: Path) -> None:
    server = _program("import time; time.sleep(60)", tmp_path)
    try:
        with pytest.raises(RecflowError, match="is a version published"):
            wait_until_up(server, ready=True, seconds=0.3)
    finally:
        started = time.monotonic()
        server.stop()
    assert server.process.returncode is not None
    assert time.monotonic() - started < 20


UNTRACED = """
import gc
import service
from opentelemetry.instrumentation.utils import is_http_instrumentation_enabled
gc.collect()
heavy = {"torch", "mlflow", "numpy", "pyarrow"} & set(__import__("sys").modules)
print(is_http_instrumentation_enabled(), heavy)
"""


def test_bentoml_traces_nothing_and_the_process_that_starts_workers_stays_light(tmp_path: Path) -> None:
    folder = Path(__file__).resolve().parents[2] / "services" / "storefront"
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(folder), "BENTOML_HOME": str(tmp_path),
                   "BENTOML_DO_NOT_TRACK": "True"}  # fmt: skip
    command = [sys.executable, "-c", UNTRACED]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert result.stdout.split("\n")[-2] == "False set()"
