from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from recflow.errors import TrainingError
from recflow.models.dataset import TrainingSet
from recflow.models.features import Encoders
from recflow.settings import TrainingSettings, load_settings
from recflow.training.sequence import SequenceTraining, Validation, Windows, _model, fit_sequence
from tests.training.conftest import SMALL


@pytest.fixture
def small() -> TrainingSettings:
    return load_settings(training=SMALL).training


@pytest.fixture
def encoders(training_set: TrainingSet) -> Encoders:
    return training_set.fit_encoders(training_set.cuts[:-1])


@pytest.fixture
def windows(training_set: TrainingSet, encoders: Encoders, small: TrainingSettings) -> Windows:
    return Windows(training_set, encoders, training_set.cuts[:-1], settings=small)


def _order(windows: Windows, epoch: int) -> list[tuple[float, ...]]:
    windows.epoch = epoch
    return [tuple(batch.user_features.flatten().tolist()) for batch, _ in windows]


def test_the_order_is_a_function_of_seed_and_epoch(windows: Windows, small: TrainingSettings) -> None:
    first, second = _order(windows, 0), _order(windows, 1)
    assert _order(windows, 0) == first != second
    windows.settings = small.model_copy(update={"seed": 1})
    assert _order(windows, 0) != first


def test_an_epoch_has_every_example_once_and_batches_of_one_cut(training_set: TrainingSet, windows: Windows) -> None:
    seen: list[np.ndarray] = []
    original = training_set.context

    def watched(rows: np.ndarray, *args: object, **options: object) -> object:
        seen.append(rows)
        return original(rows, *args, **options)

    object.__setattr__(training_set, "context", watched)
    try:
        assert len(list(windows)) == len(windows) == len(seen)
    finally:
        object.__delattr__(training_set, "context")
    expected = np.flatnonzero(training_set.examples.cut < np.datetime64(training_set.holdout_start, "D"))
    assert np.sort(np.concatenate(seen)).tolist() == expected.tolist()
    assert all(len(np.unique(training_set.examples.cut[rows])) == 1 for rows in seen)
    assert max(map(len, seen)) <= SMALL["batch_size"]


def test_the_loss_is_the_mean_over_shoppers_of_the_mean_over_targets(
    training_set: TrainingSet, encoders: Encoders, small: TrainingSettings, windows: Windows
) -> None:
    training = SequenceTraining(_model(training_set, encoders, small, None), windows, None).eval()
    cut = training_set.cuts[0]
    rows = training_set.rows_of(cut)[:5]
    batch, targets = windows.batch(cut, rows)
    logits = training.model(batch).detach().double().numpy()
    expected = []
    for row, number in enumerate(rows):
        wanted = training_set.examples.targets_of(np.array([number]))[1]
        log_p = logits[row] - np.log(np.exp(logits[row]).sum())
        expected.append(-log_p[wanted].mean())
    assert training.training_step((batch, targets), 0).item() == pytest.approx(np.mean(expected), rel=1e-5)


@pytest.mark.parametrize("parts", [2, 3])
def test_processes_learn_together_what_one_does(
    training_set: TrainingSet, encoders: Encoders, small: TrainingSettings, windows: Windows, parts: int
) -> None:
    """The mean over the processes of a batch's gradients, which is what DDP takes, is the gradient of all of it."""
    training = SequenceTraining(_model(training_set, encoders, small, None), windows, None).eval()
    weights = list(training.model.parameters())
    windows.parts = parts
    of_parts = []
    for windows.part in range(parts):
        of_parts.append([batch for batch, _ in zip(windows, range(3), strict=False)])
    windows.part, windows.parts = 0, 1
    for batch, *own in zip(windows, *of_parts, strict=False):
        assert len(batch[0].items) == sum(len(inputs.items) for inputs, _ in own)
        whole = torch.autograd.grad(training.training_step(batch, 0), weights, allow_unused=True)
        each = [torch.autograd.grad(training.training_step(part, 0), weights, allow_unused=True) for part in own]
        for expected, *found in zip(whole, *each, strict=True):
            if expected is not None:
                torch.testing.assert_close(sum(found) / parts, expected, rtol=1e-3, atol=1e-6)


def test_too_few_examples_for_the_processes_are_refused(windows: Windows) -> None:
    training = SequenceTraining(torch.nn.Linear(1, 1), windows, None)  # type: ignore[arg-type]
    training.trainer = SimpleNamespace(current_epoch=0, global_rank=0, world_size=windows.fewest + 1)  # type: ignore[assignment]
    with pytest.raises(TrainingError, match=f"A batch of {windows.fewest} examples is too small"):
        training.train_dataloader()


def test_validation_sees_perfect_scores_as_one(training_set: TrainingSet, encoders: Encoders) -> None:
    cut = training_set.cuts[-2]
    rows = training_set.rows_of(cut)
    place, item, _ = training_set.examples.targets_of(rows)

    class Oracle:
        def score(self, context: object) -> np.ndarray:
            scores = np.zeros((len(rows), training_set.items.num_rows), np.float32)
            scores[place, item] = 1
            return scores

    figures = Validation(training_set, encoders, cut, seed=0).figures(Oracle())  # type: ignore[arg-type]
    assert figures == pytest.approx({"ndcg_at_10": 1, "ndcg_at_10_any": 1, "ndcg_at_10_new": 1})


def test_the_best_epoch_is_kept(
    training_set: TrainingSet,
    encoders: Encoders,
    small: TrainingSettings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Validation finds the second epoch best: the weights are the second checkpoint's, and it stops at the fourth."""
    figures = iter([0.1, 0.3, 0.2, 0.25, 0.9])
    monkeypatch.setattr(Validation, "figures", lambda self, ranker: {"ndcg_at_10": next(figures)})
    fitted = fit_sequence(
        training_set,
        encoders,
        training_set.cuts[:2],
        settings=small.model_copy(update={"max_epochs": 5, "patience": 2}),
        checkpoints=tmp_path,
        validation_cut=training_set.cuts[-2],
    )
    assert fitted.epochs == 2
    assert [entry["ndcg_at_10"] for entry in fitted.history] == [0.1, 0.3, 0.2, 0.25]
    kept = torch.load(tmp_path / "epoch=1.ckpt", weights_only=True)["state_dict"]
    for name, tensor in fitted.ranker.model.state_dict().items():
        assert torch.equal(tensor, kept[f"model.{name}"]), name
