"""What content adds to an item, and the file that vectors come from."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from recflow.errors import TrainingError
from recflow.models.content import ContentFusion, read_vectors
from recflow.models.next_item import NextItemConfig, NextItemNetwork

_TEXT = np.array([[1, 0], [0, 0], [0, 1]], np.float32)  # item 1 has none
_IMAGE = np.array([[0, 0, 1], [0, 1, 0], [0, 0, 0]], np.float32)  # item 2 has none


def _fusion() -> ContentFusion:
    torch.manual_seed(1)
    return ContentFusion({"text": _TEXT, "image": _IMAGE}, 4)


def test_training_starts_from_the_sum_of_the_parts() -> None:
    fusion, own = _fusion(), torch.randn(3, 4)
    of_image, of_text = fusion.project
    expected = own + of_text(torch.from_numpy(_TEXT)) + of_image(torch.from_numpy(_IMAGE))
    torch.testing.assert_close(fusion(own), expected)


def test_attention_is_over_the_parts_that_an_item_has() -> None:
    fusion, own = _fusion(), torch.randn(3, 4)
    with torch.no_grad():
        fusion.query.copy_(torch.randn(3, 4))
        fusion.bias.copy_(torch.randn(3))
    found = fusion(own).detach().numpy()
    queries, biases = fusion.query.detach().numpy(), fusion.bias.detach().numpy()
    weights = [project.weight.detach().numpy() for project in fusion.project]  # of the image, of the text
    for item, present in enumerate([(0, 1, 2), (0, 1), (0, 2)]):
        parts = [own[item].numpy(), _IMAGE[item] @ weights[0].T, _TEXT[item] @ weights[1].T]
        shares = np.exp([queries[part] @ parts[part] + biases[part] for part in present])
        shares *= len(present) / shares.sum()
        expected = sum(share * parts[part] for share, part in zip(shares, present, strict=True))
        np.testing.assert_allclose(found[item], expected, rtol=1e-4, atol=1e-6)


def test_what_nobody_took_has_nothing_of_its_own() -> None:
    content, taken = {"text": _TEXT}, np.array([True, False, False])
    network = NextItemNetwork(NextItemConfig(3, embedding_size=4), content=content, is_taken=taken)
    assert network.fusion is not None
    found, by_text = network.items(), network.fusion.project[0](torch.from_numpy(_TEXT))
    torch.testing.assert_close(found[0], network.item.weight[0] + by_text[0])
    torch.testing.assert_close(found[1:], torch.stack([torch.zeros(4), by_text[2]]))
    found.sum().backward()
    assert network.item.weight.grad is not None
    assert network.item.weight.grad.isfinite().all()
    assert not network.item.weight.grad[1:].any()


def test_vectors_are_read_by_item_and_made_as_long_as_1(tmp_path: Path) -> None:
    file = tmp_path / "vectors.parquet"
    pq.write_table(pa.table({"item_id": ["b", "x", "a"], "vector": [[3.0, 4.0], [1.0, 1.0], [0.0, 2.0]]}), file)
    np.testing.assert_allclose(read_vectors(file, ["a", "b", "c"]), [[0, 1], [0.6, 0.8], [0, 0]], rtol=1e-6)


@pytest.mark.parametrize(
    "table",
    [
        {"item_id": ["a"], "other": [1]},
        {"item_id": ["a", "b"], "vector": [[1.0], [1.0, 2.0]]},
        {"item_id": ["a"], "vector": [[float("nan")]]},
        {"item_id": ["a"], "vector": [[None]]},
        {"item_id": ["a"], "vector": ["1.0"]},
    ],
)
def test_a_file_of_another_form_is_refused(table: dict[str, list[object]], tmp_path: Path) -> None:
    file = tmp_path / "vectors.parquet"
    pq.write_table(pa.table(table), file)
    with pytest.raises(TrainingError, match=r"vectors\.parquet"):
        read_vectors(file, ["a"])


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="none"):
        read_vectors(tmp_path / "none", ["a"])
