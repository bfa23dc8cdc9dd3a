"""How every model is trained with Lightning: quietly, on batches that a loader makes anew for each epoch.

Precision follows from the device. On a GPU that has units for it layers work in bf16 beside weights of float32, and
their code may be made for it (`torch.compile`). A processor's layers stay in float32; only products over a whole
catalogue are in what `fast_dtype` says.

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
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.strategies import DDPStrategy

from recflow.errors import TrainingError

_SILENCE = timedelta(minutes=10)  # of another process, after which it is given up
_RENDEZVOUS = ("MASTER_ADDR", "MASTER_PORT")  # variables that Lightning leaves behind


def run_epochs(
    training: pl.LightningModule,
    *,
    epochs: int,
    checkpoint: Path | None = None,
    accelerator: str = "cpu",
    devices: int = 1,
    compiled: bool = False,
    **options: Any,
) -> None:
    """Train for so many epochs, or until the module or a callback says that it is enough.

    Args:
        training: says of itself what it learns from; its loader is asked for again before each epoch, and with several
            devices it must give each process its part.
        epochs: at most.
        checkpoint: where to go on from.
        accelerator: Lightning's name, "auto" is a GPU where there is one; what takes seconds is over on the processor
            before a GPU has started.
        devices: of the accelerator; more than one start as many processes.
        compiled: whether code of its own is made for the networks on a GPU; on a processor nothing is.
        options: of Lightning's trainer: callbacks, ...

    Raises:
        TrainingError: another process failed.
    """
    options |= {"max_epochs": epochs, **device_options(accelerator)}
    if compiled and is_gpu(accelerator):
        options["callbacks"] = [*options.get("callbacks", []), Compiled()]
    if devices == 1:
        _fit(training, checkpoint, options | {"devices": 1})
        return
    environment = _Rank(0)
    with _others(training, checkpoint, options, devices=devices, port=environment.main_port):
        _fit(training, checkpoint, options | _together(environment, devices))


def is_gpu(accelerator: str) -> bool:
    """Return whether Lightning's name of an accelerator means one of CUDA here."""
    return accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()


def device_options(accelerator: str) -> dict[str, Any]:
    """Return the trainer's options that follow from the device."""
    in_bf16 = is_gpu(accelerator) and fast_dtype(torch.device("cuda")) is torch.bfloat16
    return {"accelerator": accelerator, "precision": "bf16-mixed" if in_bf16 else "32-true"}


def fast_dtype(device: torch.device) -> torch.dtype:
    """Return the type that a device multiplies matrices in fastest without harm to a softmax: bf16 where it has units.

    A processor without them would emulate bf16, which is slower than float32.
    """
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    has_units = device.type == "cpu" and torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if has_units else torch.float32


class Compiled(Callback):
    """Has code made for the networks of a module while it trains."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Compile; sizes differ from batch to batch."""
        for network in pl_module.children():
            network.compile(dynamic=True)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Undo it: whoever ranks with the network next would wait for code of another device."""
        for network in pl_module.children():
            network._compiled_call_impl = None


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
