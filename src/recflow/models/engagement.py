"""The engagement stage: how likely a shopper clicks on, puts into the cart and buys an item that is shown to it.

A multi-gate mixture of experts (Ma et al., KDD 2018) has three heads: a click; a cart, given a click; a purchase, given
a cart. Chances are products along that chain, so that all heads learn from all impressions (ESMM, Ma et al., SIGIR
2018). What a position adds to a click is learned beside it (Zhao et al., RecSys 2019) and left at the first position
when it serves. Chances are calibrated, and weighed by what their events are worth they put the best items of a
retrieval model in order.

Letters as in `interactions`; P pairs of a shopper and an item, C inputs of a pair.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from recflow.models.calibration import Calibrator
from recflow.models.engagement_inputs import PAIR_INPUTS, Retrieved, Shelf, pair_inputs
from recflow.models.interactions import Context
from recflow.models.slates import OUTCOMES
from recflow.models.weights import load_model, save_model

POSITIONS: Final = 50  # later ones count as the last of them
_EXPERTS, _HIDDEN, _WIDTH = 4, 16, 16
_DROPOUT = 0.1
_SMOOTHING = 20.0  # impressions at each position that are taken to have been clicked on as often as all are


class EngagementNetwork(nn.Module):
    """Inputs of pairs -> log chances of the three outcomes."""

    def __init__(self, n_inputs: int) -> None:
        """Make the weights; `n_inputs` is C."""
        super().__init__()
        self.experts = nn.Linear(n_inputs, _EXPERTS * _HIDDEN)  # all experts' first layers side by side
        self.outputs = nn.Parameter(torch.randn(_EXPERTS, _HIDDEN, _WIDTH) * _HIDDEN**-0.5)
        self.dropout = nn.Dropout(_DROPOUT)
        self.gates = nn.Linear(n_inputs, len(OUTCOMES) * _EXPERTS)
        self.heads = nn.Parameter(torch.randn(len(OUTCOMES), _WIDTH) * _WIDTH**-0.5)
        self.linear = nn.Linear(n_inputs, len(OUTCOMES))
        self.position = nn.Embedding(POSITIONS, 1)
        nn.init.zeros_(self.position.weight)
        nn.init.zeros_(self.linear.weight)

    def start_from(self, labels: NDArray[np.bool_], position: NDArray[np.integer]) -> None:
        """Take what holds for all, rates of outcomes (P, 3) and of clicks by position (P,): learning goes on there."""
        place = np.minimum(position, POSITIONS) - 1
        counts, rates = np.bincount(place, minlength=POSITIONS), labels.mean(axis=0)
        clicks = np.bincount(place, labels[:, 0], minlength=POSITIONS)
        by_place = _logit((clicks + _SMOOTHING * rates[0]) / (counts + _SMOOTHING))  # (POSITIONS,)
        given = _logit(rates / np.append(1, rates[:-1]).clip(min=1e-6))
        with torch.no_grad():
            self.linear.bias.copy_(torch.from_numpy(np.append(by_place[0], given[1:])))
            self.position.weight.copy_(torch.from_numpy(by_place - by_place[0])[:, None])

    def forward(self, inputs: Tensor, position: Tensor | None = None) -> Tensor:  # (P, C), (P,) -> (P, 3)
        """Return log chances; without positions (0-based), as if each item stood first."""
        hidden = self.dropout(F.gelu(self.experts(inputs))).view(-1, _EXPERTS, _HIDDEN)
        experts = F.gelu(torch.bmm(hidden.transpose(0, 1), self.outputs)).transpose(0, 1)  # (P, E, W)
        gates = self.gates(inputs).view(-1, len(OUTCOMES), _EXPERTS).softmax(dim=-1)  # (P, 3, E)
        logits = ((gates @ experts) * self.heads).sum(dim=-1) + self.linear(inputs)  # (P, 3) each given the one before
        place = torch.zeros(len(inputs), dtype=torch.long) if position is None else position
        examined = F.pad(self.position(place.clamp(max=POSITIONS - 1)), (0, len(OUTCOMES) - 1))
        return F.logsigmoid(logits + examined).cumsum(dim=-1)


def log_loss_of(log_chances: Tensor, labels: Tensor) -> Tensor:  # (P, 3), (P, 3) -> ()
    """Return the cross-entropy of the outcomes, summed over heads, mean over pairs; of logs: nothing underflows."""
    log_not = torch.log(-torch.expm1(log_chances.clamp(max=-1e-6)))
    return -torch.where(labels, log_chances, log_not).sum(dim=-1).mean()


@dataclass(frozen=True)
class Engagement:
    """A trained network with all that it needs to serve."""

    network: EngagementNetwork
    calibrators: tuple[Calibrator, ...]  # one of each outcome
    shelf: Shelf
    depth: int  # best items of the retrieval that are put in order
    gains: tuple[float, ...]  # what each outcome is worth
    prior: float = 0.0  # how much the retrieval's own score counts beside it, see `engagement_order`

    name = "engagement"

    def chances(self, inputs: NDArray[np.float32], position: NDArray[np.integer] | None = None) -> NDArray[np.float32]:
        """Return the chances (P, 3) as the network has them; `position` (P,) is 1-based, without it: the first."""
        place = None if position is None else torch.from_numpy(np.asarray(position, np.int64) - 1)
        with torch.inference_mode():
            found: NDArray[np.float32] = self.network(torch.from_numpy(inputs), place).exp().numpy()
        return found

    def calibrated(self, chances: NDArray[np.float32]) -> NDArray[np.float32]:  # (P, 3)
        """Return the chances as they come true; what comes later on the way is never likelier than what comes first."""
        columns = [calibrate(column) for calibrate, column in zip(self.calibrators, chances.T, strict=True)]
        return np.minimum.accumulate(np.stack(columns, axis=1), axis=1)

    def values(
        self, chances: NDArray[np.float32], inputs: NDArray[np.float32]
    ) -> NDArray[np.float32]:  # (P, 3), (P, C) -> (P,)
        """Return what showing each item is worth: by calibrated chances, times what the retrieval thinks of it."""
        worth = chances @ np.array(self.gains, np.float32)
        return np.asarray(worth * np.exp(self.prior * inputs[:, PAIR_INPUTS.index("score")]), np.float32)

    def inputs(self, context: Context, retrieved: Retrieved) -> NDArray[np.float32]:  # (P, C)
        """Return what the network reads of pairs."""
        return pair_inputs(context, retrieved, self.shelf)

    def save(self, folder: Path) -> None:
        """Write the two files of a model into an existing folder."""
        arrays: dict[str, NDArray[Any]] = {
            f"network.{name}": tensor.numpy() for name, tensor in self.network.state_dict().items()
        }
        arrays |= {f"shelf.{name}": array for name, array in vars(self.shelf).items()}
        for outcome, calibrator in zip(OUTCOMES, self.calibrators, strict=True):
            arrays |= {f"{outcome}.given": calibrator.given, f"{outcome}.found": calibrator.found}
        config = {
            "inputs": PAIR_INPUTS,
            "n_inputs": self.network.linear.in_features,
            "depth": self.depth,
            "gains": self.gains,
            "prior": self.prior,
            "calibrators": [calibrator.kind for calibrator in self.calibrators],
        }
        save_model(folder, self, config=config, arrays=arrays)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read back what `save` wrote."""
        config, arrays = load_model(folder)
        network = EngagementNetwork(config["n_inputs"]).eval()
        network.load_state_dict({name: torch.from_numpy(array) for name, array in _below("network.", arrays).items()})
        kinds = zip(OUTCOMES, config["calibrators"], strict=True)
        return cls(
            network=network,
            calibrators=tuple(
                Calibrator(kind, arrays[f"{name}.given"], arrays[f"{name}.found"]) for name, kind in kinds
            ),
            shelf=Shelf(**_below("shelf.", arrays)),
            depth=int(config["depth"]),
            gains=tuple(config["gains"]),
            prior=float(config["prior"]),
        )


def _logit(chances: NDArray[np.floating]) -> NDArray[np.float64]:
    kept = np.clip(chances, 1e-4, 1 - 1e-4)
    return np.asarray(np.log(kept / (1 - kept)), np.float64)


def _below(prefix: str, arrays: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
