"""`recflow bench scale` on a small catalogue, of which every item is drawn as from a large one."""

from pathlib import Path

import numpy as np
import pytest

from recflow.bench import scale
from recflow.models.histories import Histories
from recflow.training import next_item


def test_made_up_users_stay_in_an_aisle_and_few_items_are_taken_most() -> None:
    histories = scale.make_histories(4000, 100_000)
    assert abs(len(histories.items) / 100_000 - 1) < 0.05
    assert histories.lengths.min() >= 4
    counts = np.sort(np.bincount(histories.items, minlength=4000))[::-1]
    assert counts[:40].sum() > 0.1 * counts.sum()
    # The same item follows the same one again more often than if items were taken in any order.
    at = np.setdiff1d(np.arange(len(histories.items)), histories.offsets[1:] - 1)
    pairs, shuffled = (
        4000 * histories.items[at].astype(np.int64) + following
        for following in (histories.items[at + 1], np.random.default_rng(0).permutation(histories.items[at + 1]))
    )
    assert len(np.unique(pairs)) < 0.9 * len(np.unique(shuffled))


def test_the_bench_ranks_by_what_it_trained_and_by_popularity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(next_item, "_VALIDATION_SCORES", 200 * 51_000)
    scale._write(tmp_path, 51_000, 20_000)
    train, wanted = Histories.open(tmp_path / "train"), np.load(tmp_path / "wanted.npy")
    rows = scale._train(tmp_path, 8, 1, 1)
    (costs,), by = rows["training"], {row["by"]: row for row in rows["validation"]}
    assert costs["users"] == len(train) == len(wanted)
    assert by["network"]["users"] == by["popularity"]["users"] == 200
    assert costs["items"] == 51_000
    assert costs["events_per_cpu_s"] > 0
    assert 0 <= by["network"]["ndcg_at_10"] <= by["network"]["recall_at_10"]


def test_ranks_by_popularity_leave_out_what_a_user_has() -> None:
    counts = np.array([5, 4, 3, 3, 1])
    taken = np.array([0, 0, 4, 4, 2, 1], np.int32)
    histories = Histories.of(np.array([2, 1, 3]), taken.copy(), 5)
    wanted = np.array([2, 0, 4], np.int32)
    # 1 and 3 stand before 2, 0 left out; nothing before 0; and 4 isn't to be ranked.
    assert scale._popularity_ranks(counts, histories, wanted).tolist() == [3, 1, 6]
    assert histories.items.tolist() == taken.tolist()  # in the order that they were taken
