"""How much a caller may ask: a token bucket for each key, in each worker."""

import math
import time


class RateLimiter:
    """Lets `per_second` calls through on average and `burst` at once, for each key by itself.

    A batch counts as many calls as it has parts. It is let through when there is a token for one and leaves a debt for
    the rest: a batch larger than the burst would never be let through else.
    """

    def __init__(self, per_second: float | None, burst: int) -> None:
        """Take the limits; None: there is none."""
        self._per_second, self._burst = per_second, burst
        self._buckets: dict[str, tuple[float, float]] = {}  # key id -> tokens, as of monotonic seconds

    def wait(self, key_id: str) -> int:
        """Take a token of a key; return 0, or in how many whole seconds there will be one."""
        if self._per_second is None:
            return 0
        now = time.monotonic()
        tokens, since = self._buckets.get(key_id, (float(self._burst), now))
        tokens = min(self._burst, tokens + (now - since) * self._per_second)
        if tokens < 1:
            return math.ceil((1 - tokens) / self._per_second)
        self._buckets[key_id] = (tokens - 1, now)
        return 0

    def charge(self, key_id: str, calls: int) -> None:
        """Take further tokens, into debt where there are too few."""
        if self._per_second is not None and key_id in self._buckets:
            tokens, since = self._buckets[key_id]
            self._buckets[key_id] = (tokens - calls, since)

    def forget(self, known: set[str]) -> None:
        """Drop the buckets of keys that are no more."""
        for key_id in self._buckets.keys() - known:
            del self._buckets[key_id]
