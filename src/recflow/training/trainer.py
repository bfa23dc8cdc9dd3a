"""How every model is trained with Lightning: quietly, on batches that a loader makes anew for each epoch."""

import logging
import warnings
from pathlib import Path
from typing import Any

import pytorch_lightning as pl


def run_epochs(training: pl.LightningModule, *, epochs: int, checkpoint: Path | None = None, **options: Any) -> None:
    """Train for so many epochs, or until the module or a callback says that it is enough.

    Args:
        training: says of itself what it learns from; its loader is asked for again before each epoch.
        epochs: at most.
        checkpoint: where to go on from.
        options: of Lightning's trainer: accelerator, precision, callbacks, ...
    """
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    trainer = pl.Trainer(
        max_epochs=epochs,
        gradient_clip_val=1.0,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        reload_dataloaders_every_n_epochs=1,
        **options,
    )
    with warnings.catch_warnings():
        # Lightning advises worker processes; the batches are whole tensors already.
        warnings.simplefilter("ignore")
        trainer.fit(training, ckpt_path=checkpoint, weights_only=True)
