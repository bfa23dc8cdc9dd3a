"""Steps of training -> a learning rate that goes up, then down to almost nothing."""

from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import OneCycleLR


def one_cycle(optimizer: Optimizer, peak: float, *, steps: int, warm_up: float) -> dict[str, Any]:
    """Return what Lightning wants: the optimizer, its learning rate in one cycle (Smith and Topin, 2018).

    Args:
        optimizer: whose rate it is.
        peak: the greatest rate.
        steps: of the whole training.
        warm_up: share of them until the rate is at its peak.
    """
    total = steps + 1  # the rate is set once more after the last step
    # OneCycleLR divides by the steps up to the peak, which it counts from 0, even where the first one is the peak.
    total += warm_up * total == 1
    scheduler = OneCycleLR(optimizer, peak, total_steps=total, pct_start=warm_up)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
