"""What holds for everything that ranks."""

import dataclasses
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from recflow.errors import BundleInvalid
from recflow.models.catalog import load_ranker
from recflow.models.heuristics import Popularity, RepeatPurchase
from recflow.models.interactions import Context, Interactions, Ranker, top_k
from recflow.models.linear import EASE, ItemKNN
from tests.models.test_next_item_ranker import make_ranker
from tests.models.worlds import context_for, random_interactions


def _sequence(known: Interactions) -> Ranker:
    import torch

    from recflow.models.network import SequenceConfig, SequenceModel
    from recflow.models.sequence import SequenceRanker

    torch.manual_seed(0)
    config = SequenceConfig(
        n_items=known.n_items, text_size=6, n_user_features=3, n_item_features=4, embedding_size=16, sequence_length=8
    )
    return SequenceRanker(SequenceModel(config, torch.randn(known.n_items, 6)))


def _ranker(known: Interactions) -> Ranker:
    import torch

    from recflow.models.ranker import CandidateNetwork, CandidateRanker
    from tests.models.test_assortment import assortment_of

    torch.manual_seed(0)
    return CandidateRanker(CandidateNetwork(heads=2), assortment_of(known))


FITTED: dict[str, Callable[[Interactions], Ranker]] = {
    "popularity": lambda known: Popularity().fit(known),
    "repeat_purchase": lambda known: RepeatPurchase().fit(known),
    "item_knn": lambda known: ItemKNN(neighbours=5).fit(known),
    "ease": lambda known: EASE(regularization=20).fit(known),
    "ease_recent": lambda known: EASE(regularization=20, recency_days=45).fit(known),
    "sequence": _sequence,
    "ranker": _ranker,
    "next_item_gru": lambda known: make_ranker(known, "gru"),
    "next_item_graph": lambda known: make_ranker(known, "graph"),
}


@pytest.fixture(params=FITTED)
def fitted(request: pytest.FixtureRequest) -> Ranker:
    ranker = FITTED[request.param](random_interactions())
    assert ranker.name == request.param
    return ranker


@pytest.fixture
def context() -> Context:
    return context_for(random_interactions())


def test_scores_are_one_finite_float32_row_a_shopper(fitted: Ranker, context: Context) -> None:
    scores = fitted.score(context)
    assert scores.shape == (60, 25)
    assert scores.dtype == np.float32
    assert np.isfinite(scores).all()


@pytest.mark.parametrize("name", FITTED)
def test_fitting_again_gives_the_same_scores(name: str, context: Context) -> None:
    first, second = (FITTED[name](random_interactions()).score(context) for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_a_model_read_back_scores_the_same_to_the_last_bit(fitted: Ranker, context: Context, tmp_path: Path) -> None:
    fitted.save(tmp_path)
    again = load_ranker(tmp_path)
    assert type(again) is type(fitted)
    assert again.name == fitted.name
    np.testing.assert_array_equal(again.score(context), fitted.score(context))
    assert {file.suffix for file in tmp_path.iterdir()} == {".json", ".safetensors"}


def test_a_shopper_without_history_gets_a_list(fitted: Ranker, context: Context) -> None:
    stranger = dataclasses.replace(
        context,
        items=np.zeros_like(context.items[:1]),
        ages_days=np.zeros_like(context.ages_days[:1]),
        event_types=np.zeros_like(context.event_types[:1]),
        quantities=np.zeros_like(context.quantities[:1]),
        user_features=np.zeros_like(context.user_features[:1]),
    )
    scores = fitted.score(stranger)
    assert np.isfinite(scores).all()
    assert np.ptp(scores) > 0  # an order, not a shrug
    if fitted.name not in ("sequence", "ranker"):  # whose weights aren't trained here
        sold = Popularity(days=getattr(fitted, "recency_days", 0) or 30).fit(random_interactions()).purchases
        assert top_k(scores, 1)[0][0, 0] == sold.argmax()


def test_a_shopper_is_scored_alike_alone_and_among_others(fitted: Ranker, context: Context) -> None:
    alone = {name: value if name == "item_features" else value[5:6] for name, value in vars(context).items()}
    np.testing.assert_allclose(fitted.score(Context(**alone))[0], fitted.score(context)[5], rtol=1e-4, atol=1e-5)


def test_a_ranking_has_the_same_scores(fitted: Ranker, context: Context) -> None:
    np.testing.assert_allclose(fitted.rank(context).scores, fitted.score(context), atol=1e-6)


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleInvalid, match=r"model\.json"):
        load_ranker(tmp_path)


def test_an_unknown_class_is_refused(tmp_path: Path) -> None:
    Popularity().fit(random_interactions()).save(tmp_path)
    file = tmp_path / "model.json"
    file.write_text(file.read_text().replace("Popularity", "Astrology"))
    with pytest.raises(BundleInvalid, match="Astrology"):
        load_ranker(tmp_path)


def test_baselines_are_loaded_without_torch(tmp_path: Path) -> None:
    FITTED["ease"](random_interactions()).save(tmp_path)
    code = (
        "import sys; from pathlib import Path; import recflow.models.dataset, recflow.training.fit\n"
        "from recflow.models.catalog import load_ranker\n"
        f"load_ranker(Path({str(tmp_path)!r}))\n"
        "print(sorted({'torch', 'pytorch_lightning', 'feast', 'pandas'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
