"""Sequences as files have them: what is read, what is refused, and the cuts that the protocol makes."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recflow.errors import FeedError
from recflow.models.histories import Histories, SequenceFile

_LISTS = st.lists(st.lists(st.integers(0, 9), min_size=3, max_size=12), min_size=1, max_size=8)


def _written(folder: Path, text: str) -> Path:
    file = folder / "sequences.txt"
    file.write_text(text, encoding="utf-8")
    return file


def _histories(lists: list[list[int]]) -> Histories:
    return Histories.of(np.array([len(one) for one in lists]), np.concatenate(lists).astype(np.int32), 10)


def _lists(histories: Histories) -> list[list[int]]:
    return [part.tolist() for part in np.split(histories.items, histories.offsets[1:-1])]


def test_a_file_is_read_back_in_its_own_ids(tmp_path: Path) -> None:
    found = SequenceFile.read(_written(tmp_path, "u1 a b c\n7 c  a d b\n\n"), seed=1)
    ids = np.array(found.item_ids.to_pylist())
    assert found.user_ids.to_pylist() == ["u1", "7"]
    assert [[str(ids[item]) for item in one] for one in _lists(found.histories)] == [list("abc"), list("cadb")]


def test_item_numbers_are_drawn_anew_by_every_seed(tmp_path: Path) -> None:
    file = _written(tmp_path, "u " + " ".join(map(str, range(50))))
    numbers = {tuple(SequenceFile.read(file, seed=seed).histories.items.tolist()) for seed in range(5)}
    assert len(numbers) == 5
    assert tuple(range(50)) not in numbers
    assert all(sorted(one) == list(range(50)) for one in numbers)


def test_attributes_stand_in_the_rows_of_their_items(tmp_path: Path) -> None:
    attributes = tmp_path / "attributes.json"
    attributes.write_text(json.dumps({"a": [3, 5, 5], "c": [5], "unheard": [9]}))
    found = SequenceFile.read(_written(tmp_path, "u a b c"), attributes=attributes)
    rows = dict(zip(found.item_ids.to_pylist(), found.attributes.toarray().tolist(), strict=True))
    assert rows == {"a": [1, 1], "b": [0, 0], "c": [0, 1]}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "empty"),
        ("u1 a b c\nu2 a\n", "line 2 has 1 items"),
        ("u1 a b c\nu1 c b a\n", "user 'u1' has two lines"),
    ],
)
def test_what_is_no_such_file_is_refused(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(FeedError, match=words):
        SequenceFile.read(_written(tmp_path, text))


@pytest.mark.parametrize("text", ["[1]", "{", '{"a": 3}', '{"unheard": [1]}'])
def test_attributes_of_another_form_are_refused(tmp_path: Path, text: str) -> None:
    attributes = tmp_path / "attributes.json"
    attributes.write_text(text)
    with pytest.raises(FeedError, match=r"attributes\.json"):
        SequenceFile.read(_written(tmp_path, "u a b c"), attributes=attributes)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FeedError, match=r"nothing\.txt: no such file"):
        SequenceFile.read(tmp_path / "nothing.txt")


@given(_LISTS, st.integers(0, 2))
def test_cuts_are_those_of_python_lists(lists: list[list[int]], n: int) -> None:
    histories = _histories(lists)
    assert _lists(histories.without_last(n)) == [one[: len(one) - n] for one in lists]
    assert _lists(histories.last(n + 1)) == [one[-n - 1 :] for one in lists]
    assert histories.at_end(n).tolist() == [one[-1 - n] for one in lists]
    order = np.arange(len(lists))[::-1]
    assert _lists(histories.take(order)) == lists[::-1]
    assert [set(np.flatnonzero(row)) for row in histories.seen()] == [set(one) for one in lists]
    assert histories.taken().toarray().tolist() == [[one.count(item) for item in range(10)] for one in lists]
    assert _lists(histories) == lists
