import json
import logging
import threading
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from recflow.runlog import read_records, recorded


def test_a_step_that_ran_is_on_record_with_its_time_and_memory(tmp_path: Path) -> None:
    before = datetime.now(UTC).replace(microsecond=0)
    with recorded(tmp_path, "ingest", "2011-03-01") as facts:
        time.sleep(0.2)
        block = np.ones(100 * 2**20, dtype=np.uint8)  # 100 MiB, touched
        time.sleep(0.2)
        facts["output"] = f"{block[0]}"
        del block
    (record,) = read_records(tmp_path)
    assert (record["step"], record["subject"], record["outcome"]) == ("ingest", "2011-03-01", "done")
    assert record["output"] == "1"
    assert 0.4 <= record["seconds"] < 5
    assert before <= datetime.fromisoformat(record["started"]) <= datetime.now(UTC)
    with recorded(tmp_path, "validate", "2011-03-01"):
        pass
    small = read_records(tmp_path)[1]
    assert record["peak_mib"] - small["peak_mib"] > 50  # the block is gone again


def test_a_step_that_failed_is_on_record_and_its_error_goes_on(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="broken"), recorded(tmp_path, "train", "2011-03-01"):
        raise ValueError("broken")
    (record,) = read_records(tmp_path)
    assert record["outcome"] == "failed"


def test_records_stand_in_the_order_in_which_steps_ended(tmp_path: Path) -> None:
    assert read_records(tmp_path) == []
    with recorded(tmp_path, "outer", "x"), recorded(tmp_path, "inner", "x"):
        pass
    assert [record["step"] for record in read_records(tmp_path)] == ["inner", "outer"]


def test_many_steps_at_once_do_not_mix_their_lines(tmp_path: Path) -> None:
    def step(number: int) -> None:
        with recorded(tmp_path, "step", f"{number}") as facts:
            facts["output"] = "x" * 2000

    threads = [threading.Thread(target=step, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(int(record["subject"]) for record in read_records(tmp_path)) == list(range(20))


def test_a_line_that_was_cut_short_hides_no_other(tmp_path: Path) -> None:
    with recorded(tmp_path, "first", "x"):
        pass
    file = tmp_path / "runs" / "steps.jsonl"
    with file.open("a") as stream:
        stream.write('{"step": "cut", "sub\n')
    with recorded(tmp_path, "second", "x"):
        pass
    assert [record["step"] for record in read_records(tmp_path)] == ["first", "second"]


def test_a_line_is_json_whatever_the_facts_are(tmp_path: Path) -> None:
    with recorded(tmp_path, "step", "x") as facts:
        facts["output"] = Path("somewhere")
    line = (tmp_path / "runs" / "steps.jsonl").read_text()
    assert line.endswith("\n")
    assert json.loads(line)["output"] == "somewhere"


def test_begin_and_end_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="recflow"), recorded(tmp_path, "ingest", "2011-03-01"):
        pass
    assert caplog.messages[0] == "ingest 2011-03-01 ..."
    assert caplog.messages[1].startswith("ingest 2011-03-01: done in 0.")
    assert caplog.messages[1].endswith(" MiB")
