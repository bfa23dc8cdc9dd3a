"""The engagement stage: its network by other means, and what it does to a retrieval model's ranking."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch.nn import functional as F

from recflow.models.calibration import Calibrator
from recflow.models.catalog import load_ranker
from recflow.models.engagement import Engagement, EngagementNetwork, log_loss_of
from recflow.models.engagement_inputs import PAIR_INPUTS, Retrieved, Shelf, pair_inputs
from recflow.models.engagement_ranking import EngagedRanker
from recflow.models.interactions import Context
from recflow.models.linear import EASE
from tests.models.worlds import context_for, random_interactions

N_ITEMS = 25
DEPTH = 8


def _shelf() -> Shelf:
    return Shelf(
        brand=np.arange(N_ITEMS, dtype=np.int32) % 4,
        category=np.arange(N_ITEMS, dtype=np.int32) % 3 + 1,
        price=np.linspace(-1, 1, N_ITEMS, dtype=np.float32),
    )


@pytest.fixture
def context() -> Context:
    return context_for(random_interactions())


@pytest.fixture
def ranker(context: Context) -> EngagedRanker:
    torch.manual_seed(3)
    width = len(PAIR_INPUTS) + context.user_features.shape[1] + context.item_features.shape[1]
    network = EngagementNetwork(width).eval()
    torch.nn.init.normal_(network.linear.weight)
    stage = Engagement(network, (Calibrator.identity(),) * 3, _shelf(), DEPTH, (0.2, 0.3, 0.5), 0.5)
    assert PAIR_INPUTS[1] == "score"
    return EngagedRanker(EASE(regularization=5.0).fit(random_interactions()), stage)


def test_a_chance_is_the_product_along_the_way_and_its_loss_the_sum_of_the_heads() -> None:
    torch.manual_seed(0)
    network = EngagementNetwork(6).eval()
    inputs, position = torch.randn(40, 6), torch.arange(40) % 5
    network.start_from(np.random.default_rng(0).random((40, 3)) < 0.3, position.numpy() + 1)
    labels = torch.rand(40, 3) < 0.4
    log_chances = network(inputs, position)
    chances = log_chances.exp()
    assert (chances[:, 1:] <= chances[:, :-1]).all()
    expected = sum(F.binary_cross_entropy(chances[:, head], labels[:, head].float()) for head in range(3))
    torch.testing.assert_close(log_loss_of(log_chances, labels), expected)


def test_before_it_learns_it_gives_the_rates_that_it_was_told() -> None:
    labels = np.zeros((400, 3), bool)
    labels[:100, 0] = labels[:40, 1] = labels[:10, 2] = True
    network = EngagementNetwork(4)
    torch.nn.init.zeros_(network.heads)
    network.start_from(labels, np.ones(400, np.int64))
    found = network.eval()(torch.randn(3, 4)).exp()
    torch.testing.assert_close(found, torch.tensor([[0.25, 0.1, 0.025]]).repeat(3, 1), rtol=1e-3, atol=1e-5)


def test_a_lower_position_lowers_clicks_alone_and_serving_knows_none() -> None:
    network = EngagementNetwork(4).eval()
    with torch.no_grad():
        network.position.weight[3] = -2.0
    inputs = torch.randn(5, 4)
    first, fourth = network(inputs).exp(), network(inputs, torch.full((5,), 3)).exp()
    assert (fourth[:, 0] < first[:, 0]).all()
    torch.testing.assert_close(fourth[:, 1] / fourth[:, 0], first[:, 1] / first[:, 0])  # a cart, given a click
    torch.testing.assert_close(network(inputs, torch.zeros(5, dtype=torch.long)), network(inputs))


def test_inputs_are_worked_out_by_hand() -> None:
    # One shopper: bought item 0 and viewed item 1 (weights 1 and 0.2); scores 3, 1, 2 for the three items.
    context = Context(
        items=np.array([[0, 1, 2]], np.int32),
        ages_days=np.array([[0, 2, 1]], np.float32),
        event_types=np.array([[0, 4, 2]], np.int8),
        quantities=np.ones((1, 3), np.float32),
        user_features=np.array([[7]], np.float32),
        item_features=np.array([[10], [11], [12]], np.float32),
    )
    shelf = Shelf(np.array([1, 2, 1], np.int32), np.array([0, 1, 1], np.int32), np.array([0.5, -1, 0], np.float32))
    pairs = Retrieved.of(np.array([[3, 1, 2]], np.float32), np.array([0, 0]), np.array([0, 2]), depth=2)
    found = pair_inputs(context, pairs, shelf)
    mean_price = (1 * 0.5 + 0.2 * -1) / (1.2 + 2)
    brand_1 = np.log((1 + 2 * 2 / 3) / (1.2 + 2) / (2 / 3))
    category_1 = np.log((0.2 + 2 * 2 / 3) / (1.2 + 2) / (2 / 3))
    expected = {
        "is_scored": [1, 1],
        "score": [1, 0],  # the best of two that are put in order, and the last
        "rank": [0, 1],
        "is_own": [1, 0],
        "events": [np.log(3) / 2] * 2,
        "brand": [brand_1, brand_1],
        "category": [0, category_1],  # 0: the item has none
        "price": [0.5, 0],
        "price_ratio": [0.5 - mean_price, -mean_price],
    }
    np.testing.assert_allclose(
        found, np.stack([*(expected[name] for name in PAIR_INPUTS), [7, 7], [10, 12]], axis=1), rtol=1e-6
    )


def test_a_shelf_takes_prices_against_their_category() -> None:
    items = pa.table({"brand": ["b", None, "a"], "category": ["x", "x", None], "price": [1.0, 4.0, None]})
    shelf = Shelf.of(items)
    assert shelf.brand.tolist() == [2, 0, 1]
    assert shelf.category.tolist() == [1, 1, 0]
    np.testing.assert_allclose(shelf.price, [-np.log(2), np.log(2), 0], rtol=1e-6)


def test_the_best_are_put_in_order_of_what_they_are_worth_and_the_rest_stay_behind(
    ranker: EngagedRanker, context: Context
) -> None:
    before, after = ranker.retrieval.score(context), ranker.score(context)
    for old, new in zip(before, after, strict=True):
        best = np.argsort(-old, kind="stable")[:DEPTH]
        rest = np.setdiff1d(np.arange(N_ITEMS), best)
        np.testing.assert_array_equal(old[rest], new[rest])
        assert new[best].min() >= old[rest].max()
        assert new[best].max() == pytest.approx(max(old.max(), old[best].min() + 1e-3), rel=1e-5)
    pairs = Retrieved.of(before, np.zeros(N_ITEMS, np.int64), np.arange(N_ITEMS), depth=DEPTH)
    stage = ranker.stage
    inputs = stage.inputs(context, pairs)
    worth = stage.calibrated(stage.chances(inputs)) @ [0.2, 0.3, 0.5] * np.exp(0.5 * inputs[:, 1])
    best = np.argsort(-before[0], kind="stable")[:DEPTH]
    assert best[np.argsort(-after[0][best], kind="stable")].tolist() == best[np.argsort(-worth[best])].tolist()
    assert (np.argsort(-after[0])[:DEPTH] != np.argsort(-before[0])[:DEPTH]).any()


def test_what_the_stage_adds_is_in_the_rest_and_the_parts_still_make_the_score(
    ranker: EngagedRanker, context: Context
) -> None:
    ranking, items = ranker.rank(context), np.tile(np.arange(N_ITEMS, dtype=np.int32), (len(context), 1))
    items[:, -1] = -1
    found, alone = ranking.attribute(items), ranking.retrieval.attribute(items)
    np.testing.assert_array_equal(found.events, alone.events)
    np.testing.assert_allclose(found.rest - alone.rest, ranking.added(items), atol=1e-6)
    total = found.events.sum(axis=-1) + found.rest - ranking.scores[:, :N_ITEMS]
    np.testing.assert_allclose(total[:, :-1], total[:, :1].repeat(N_ITEMS - 1, axis=1), atol=1e-4)
    assert (found.rest[:, -1] == 0).all()
    some = np.array([3, 1])
    np.testing.assert_allclose(ranking.attribute(items[some], some).rest, found.rest[some], atol=1e-6)


def test_it_is_read_back_by_its_folder_and_scores_the_same(
    ranker: EngagedRanker, context: Context, tmp_path: Path
) -> None:
    ranker.save(tmp_path)
    again = load_ranker(tmp_path)
    assert isinstance(again, EngagedRanker)
    assert again.name == "ease"
    np.testing.assert_array_equal(again.score(context), ranker.score(context))
    assert {file.suffix for file in tmp_path.rglob("*") if file.is_file()} == {".json", ".safetensors"}


def test_it_is_not_fitted_on_interactions(ranker: EngagedRanker) -> None:
    with pytest.raises(TypeError, match=r"training\.engagement"):
        ranker.fit(random_interactions())
