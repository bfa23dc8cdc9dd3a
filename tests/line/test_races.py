"""Two runs at once: a step excludes itself, gives way when it dies, and leaves other steps alone."""

import os
import signal

import pytest

from recflow.storage import Storage
from tests.line.conftest import Ground
from tests.line_run import LATER, recflow

HELD_AT = ["move", 1]  # the first thing that is finished
DAILY = ("erase", "ingest", "validate", "build_features", "materialize")


@pytest.fixture(autouse=True)
def _as_the_line_left_it(ground: Ground) -> None:
    ground.put_back("pristine")
    ground.ask_to_forget()


def test_the_second_of_two_runs_is_refused_and_the_first_is_whole(ground: Ground) -> None:
    for step in DAILY:
        ground.ask("run", step=step)
    alone = ground.ask("observe")
    ground.put_back("pristine")
    ground.ask_to_forget()
    for step in DAILY:
        ground.start("run", step=step, hold_at=HELD_AT)
        ground.held()
        second = recflow(ground.settings, "run", step, "--start", str(LATER.start), "--end", str(LATER.end))
        assert (second.returncode, second.stdout) == (75, "")
        (paragraph,) = second.stderr.splitlines()
        lock = ground.settings.home / "leases" / f"{step}.lock"
        assert paragraph == (f"recflow: {step}: another run holds {lock}. Wait until it ends, then run this one again.")
        assert "error" not in ground.let_go()
    together = ground.ask("observe")
    assert [name for name in alone if together[name] != alone[name]] == []


def test_a_killed_run_gives_its_lease_back(ground: Ground) -> None:
    ground.start("run", step="ingest", hold_at=HELD_AT)
    os.kill(ground.held(), signal.SIGKILL)
    assert ground.answer() == {"killed_by": signal.SIGKILL}
    second = recflow(ground.settings, "run", "ingest", "--start", str(LATER.start), "--end", str(LATER.end))
    assert second.returncode == 0, second.stderr
    assert Storage(ground.settings).days("staged_events")[-1] == LATER.end


def test_a_step_of_another_day_waits_its_turn_and_other_steps_go_on(ground: Ground) -> None:
    first, *_, last = LATER.dates()
    assert recflow(ground.settings, "run", "ingest", "--date", str(first)).returncode == 0
    ground.start("run", step="ingest", days=[str(last)] * 2, hold_at=HELD_AT)
    ground.held()
    # One state, one writer of it: which day it is for makes no difference.
    assert recflow(ground.settings, "run", "ingest", "--date", str(first)).returncode == 75
    other = recflow(ground.settings, "run", "validate", "--date", str(first))
    assert other.returncode == 0, other.stderr
    assert "error" not in ground.let_go()
    storage = Storage(ground.settings)
    assert storage.days("events")[-1] == first
    assert storage.days("staged_events")[-1] == last


def test_nothing_comes_in_while_people_are_taken_out(ground: Ground) -> None:
    ground.start("run", step="erase", hold_at=HELD_AT)
    ground.held()
    for step in ("ingest", "validate"):
        ended = recflow(ground.settings, "run", step, "--date", str(LATER.start))
        assert (ended.returncode, f"recflow: {step}: another run holds" in ended.stderr) == (75, True)
    assert "error" not in ground.let_go()
