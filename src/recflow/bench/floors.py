"""The three echoes that the endpoint's speed is held against, started as programs of their own.

- `bentoml_api`: a `@bentoml.api` with a pydantic model, as BentoML comes out of the box;
- `bentoml_fastest`: the fastest echo that BentoML can be brought to;
- `uvicorn`: the web server without a framework: the limit.
"""

import os
import subprocess
import sys
from pathlib import Path

from recflow.errors import RecflowError
from recflow.programs import free_port
from recflow.serving.server import Server

FLOORS = ("bentoml_api", "bentoml_fastest", "uvicorn")
_SERVICES = {"bentoml_api": "service:EchoApi", "bentoml_fastest": "service:EchoMiddleware"}
# What recflow sets for its own speed or for silence would make the floor out of the box faster than it is.
_OURS = ("RECFLOW_", "BENTOML_", "OTEL_")


def start_floor(name: str, scratch: Path) -> Server:
    """Start one echo of `FLOORS` with one worker on a free port and return at once; POST / echoes.

    Args:
        name: which one.
        scratch: an existing folder for its log and BentoML's own state.

    Raises:
        RecflowError: the services' code isn't there.
    """
    folder = Path(__file__).resolve().parents[3] / "services" / "floors"
    if not (folder / "service.py").is_file():
        raise RecflowError(f"No floors lie in {folder}. Run recflow from a checkout, installed with `make setup`.")
    port = free_port()
    where = ["--host", "127.0.0.1", "--port", str(port)]
    if name == "uvicorn":
        options = ["--loop", "uvloop", "--http", "httptools", "--no-access-log", "--log-level", "warning"]
        command = [sys.executable, "-m", "uvicorn", "bare:app", *where, *options]
    else:
        command = [sys.executable, "-m", "bentoml", "serve", _SERVICES[name], *where, "--working-dir", str(folder)]
    log_file = scratch / f"{name}.log"
    with log_file.open("ab") as output:
        process = subprocess.Popen(
            command,
            env=_environment(name, scratch),
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return Server(f"http://127.0.0.1:{port}", process, log_file)


def _environment(name: str, scratch: Path) -> dict[str, str]:
    kept = {variable: value for variable, value in os.environ.items() if not variable.startswith(_OURS)}
    home = scratch / f"{name}-home"
    home.mkdir()
    own = {"BENTOML_HOME": str(home), "BENTOML_DO_NOT_TRACK": "True", "OMP_NUM_THREADS": "1"}
    return kept | own | ({"OTEL_SDK_DISABLED": "true"} if name == "bentoml_fastest" else {})
