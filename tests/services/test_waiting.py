"""A wait that was in vain says what it saw."""

import httpx
import pytest

from tests.services.load import wait_for


def test_a_wait_in_vain_names_what_was_seen_last_and_the_errors_on_the_way() -> None:
    seen = iter([httpx.ReadError("reset"), httpx.ReadError("reset"), httpx.ConnectError("refused")])

    def condition() -> list[str]:
        error = next(seen, None)
        if error is not None:
            raise error
        return []

    with pytest.raises(AssertionError, match=r"not within 0.2 s; seen last: \[\], .*reset.*2.*refused.*1"):
        wait_for(condition, 0.2)


def test_what_comes_true_after_a_lost_connection_is_waited_for() -> None:
    seen = iter([httpx.ReadError("reset")])

    def condition() -> bool:
        for error in seen:
            raise error
        return True

    assert wait_for(condition, 5) < 5
