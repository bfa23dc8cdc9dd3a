"""THE LINE: one function a step, called alike by the DAGs, the command line and the tests.

    ingest >> validate >> build_features >> materialize          by day or by range of days
    build_training_set >> train >> evaluate >> watch_drift >> gate >> publish      by the last day of data, `until`

Every step holds its own lease, is recorded with its seconds and peak memory, and returns an Artifact.
"""

import functools
from collections.abc import Callable
from datetime import date
from typing import TypeVar

from recflow.console import quiet_third_parties
from recflow.runlog import recorded
from recflow.schema import Days
from recflow.settings import Settings
from recflow.storage import Artifact, Storage

quiet_third_parties()

Subject = TypeVar("Subject", Days, date)


def _step(function: Callable[[Subject, Settings], Artifact]) -> Callable[[Subject, Settings], Artifact]:
    """Give a step its lease and its record."""

    @functools.wraps(function)
    def run(subject: Subject, settings: Settings) -> Artifact:
        name = function.__name__
        with Storage(settings).lease(name), recorded(settings.home, name, str(subject)) as facts:
            artifact = function(subject, settings)
            facts["output"] = artifact.uri
            return artifact

    return run
