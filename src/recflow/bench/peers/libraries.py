"""A file of sequences -> epochs of a peer's training, a JSON line each; a program for the peer's own environment.

    python libraries.py rectools-esasrec '{"data": "sequences.txt", "out": "epochs.jsonl", "epochs": 2, ...}'

It needs numpy and the peer, nothing of recflow. A peer is used as its documentation shows; the last item of a line is
never looked at, the one before it is what is validated on. Letters: B users, V items.
"""

import json
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_RANKED = 10


class Progress:
    """The epochs of one training, written as they end: what was done until a limit of time counts."""

    def __init__(self, file: Path, *, versions: dict[str, str]) -> None:
        """Start the file with the versions in use."""
        self._file = file
        self._write({"versions": versions})

    def epoch(self, *, cpu_seconds: float, ndcg_at_10: float, **more: float) -> None:
        """Add an epoch; its CPU seconds are of training alone."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        self._write({"cpu_seconds": cpu_seconds, "ndcg_at_10": ndcg_at_10, "peak_memory_mb": round(peak), **more})

    def _write(self, line: dict[str, Any]) -> None:
        with self._file.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(line) + "\n")


def train_rectools(name: str, options: dict[str, Any]) -> None:
    """SASRec with the whole catalogue as negatives, or eSASRec (LiGR layers, sampled softmax; RecSys 2025)."""
    import pandas as pd
    import rectools
    import torch
    from pytorch_lightning import Callback, Trainer
    from rectools import Columns
    from rectools.dataset import Dataset
    from rectools.models import SASRecModel
    from rectools.models.nn.item_net import IdEmbeddingsItemNet
    from rectools.models.nn.transformers.ligr import LiGRLayers

    torch.set_num_threads(1)
    torch.manual_seed(options["seed"])
    clock = [0.0]  # CPU seconds of the last epoch

    class Clock(Callback):
        def on_train_epoch_start(self, *_: Any) -> None:
            clock[0] = time.process_time()

        def on_train_epoch_end(self, *_: Any) -> None:
            clock[0] = time.process_time() - clock[0]

    def trainer() -> Any:
        return Trainer(
            max_epochs=1,
            accelerator="cpu",
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[Clock()],
        )

    lines = read_lines(options)
    train = pd.DataFrame(
        [(user, item, place) for user, (items, _) in enumerate(lines) for place, item in enumerate(items)],
        columns=[Columns.User, Columns.Item, Columns.Datetime],
    )
    train[Columns.Datetime] = pd.to_datetime(train[Columns.Datetime], unit="D")
    train[Columns.Weight] = 1.0
    dataset = Dataset.construct(train)
    own = {"transformer_layers_type": LiGRLayers, "loss": "sampled_softmax", "n_negatives": 256}
    model = SASRecModel(
        n_blocks=2,
        n_heads=2,
        n_factors=options["width"],
        session_max_len=options["length"],
        item_net_block_types=(IdEmbeddingsItemNet,),
        get_trainer_func=trainer,
        **(own if name == "rectools-esasrec" else {"loss": "softmax"}),
    )
    progress = Progress(Path(options["out"]), versions={"rectools": rectools.__version__, "torch": torch.__version__})
    wanted = pd.DataFrame({Columns.User: range(len(lines)), "wanted": [item for _, item in lines]})
    for _ in range(options["epochs"]):
        model.fit_partial(dataset, min_epochs=1, max_epochs=1)
        shown = model.recommend(wanted[Columns.User], dataset, k=_RANKED, filter_viewed=True)
        hits = shown.merge(wanted, on=Columns.User).query("item_id == wanted")
        progress.epoch(
            cpu_seconds=clock[0], ndcg_at_10=float((1 / np.log2(hits[Columns.Rank] + 1)).sum() / len(wanted))
        )


def train_recbole(name: str, options: dict[str, Any]) -> None:
    """SASRec as RecBole has it: an example for every place, cross-entropy over the whole catalogue."""
    import logging

    import recbole
    import torch
    from recbole.config import Config
    from recbole.data import create_dataset, data_preparation
    from recbole.utils import get_model, get_trainer, init_seed

    torch.set_num_threads(1)
    logging.disable(logging.INFO)
    lines = read_lines(options)
    folder = Path(options["scratch"]) / "sequences"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "sequences.inter").open("w", encoding="utf-8") as file:
        file.write("user_id:token\titem_id:token\ttimestamp:float\n")
        for user, (items, wanted) in enumerate(lines):
            # RecBole keeps two places back: the last one, which it never sees here, stands as the first item again.
            for place, item in enumerate([*items, wanted, items[0]]):
                file.write(f"{user}\t{item}\t{place}\n")
    config = Config(
        model="SASRec",
        dataset="sequences",
        config_dict={
            "data_path": str(folder.parent),
            "checkpoint_dir": str(folder.parent / "saved"),
            "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
            "eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "mode": "full"},
            "MAX_ITEM_LIST_LENGTH": options["length"],
            "hidden_size": options["width"],
            "inner_size": 4 * options["width"],
            "train_neg_sample_args": None,
            "eval_batch_size": 256,
            "metrics": ["NDCG"],
            "valid_metric": "NDCG@10",
            "use_gpu": False,
            "show_progress": False,
            "seed": options["seed"],
        },
    )
    init_seed(config["seed"], config["reproducibility"])
    dataset = create_dataset(config)
    train, validation, _ = data_preparation(config, dataset)
    model = get_model("SASRec")(config, train._dataset)
    trainer = get_trainer(config["MODEL_TYPE"], "SASRec")(config, model)
    progress = Progress(Path(options["out"]), versions={"recbole": recbole.__version__, "torch": torch.__version__})
    seen = [dataset.token2id("item_id", [str(item) for item in items]) for items, _ in lines]
    for epoch in range(options["epochs"]):
        began = time.process_time()
        trainer._train_epoch(train, epoch)
        seconds = time.process_time() - began
        model.eval()
        with torch.no_grad():
            gains = [_gains(*batch) for batch in _scored(model, dataset, validation, seen)]
        progress.epoch(cpu_seconds=seconds, ndcg_at_10=float(np.concatenate(gains).mean()))


def _scored(
    model: Any, dataset: Any, batches: Any, seen: list[NDArray[np.int64]]
) -> Iterator[tuple[NDArray[np.float32], NDArray[np.int64]]]:
    """Yield scores (B, V) without what each user took before, and the wanted items (B,)."""
    for interaction, _, _, wanted in batches:
        scores = model.full_sort_predict(interaction).numpy()
        scores[:, 0] = -np.inf  # RecBole's padding
        users = [int(token) for token in dataset.id2token("user_id", interaction["user_id"].numpy())]
        taken = [seen[user] for user in users]
        scores[np.repeat(np.arange(len(users)), [len(items) for items in taken]), np.concatenate(taken)] = -np.inf
        yield scores, wanted.numpy()


def _gains(scores: NDArray[np.float32], wanted: NDArray[np.int64]) -> NDArray[np.float64]:  # (B, V), (B,) -> (B,)
    """Return NDCG@10 of one wanted item each; what scores the same stands before it."""
    own = scores[np.arange(len(wanted)), wanted]
    rank = (scores >= own[:, None]).sum(axis=1)
    return np.where((rank <= _RANKED) & np.isfinite(own), 1 / np.log2(rank + 1), 0.0)


def read_lines(options: dict[str, Any]) -> list[tuple[list[str], str]]:
    """Return of each user the items to learn from, oldest first, and the one to validate on."""
    lines = [line.split()[1:] for line in Path(options["data"]).read_text(encoding="utf-8").splitlines()]
    return [(items[:-2], items[-2]) for items in lines]


if __name__ == "__main__":
    _name, _options = sys.argv[1], json.loads(sys.argv[2])
    (train_recbole if _name.startswith("recbole") else train_rectools)(_name, _options)
