"""Images of items -> vectors that say who will want an item, before anybody did.

A small convolutional network learns to tell from an image where its item lies among the factors of what was wanted
together (van den Oord, Dieleman and Schrauwen, NeurIPS 2013, for sound). It then reads the images of all items, also of
those that nobody took. It is trained once, aside: read at every step of a sequence model, a catalogue of images would
cost a hundred times what the sequences do.

Letters: V items, I images, S pixels of a side, D numbers of a vector.
"""

import warnings
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from recflow.console import log
from recflow.models.interactions import Interactions
from recflow.models.linear import item_factors
from recflow.training.trainer import run_epochs

_SIDE = 32  # pixels: colour, shape and pattern; writing can't be read
_SIZE = 64  # numbers of a vector
_EPOCHS = 20
_BATCH = 64
_TEMPERATURE = 0.1
_LEARNING_RATE = 3e-3


def image_vectors(
    uris: Sequence[str | None], interactions: Interactions, *, folder: Path, seed: int
) -> NDArray[np.float32]:  # (V, D)
    """Return a vector of length 1 for every item whose image is there; zeros for the others.

    Args:
        uris: of the items: a path below the folder, or file:// of one.
        interactions: what the images are understood by.
        folder: what lies outside is not read: a feed shall not name any file of the machine.
        seed: of the weights and the order.
    """
    pixels, item = _read(uris, folder)
    vectors = np.zeros((len(uris), _SIZE), np.float32)
    log.info("  images: %d of %d items have one", len(item), len(uris))
    if not len(item):
        return vectors
    factors = item_factors(interactions, _SIZE)
    learned = np.flatnonzero(np.linalg.norm(factors[item], axis=1) > 0)
    torch.manual_seed(seed)
    training = _ImageTraining(pixels[learned], torch.from_numpy(factors[item[learned]]))
    if len(learned) > 1:
        run_epochs(training, epochs=_EPOCHS, enable_checkpointing=False)
    vectors[item] = training.read(pixels)
    return vectors


def _read(uris: Sequence[str | None], folder: Path) -> tuple[Tensor, NDArray[np.int64]]:
    """Return the images that are there, (I, 3, S, S) uint8, and whose they are (I,)."""
    root, found, items = folder.resolve(), [], []
    for item, uri in enumerate(uris):
        file = _file(uri, root) if uri else None
        pixels = None if file is None else _pixels(file)
        if pixels is not None:
            found.append(pixels)
            items.append(item)
    stacked = np.stack(found) if found else np.zeros((0, _SIDE, _SIDE, 3), np.uint8)
    return torch.from_numpy(stacked).permute(0, 3, 1, 2).contiguous(), np.array(items, np.int64)


def _file(uri: str, root: Path) -> Path | None:
    parts = urlsplit(uri)
    if parts.scheme not in ("", "file") or parts.netloc:
        return None
    file = (root / unquote(parts.path)).resolve()
    return file if file.is_relative_to(root) and file.is_file() else None


def _pixels(file: Path) -> NDArray[np.uint8] | None:  # (S, S, 3)
    try:
        with warnings.catch_warnings(), Image.open(file) as image:
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image.draft("RGB", (2 * _SIDE, 2 * _SIDE))  # a JPEG needn't be decoded in full
            return np.asarray(image.convert("RGB").resize((_SIDE, _SIDE), Image.Resampling.BOX))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        log.warning("%s: no image that can be read (%s); its item goes without", file, error)
        return None


class _ImageTraining(pl.LightningModule):
    """The network, and that an image is to be nearer to its own item's factors than to those of its batch."""

    def __init__(self, pixels: Tensor, factors: Tensor) -> None:
        """Hold images (I, 3, S, S) and factors (I, D)."""
        super().__init__()
        self.images = TensorDataset(pixels, F.normalize(factors, dim=-1))
        widths = (3, 16, 32, 64)
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
        self.network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], _SIZE))

    def forward(self, pixels: Tensor) -> Tensor:  # (I, 3, S, S) -> (I, D)
        """Return the images' directions."""
        return F.normalize(self.network(pixels.float() / 127.5 - 1), dim=-1)

    def read(self, pixels: Tensor) -> NDArray[np.float32]:  # (I, D)
        """Read images, some at a time."""
        self.eval()
        with torch.inference_mode():
            parts = [self(pixels[first : first + 256]) for first in range(0, len(pixels), 256)]
        return torch.cat(parts).numpy()

    def train_dataloader(self) -> DataLoader[Any]:
        """Return the batches in another order each epoch; one of a single image has no contrast and is left out."""
        is_rest = len(self.images) % _BATCH == 1
        return DataLoader(self.images, batch_size=_BATCH, shuffle=True, drop_last=is_rest and len(self.images) > 1)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the contrast of each image with the batch's factors."""
        pixels, factors = batch
        logits = self(pixels) @ factors.T / _TEMPERATURE
        return F.cross_entropy(logits, torch.arange(len(pixels), device=logits.device))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return AdamW."""
        return torch.optim.AdamW(self.parameters(), lr=_LEARNING_RATE, weight_decay=0.01)
