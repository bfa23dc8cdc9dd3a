"""What the endpoint counts. No label holds anything of a person or of a request's body: each has few known values."""

from prometheus_client import Counter, Gauge, Histogram

REQUESTS = Counter("recflow_requests", "Requests by route and status.", ["route", "status"])
SECONDS = Histogram(
    "recflow_request_seconds",
    "Seconds from the first byte of a request to its answer, by route.",
    ["route"],
    buckets=(0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1.024, 4.096),
)
FALLBACKS = Counter("recflow_fallbacks", "Answers that had to do without something, by kind.", ["kind"])
EVENTS = Counter("recflow_events", "Posted events by outcome: accepted, duplicate, rejected.", ["outcome"])
STORE_FAILURES = Counter("recflow_online_store_failures", "Times the online store failed or was too slow.")
SWAPS = Counter("recflow_swaps", "Versions taken over or refused.", ["outcome"])
MODEL = Gauge("recflow_model_version", "1 for the version that is served.", ["version"], multiprocess_mode="livemax")
READY = Gauge("recflow_ready", "1 while ready to answer.", multiprocess_mode="livemin")
