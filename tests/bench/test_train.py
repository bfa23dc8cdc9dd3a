"""`recflow bench train`: a tiny file for recflow's own rows, what a peer writes by hand; nothing is installed."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from recflow.bench import train
from recflow.bench.peers import libraries
from recflow.cli import app
from recflow.errors import RecflowError
from recflow.settings import load_settings


def _circle_file(folder: Path, *, users: int = 120, items: int = 30) -> Path:
    """Write users who walk around a circle of items, one step at a time."""
    starts, lengths = np.arange(users) % items, 5 + np.arange(users) % 4
    lines = [
        " ".join([f"u{user}", *(f"i{(start + step) % items}" for step in range(length))])
        for user, (start, length) in enumerate(zip(starts, lengths, strict=True))
    ]
    file = folder / "sequences.txt"
    file.write_text("\n".join(lines) + "\n")
    return file


def test_own_rows_have_figures_and_a_peer_that_cannot_be_installed_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, out = _circle_file(tmp_path), tmp_path / "train.json"
    monkeypatch.setenv("RECFLOW_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(train.shutil, "which", lambda *_, **__: None)
    monkeypatch.setattr(train, "OURS", ("recflow",))
    options = ["--data", str(data), "--peers", "recbole-sasrec", "--epochs", "2", "--length", "4", "--width", "8"]
    result = CliRunner().invoke(app, ["bench", "train", *options, "--target", "0.01", "--json", str(out)])
    assert result.exit_code == 0, result.output
    found = json.loads(out.read_text())
    network, peer = found["models"]
    assert (network["epochs"], peer["epochs"]) == (2, 0)
    assert network["cpu_s_per_epoch"] > 0
    assert network["x_recflow"] == 1
    assert network["cpu_s_to_0.01"] > 0
    assert peer["cpu_s_per_epoch"] is None
    assert "no uv" in found["notes"][1]["note"]
    (floor,) = found["floor"]
    # 120 users, half a dozen places each: by the formula, with a GRU of 2 x 3 x 8 x 8 weights and 2 x 3 x 8 biases.
    places = sum(4 + user % 4 - 2 for user in range(120))
    assert floor["gflop_per_epoch"] == pytest.approx(6 * places * (30 * 8 + 6 * 64 + 48) / 1e9, abs=0.05)
    assert floor["floor_share"] > 0


def test_the_graph_is_fitted_on_what_is_learned_from_alone(tmp_path: Path) -> None:
    from recflow.bench.peers import ours

    out = tmp_path / "epochs.jsonl"
    ours.fit_graph({"data": str(_circle_file(tmp_path)), "attributes": None, "out": str(out), "seed": 0})
    _, line = train.parse_lines(out.read_text())
    assert line["ndcg_at_10"] > 0.9  # the next item is told by the last one


def test_a_training_out_of_time_keeps_its_epochs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "slow.py"
    program.write_text(
        "import json, sys, time\n"
        "out = json.loads(sys.argv[2])['out']\n"
        'open(out, \'a\').write(\'{"cpu_seconds": 2.0, "ndcg_at_10": 0.1, "peak_memory_mb": 5}\\n{"cpu_sec\')\n'
        "time.sleep(60)\n"
    )
    monkeypatch.setattr(train, "_command", lambda *_: [sys.executable, str(program)])
    lines, note = train._trained("rectools-sasrec", {}, tmp_path, max_minutes=0.02)
    assert lines == [{"cpu_seconds": 2.0, "ndcg_at_10": 0.1, "peak_memory_mb": 5}]
    assert note == "stopped after 0.02 minutes"


def test_a_training_that_fails_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "_command", lambda *_: [sys.executable, "-c", "raise ValueError('no such width')"])
    assert train._trained("rectools-sasrec", {}, tmp_path, max_minutes=1) == ([], "ValueError: no such width")


def test_the_first_epoch_is_warm_up_but_counts_until_a_target() -> None:
    text = "\n".join(
        [
            '{"versions": {"rectools": "0.19.0", "torch": "2.13.0"}}',
            '{"cpu_seconds": 9.0, "ndcg_at_10": 0.01, "peak_memory_mb": 800}',
            '{"cpu_seconds": 4.0, "ndcg_at_10": 0.03, "peak_memory_mb": 900}',
            '{"cpu_seconds": 6.0, "ndcg_at_10": 0.02, "peak_memory_mb": 900}',
            '{"cpu_sec',
        ]
    )
    row = train.summarize("rectools-sasrec", train.parse_lines(text), targets=(0.01, 0.03, 0.04))
    assert row == {
        "model": "rectools-sasrec",
        "cpu_s_per_epoch": (4 + 6) / 2,
        "epochs": 3,
        "ndcg_at_10": 0.03,
        "cpu_s_to_0.01": 9.0,
        "cpu_s_to_0.03": 9.0 + 4.0,
        "cpu_s_to_0.04": None,
        "peak_mb": 900,
    }


def test_a_peer_reads_neither_the_test_item_nor_the_validation_item_to_learn_from(tmp_path: Path) -> None:
    file = tmp_path / "sequences.txt"
    file.write_text("u1 a b c d\nu2 b a e\n")
    assert libraries.read_lines({"data": str(file)}) == [(["a", "b"], "c"), (["b"], "a")]


def test_ndcg_of_scores_with_ties() -> None:
    scores = np.array([[0.5, 0.9, 0.1, 0.5], [0.3, -np.inf, 0.2, 0.1]], np.float32)
    # The first user's item is tied for second place and comes third; the second one's is not to be ranked.
    assert libraries._gains(scores, np.array([0, 1])).tolist() == [1 / np.log2(3 + 1), 0.0]


def test_a_peer_nobody_knows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecflowError, match=r"Unknown peer 'rectools'; expected some of rectools-sasrec"):
        train.bench_train(tmp_path / "none", load_settings(home=tmp_path), peers=["rectools"])
