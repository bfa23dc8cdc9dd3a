"""The learning rate of a training of any number of steps."""

import pytest
import torch

from recflow.training.one_cycle import one_cycle


@pytest.mark.parametrize("warm_up", [0.1, 0.2])
def test_any_number_of_steps_has_a_rate(warm_up: float) -> None:
    for steps in range(1, 30):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        scheduler = one_cycle(optimizer, 0.5, steps=steps, warm_up=warm_up)["lr_scheduler"]["scheduler"]
        rates = []
        for _ in range(steps):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
        top = max(rates)
        assert 0 < min(rates) <= top <= 0.5
        # Up to the peak and down from it: no other turn.
        peak = rates.index(top)
        assert rates[: peak + 1] == sorted(rates[: peak + 1])
        assert rates[peak:] == sorted(rates[peak:], reverse=True)
        assert peak <= warm_up * (steps + 2)
