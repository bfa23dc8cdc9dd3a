"""A second-stage ranker of the handmade shop whose network is written by hand: what was bought, what goes with it."""

import numpy as np
import torch

from recflow.models.assortment import Assortment
from recflow.models.calibration import Calibrator
from recflow.models.candidates import FEATURES, find_candidates
from recflow.models.dataset import TrainingSet
from recflow.models.engagement import Engagement, EngagementNetwork
from recflow.models.engagement_inputs import PAIR_INPUTS, Shelf
from recflow.models.engagement_ranking import EngagedRanker
from recflow.models.ranker import CandidateNetwork, CandidateRanker
from recflow.models.text import title_vectors
from tests.serving import handmade

_SKIP = {"is_own": 1.0, "decayed_60_days": 0.5, "ease": 1.0, "text": 0.3, "sales_28_days": 0.2}  # a deviation's worth


def fitted(training: TrainingSet, model: str) -> tuple[CandidateRanker, CandidateRanker]:
    """Return the ranker that knows all of a training set, and the one that doesn't know the hold-out."""
    return ranker(training), ranker(training, before=True)


def ranker(training: TrainingSet, *, before: bool = False) -> CandidateRanker:
    """Make a ranker by hand; its perceptron adds a little of everything."""
    cut = handmade.HOLDOUT_START if before else None
    text = title_vectors(training.items["title"].to_pylist())
    known = Assortment.of(training.interactions(cut), prices=training.prices(cut), text=text, regularization=20)
    encoders = training.fit_encoders([handmade.HOLDOUT_START])
    candidates = find_candidates(training.context(training.holdout_rows(), encoders), known)
    torch.manual_seed(0)
    network = CandidateNetwork()
    network.scaler.learn(candidates.features)
    weights = np.array([_SKIP.get(name, 0) for name in FEATURES], np.float32)
    with torch.no_grad():
        network.skip.weight.copy_(torch.from_numpy(weights[None]))
    return CandidateRanker(network, known)


def engaged(training: TrainingSet) -> EngagedRanker:
    """Put a stage above the ranker that has learned nothing, so that its order is any."""
    encoders = training.fit_encoders([handmade.HOLDOUT_START])
    torch.manual_seed(0)
    network = EngagementNetwork(len(PAIR_INPUTS) + encoders.user.width + encoders.item.width).eval()
    torch.nn.init.normal_(network.linear.weight)
    stage = Engagement(network, (Calibrator.identity(),) * 3, Shelf.of(training.items), 20, (0.2, 0.3, 0.5))
    return EngagedRanker(ranker(training), stage)
