"""What a person sees while a step works: a progress bar on a terminal, plain lines elsewhere."""

import logging
import os
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from rich.console import Console

T = TypeVar("T")

_PLAIN_EVERY_SECONDS = 10.0
_PLAIN_WIDTH = 140  # columns of a table in a file or a pipe: wide enough that nothing is cut

log = logging.getLogger("recflow")


def quiet_third_parties() -> None:
    """Switch off every dependency's telemetry and chatter; call it before they are imported."""
    for name, value in {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "BENTOML_DO_NOT_TRACK": "True",
        "GX_ANALYTICS_ENABLED": "False",
        "FEAST_USAGE": "False",
        "DO_NOT_TRACK": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "OTEL_SDK_DISABLED": "true",
    }.items():
        os.environ.setdefault(name, value)


def show_log(*, verbose: bool = False) -> None:
    """Send recflow's own lines to stderr, warnings of other packages not at all unless `verbose`."""
    import warnings

    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    log.handlers[:] = [handler]
    log.setLevel(logging.DEBUG if verbose else logging.INFO)
    log.propagate = False
    if not verbose:
        warnings.simplefilter("ignore")
        # Some packages put filters of their own in front when they are imported.
        warnings.showwarning = _show_nothing
        logging.getLogger().setLevel(logging.ERROR)


def _show_nothing(*_: object, **__: object) -> None:
    """Stand in for `warnings.showwarning`."""


def track(steps: Iterable[T], *, description: str, total: int) -> Iterator[T]:
    """Yield from `steps`, with a bar on a terminal and a line every ten seconds elsewhere."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import track as bar

        yield from bar(steps, description=description, total=total, console=Console(stderr=True), transient=True)
        return
    last = time.monotonic()
    for done, step in enumerate(steps, start=1):
        yield step
        if time.monotonic() - last >= _PLAIN_EVERY_SECONDS:
            last = time.monotonic()
            log.info("%s: %d of %d", description, done, total)


def table_console() -> "Console":
    """Return where tables are printed: as wide as the terminal, wider elsewhere, nothing in them read as markup."""
    from rich.console import Console

    return Console(markup=False, highlight=False, width=None if sys.stdout.isatty() else _PLAIN_WIDTH)
