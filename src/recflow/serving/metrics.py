"""What the endpoint counts. No label holds anything of a person or of a request's body: each has few known values.

Workers are processes: each writes files of its own below `PROMETHEUS_MULTIPROC_DIR`, and whoever is asked for the page
adds them up.
"""

import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import get_args

import psutil
from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from recflow.serving.answers import FallbackKind

# The values of labels that are words of ours.
STAGES = ("features", "retrieval", "rank", "rules", "reasons")
REFUSALS = ("key", "scope", "rate", "origin")
PARTS = ("model", "registry", "online_store", "events", "keys", "stock", "items")  # what answers may have to do without
EVENT_OUTCOMES = ("accepted", "duplicate", "rejected")
SWAP_OUTCOMES = ("served", "refused")
_FINE = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)  # seconds
_COARSE = (0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1.024, 4.096)  # seconds

REQUESTS = Counter("recflow_requests", "Requests by route and status.", ["route", "status"])
SECONDS = Histogram(
    "recflow_request_seconds", "Seconds from a request's head to its answer, by route.", ["route"], buckets=_COARSE
)
BATCH_PARTS = Counter("recflow_batch_parts", "Parts of /v1/batch by the call that they are and status.",
                      ["route", "status"])  # fmt: skip
STAGE_SECONDS = Histogram(
    "recflow_stage_seconds", "Seconds that a stage took for all that were answered together.", ["stage"], buckets=_FINE
)
TOGETHER = Histogram(
    "recflow_answered_together", "Calls that were answered together.", buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256)
)
CANDIDATES = Histogram(
    "recflow_candidates",
    "Items that a list was chosen from, once for lists answered together.",
    buckets=(0, 1, 10, 100, 1_000, 10_000, 100_000, 1_000_000),
)
FALLBACKS = Counter("recflow_fallbacks", "Answers that had to do without something, by kind.", ["kind"])
EVENTS = Counter("recflow_events", "Posted events by outcome.", ["outcome"])
EVENT_LAG = Histogram(
    "recflow_event_lag_seconds",
    "Seconds from the newest event of a call to its being on disk; replays of old events aren't counted.",
    buckets=(0.01, 0.05, 0.1, 0.5, 1, 5, 30, 300, 3600),
)
REFUSED = Counter("recflow_refused", "Requests turned away, by why.", ["why"])
STORE_FAILURES = Counter("recflow_online_store_failures", "Times the online store failed or was too slow.")
STORE_OPEN = Gauge(
    "recflow_online_store_away",
    "1 while some worker leaves the online store alone after failures.",
    multiprocess_mode="livemax",
)
SWAPS = Counter("recflow_swaps", "Versions taken over or refused.", ["outcome"])
MODEL = Gauge("recflow_model_version", "1 for the version that is served.", ["version"], multiprocess_mode="livemax")
READY = Gauge("recflow_ready", "1 while all workers are ready to answer.", multiprocess_mode="livemin")
DEGRADED = Gauge(
    "recflow_degraded",
    "1 while some worker has to do without a part.",
    ["part"],
    multiprocess_mode="livemax",
)

# A counter that appears with its first count has no rise in it that an alert could see.
for _metric, _values in (
    (FALLBACKS, get_args(FallbackKind)),
    (EVENTS, EVENT_OUTCOMES),
    (SWAPS, SWAP_OUTCOMES),
    (REFUSED, REFUSALS),
    (DEGRADED, PARTS),
    (STAGE_SECONDS, STAGES),
):
    for _value in _values:
        _metric.labels(_value)

# Looking a label's child up costs more than counting.
request_count = cache(REQUESTS.labels)
request_seconds = cache(SECONDS.labels)
_stage = cache(STAGE_SECONDS.labels)


def observe_stage(stage: str, seconds: float) -> None:
    """Note how long one of `STAGES` took for a batch."""
    _stage(stage).observe(seconds)


def page() -> tuple[str, bytes]:
    """Return the Prometheus page over all workers, with its content type."""
    registry: CollectorRegistry = REGISTRY
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return CONTENT_TYPE_PLAIN_0_0_4, generate_latest(registry)


def served_versions() -> list[str]:
    """Return the versions that workers answer from: one, but for the seconds of a swap."""
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        files = [str(file) for file in _live_files("gauge_livemax_")]
        found = MultiProcessCollector.merge(files, accumulate=True)  # type: ignore[no-untyped-call]
    else:
        found = MODEL.collect()
    samples = [sample for metric in found if metric.name == "recflow_model_version" for sample in metric.samples]
    return sorted({sample.labels["version"] for sample in samples if sample.value == 1})


def forget_dead_workers() -> None:
    """Take killed workers out of what is said of the living: whoever was killed couldn't do it."""
    for file in _live_files("gauge_live"):
        pid = file.stem.rpartition("_")[2]
        if not psutil.pid_exists(int(pid)):
            mark_process_dead(int(pid))  # type: ignore[no-untyped-call]


def _live_files(start: str) -> Iterator[Path]:
    folder = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    return Path(folder).glob(f"{start}*.db") if folder else iter(())
