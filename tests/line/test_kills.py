"""Every step of the line, killed in the middle of its writes: nothing half-written shows, and the next run heals.

Where a step dies is counted in its changes to the home (see `mortal.py`), so that these tests know nothing of how a
step writes: with half a file written, before a name moves, between two statements of a database. Equal means equal
bytes, but for times of day and the random ids inside HTML.
"""

from collections.abc import Mapping
from typing import Any

import pytest

from recflow import pipeline
from recflow.runlog import read_records
from tests.line.conftest import Ground

STEPS = [step.__name__ for step in (*pipeline.DAILY, *pipeline.MODEL, pipeline.publish)]
CAN_BE_SEEN = ("partitions", "folders")

POINTS = [
    *((step, kind) for step in STEPS for kind in ("write", "move") if step != "watch_drift"),
    ("watch_drift", "move"),  # the slowest step; its writes are cut in its second run below
    *((step, "statement") for step in ("erase", "materialize", "evaluate", "publish")),
]

# Step -> what was seen before, its changes by kind, what was seen after.
Walk = Mapping[str, tuple[dict[str, Any], dict[str, int], dict[str, Any]]]


@pytest.fixture(scope="module")
def walk(ground: Ground) -> Walk:
    """Walk a week more up to another champion, keeping the home before each step; somebody asked to be forgotten."""
    ground.ask_to_forget()
    walk, before = {}, ground.ask("observe")
    for step in STEPS:
        ground.keep(step)
        changes = ground.ask("run", step=step)["changes"]
        after = ground.ask("observe")
        walk[step] = before, changes, after
        before = after
    return walk


def test_an_uninterrupted_week_ends_with_another_champion(walk: Walk) -> None:
    assert [walk[step][2]["champion"][1] for step in ("gate", "publish")] == ["2011-02-11", "2011-02-18"]
    assert all(before != after for before, _, after in walk.values())


@pytest.mark.parametrize(("step", "kind"), POINTS)
def test_a_step_that_was_killed_shows_nothing_half_and_heals(step: str, kind: str, ground: Ground, walk: Walk) -> None:
    before, changes, after = walk[step]
    ground.put_back(step)
    ground.start("run", step=step, die_at=[kind, 1 + changes[kind] // 2])
    assert ground.answer() == {"killed_by": 9}

    seen = ground.ask("observe")
    for part in CAN_BE_SEEN:
        assert seen[part].keys() >= before[part].keys()
        odd = [name for name, content in seen[part].items() if content not in _either(before, after, part, name)]
        assert odd == []
    assert seen["champion"] in ([before["champion"]] if step != "publish" else [before["champion"], after["champion"]])
    for user, (was, will_be) in zip(seen["online"], zip(before["online"], after["online"], strict=True), strict=True):
        assert user[0] in (was[0], will_be[0])  # features of one view
        assert user[1] in (was[1], will_be[1])  # history

    ground.ask("run", step=step)
    healed = ground.ask("observe")
    assert {name: odd for name in after if (odd := _differing(healed[name], after[name]))} == {}


@pytest.mark.parametrize("step", [name for name in STEPS if name not in ("ingest", "validate")])
def test_a_step_killed_in_its_second_run_leaves_what_the_first_one_made(step: str, ground: Ground, walk: Walk) -> None:
    ground.put_back(step)
    ground.ask("run", step=step)
    ground.start("run", step=step, die_at=["write", 1])
    assert ground.answer() == {"killed_by": 9}
    seen, (_, _, after) = ground.ask("observe"), walk[step]
    assert [name for name in after if _differing(seen[name], after[name])] == []


def test_a_record_that_was_cut_off_costs_no_other(ground: Ground) -> None:
    ground.put_back("pristine")
    records = read_records(ground.settings.home)
    with (ground.settings.home / "runs" / "steps.jsonl").open("a", encoding="utf-8") as stream:
        stream.write('{"step": "ingest", "subj')
    ground.ask("run", step="ingest")
    assert [record["step"] for record in read_records(ground.settings.home)] == [
        *(record["step"] for record in records), "ingest"
    ]  # fmt: skip


def _either(before: dict[str, Any], after: dict[str, Any], part: str, name: str) -> list[Any]:
    return [seen[part][name] for seen in (before, after) if name in seen[part]]


def _differing(one: Any, other: Any) -> list[str]:
    if not isinstance(one, dict):
        return [] if one == other else ["all"]
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))
