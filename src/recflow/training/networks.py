"""A training set -> a `NextItemRanker`: any encoder, trained on what users took in order, items known by their content.

The last step of each user says when to stop, all before it is learned from; both are before the hold-out where the part
is. Content: titles always; vectors and images where settings name them.
"""

from datetime import date
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from recflow.errors import TrainingError
from recflow.models.content import Content, read_vectors
from recflow.models.dataset import TrainingSet
from recflow.models.heuristics import recent_purchases
from recflow.models.histories import Histories
from recflow.models.next_item import NextItemConfig, make_network
from recflow.models.next_item_ranker import NextItemRanker, histories_of
from recflow.models.text import title_vectors
from recflow.settings import NetworkName, TrainingSettings
from recflow.training.next_item import NextItemTraining, Schedule, Validation, make_windows
from recflow.training.trainer import run_epochs

_MIN_STEPS = 32  # of an epoch: a small shop's network would hardly move otherwise
_VALIDATED = 2000  # users at most: NDCG@10 of so many has a standard error of some 0.004


def fit_network(
    encoder: NetworkName, training_set: TrainingSet, settings: TrainingSettings, *, before: date | None
) -> tuple[NextItemRanker, list[dict[str, float]]]:
    """Train on the events before a day (all, without one); return the ranker and the figures of each validation.

    Raises:
        TrainingError: nobody took two things.
    """
    interactions = training_set.interactions(before)
    histories = histories_of(interactions)
    usable = histories.take(np.flatnonzero(histories.lengths > 1))
    if not len(usable):
        raise TrainingError(
            f"Training set {training_set.until}: no user took two different items in turn, so nothing comes next. "
            "Leave training.networks empty, or prepare more days."
        )
    torch.set_num_threads(settings.threads)
    torch.manual_seed(settings.seed)
    training = _training(encoder, usable, item_content(training_set, settings, before=before), settings)
    run_epochs(
        training,
        epochs=settings.network_epochs,
        accelerator=settings.accelerator,
        devices=settings.devices,
        compiled=settings.compiled,
        enable_checkpointing=False,
    )
    training.network.load_state_dict(training.best)
    purchases = recent_purchases(interactions, days=settings.popularity_days)
    popularity = (purchases / max(purchases.max(initial=0), 1)).astype(np.float32)
    return NextItemRanker(training.network.cpu(), popularity), training.history


def _training(
    encoder: NetworkName, histories: Histories, content: Content, settings: TrainingSettings
) -> NextItemTraining:
    train, wanted = histories.without_last(1), histories.at_end(0)
    config = NextItemConfig(
        n_items=histories.n_items,
        encoder=encoder,
        embedding_size=settings.embedding_size,
        sequence_length=settings.sequence_length,
        layers=max(settings.layers, 1),
        heads=settings.heads,
        dropout=settings.dropout,
        attention_dropout=settings.dropout,
    )
    schedule = Schedule(
        max_epochs=settings.network_epochs,
        patience=settings.patience,
        validate_every=1,
        batch_places=min(Schedule.batch_places, max(len(train.items) // _MIN_STEPS, 1)),
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        threads=settings.threads,
    )
    users = np.sort(np.random.default_rng(settings.seed).permutation(len(train))[:_VALIDATED])
    return NextItemTraining(
        make_network(config, train, content=content),
        make_windows(train, schedule, length=config.sequence_length, seed=settings.seed),
        schedule,
        Validation(train.take(users), wanted[users]),
    )


def item_content(training_set: TrainingSet, settings: TrainingSettings, *, before: date | None) -> Content:
    """Return what is known of the items' content, by kind; without a kind that no item has.

    Args:
        training_set: has the catalogue, and the events that images are understood by.
        settings: name the text encoder, and the files of vectors and images.
        before: the first day whose events are not to be seen.
    """
    from recflow.training.images import image_vectors

    content: dict[str, NDArray[np.float32]] = {
        "text": title_vectors(training_set.items["title"].to_pylist(), encoder=settings.text_encoder)
    }
    if settings.item_vectors is not None:
        content["vectors"] = read_vectors(settings.item_vectors, training_set.item_ids)
    if settings.image_folder is not None:
        content["image"] = image_vectors(
            training_set.items["image_uri"].to_pylist(),
            training_set.interactions(before),
            folder=Path(settings.image_folder),
            seed=settings.seed,
        )
    return {kind: vectors for kind, vectors in content.items() if vectors.any()}
