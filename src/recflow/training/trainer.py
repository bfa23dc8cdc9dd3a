"""How every model is trained with Lightning: quietly, on batches that a loader makes anew for each epoch.

With several devices each has a process: this one, and others that start with what it holds and end with it. They learn
from their parts of each batch, and the mean of their gradients is every one's (Lightning's DDP; gloo between
processors, NCCL between GPUs).
"""

import logging
import multiprocessing
import os
import pickle
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from pytorch_lightning.strategies import DDPStrategy

from recflow.errors import TrainingError

_SILENCE = timedelta(minutes=10)  # of another process, after which it is given up
_RENDEZVOUS = ("MASTER_ADDR", "MASTER_PORT")  # variables that Lightning leaves behind


def run_epochs(
    training: pl.LightningModule, *, epochs: int, checkpoint: Path | None = None, devices: int = 1, **options: Any
) -> None:
    """Train for so many epochs, or until the module or a callback says that it is enough.

    Args:
        training: says of itself what it learns from; its loader is asked for again before each epoch, and with several
            devices it must give each process its part.
        epochs: at most.
        checkpoint: where to go on from.
        devices: of the accelerator; more than one start as many processes.
        options: of Lightning's trainer: accelerator, precision, callbacks, ...

    Raises:
        TrainingError: another process failed.
    """
    options |= {"max_epochs": epochs}
    if devices == 1:
        _fit(training, checkpoint, options | {"devices": 1})
        return
    environment = _Rank(0)
    with _others(training, checkpoint, options, devices=devices, port=environment.main_port):
        _fit(training, checkpoint, options | _together(environment, devices))


class _Rank(LightningEnvironment):
    """One of several processes of this machine, which Lightning isn't to start."""

    def __init__(self, rank: int, port: int = -1) -> None:
        super().__init__()
        self._local_rank, self._main_port = rank, port  # -1: a free one

    @property
    def creates_processes_externally(self) -> bool:
        return True

    @property
    def main_address(self) -> str:
        return "127.0.0.1"

    def local_rank(self) -> int:
        return self._local_rank


def _together(environment: _Rank, devices: int) -> dict[str, Any]:
    return {"devices": devices, "strategy": DDPStrategy(cluster_environment=environment, timeout=_SILENCE)}


@contextmanager
def _others(
    training: pl.LightningModule, checkpoint: Path | None, options: dict[str, Any], *, devices: int, port: int
) -> Iterator[None]:
    """Let the processes of all ranks but the first train, too; they are ended with the block."""
    variables = {name: os.environ.get(name) for name in _RENDEZVOUS}
    # As bytes: handed over as they are, the weights of all processes would be one piece of memory.
    told = pickle.dumps((training, checkpoint, options, torch.get_num_threads(), torch.initial_seed()))
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=_train_beside, args=(told, rank, devices, port), daemon=True)
        for rank in range(1, devices)
    ]
    for process in processes:
        process.start()
    try:
        yield
        for process in processes:
            process.join(_SILENCE.total_seconds())
        failed = [process.exitcode for process in processes if process.exitcode != 0]
        if failed:
            raise TrainingError(f"{len(failed)} of {devices} training processes failed after the last step; see above.")
    finally:
        for process in processes:
            process.kill()
        _leave_group()
        for name, value in variables.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _train_beside(told: bytes, rank: int, devices: int, port: int) -> None:
    training, checkpoint, options, threads, seed = pickle.loads(told)
    torch.set_num_threads(threads)
    torch.manual_seed(seed + rank)  # dropout of its own
    _fit(training, checkpoint, options | _together(_Rank(rank, port), devices))
    _leave_group()


def _leave_group() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _fit(training: pl.LightningModule, checkpoint: Path | None, options: dict[str, Any]) -> None:
    for name in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        # Lightning advises worker processes; the batches are whole tensors already.
        warnings.simplefilter("ignore")
        trainer = pl.Trainer(
            gradient_clip_val=1.0,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            reload_dataloaders_every_n_epochs=1,
            **options,
        )
        trainer.fit(training, ckpt_path=checkpoint, weights_only=True)
