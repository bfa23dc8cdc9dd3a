"""`recflow bench sequences` on a small file whose next items follow from the last one."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from recflow.cli import app

_N_ITEMS = 30
_N_USERS = 150


def _chain_file(folder: Path, *, prefix: str = "") -> Path:
    """Write users who walk around a circle of items, one step at a time."""
    rng = np.random.default_rng(0)
    starts, lengths = rng.integers(0, _N_ITEMS, _N_USERS), rng.integers(5, 9, _N_USERS)
    lines = [
        " ".join([str(user + 1), *(f"{prefix}{(start + step) % _N_ITEMS + 100}" for step in range(length))])
        for user, (start, length) in enumerate(zip(starts, lengths, strict=True))
    ]
    file = folder / "sequences.txt"
    file.write_text("\n".join(lines) + "\n")
    return file


def _run(folder: Path, data: Path, *more: str) -> tuple[dict[str, object], list[dict[str, object]]]:
    out, report = folder / "lists" / "preds.parquet", folder / "report.json"
    options = ["--data", str(data), "--out", str(out), "--report", str(report), *more]
    result = CliRunner().invoke(app, ["bench", "sequences", *options])
    assert result.exit_code == 0, result.output
    return json.loads(report.read_text()), pq.read_table(out).to_pylist()


def test_what_follows_is_found_and_lists_keep_the_protocol(tmp_path: Path) -> None:
    data = _chain_file(tmp_path)
    attributes = tmp_path / "attributes.json"
    attributes.write_text(json.dumps({str(item + 100): [item % 3] for item in range(_N_ITEMS)}))
    report, rows = _run(tmp_path, data, "--attributes", str(attributes), "--seed", "3")
    lines = [[int(word) for word in line.split()] for line in data.read_text().splitlines()]
    assert [row["user"] for row in rows] == [line[0] for line in lines]
    everything = {item + 100 for item in range(_N_ITEMS)}
    for row, (_, *taken, _) in zip(rows, lines, strict=True):
        assert set(row["items"]) == everything - set(taken)
        assert len(row["items"]) == len(set(row["items"]))
    ranks = np.array([row["items"].index(line[-1]) for row, line in zip(rows, lines, strict=True)])
    by_hand = {
        "recall_at_10": (ranks < 10).mean(),
        "ndcg_at_10": np.where(ranks < 10, 1 / np.log2(ranks + 2), 0).mean(),
    }
    assert {name: report["test"][name] for name in by_hand} == pytest.approx(by_hand)
    assert by_hand["ndcg_at_10"] > 0.9  # chance: 0.2
    assert report["chosen_on_validation"]["epochs"] >= 1
    assert report["attributes"] == 3


def test_equal_seeds_give_equal_lists_and_ids_may_be_words(tmp_path: Path) -> None:
    data = _chain_file(tmp_path, prefix="sku-")
    _, first = _run(tmp_path, data, "--seed", "1")
    _, again = _run(tmp_path, data, "--seed", "1")
    assert [row["items"][:3] for row in first] == [row["items"][:3] for row in again]
    assert first[0]["items"][0].startswith("sku-")


def test_a_limit_of_time_ends_training_with_the_weights_so_far(tmp_path: Path) -> None:
    report, rows = _run(tmp_path, _chain_file(tmp_path), "--max-minutes", "0.01")
    assert len(rows) == _N_USERS
    assert report["schedule"]["max_seconds"] == pytest.approx(0.6)
    assert report["history"]


def test_the_encoder_is_an_option(tmp_path: Path) -> None:
    report, rows = _run(tmp_path, _chain_file(tmp_path), "--encoder", "graph", "--max-minutes", "0.01")
    assert report["config"]["encoder"] == "graph"
    assert len(rows) == _N_USERS


def test_a_file_that_is_none_ends_with_a_sentence(tmp_path: Path) -> None:
    result = CliRunner().invoke(
        app, ["bench", "sequences", "--data", "nothing.txt", "--out", "o.parquet", "--report", "r.json"]
    )
    assert result.exit_code == 1
    assert "nothing.txt" in str(result.exception) + result.output
