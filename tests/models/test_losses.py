"""The catalogue's cross-entropy against torch's own over all logits."""

import pytest
import torch
from torch.nn import functional as F

from recflow.models.losses import catalogue_cross_entropy

_SCALE = 14.0


def _inputs(n: int = 700, v: int = 50, d: int = 8) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    states = F.normalize(torch.randn(n, d, generator=generator), dim=-1).requires_grad_()
    items = F.normalize(torch.randn(v, d, generator=generator), dim=-1).requires_grad_()
    return states, items, torch.randint(v, (n,), generator=generator), torch.rand(n, generator=generator)


def _gradients(loss: torch.Tensor, *of: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return torch.autograd.grad(3 * loss, of)  # 3: what comes from outside is handed on


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_it_is_the_weighted_mean_of_the_cross_entropy_and_so_are_its_gradients(
    dtype: torch.dtype, tolerance: float
) -> None:
    states, items, targets, weights = _inputs()
    found = catalogue_cross_entropy(states, items, targets, scale=_SCALE, weights=weights, dtype=dtype)
    each = F.cross_entropy(_SCALE * states @ items.T, targets, reduction="none")
    expected = (each * weights).sum() / weights.sum()
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=0)
    for ours, theirs in zip(_gradients(found, states, items), _gradients(expected, states, items), strict=True):
        assert (ours - theirs).abs().max() <= tolerance * theirs.abs().max()


def test_without_weights_all_positions_count_alike() -> None:
    states, items, targets, _ = _inputs()
    found = catalogue_cross_entropy(states, items, targets, scale=_SCALE)
    torch.testing.assert_close(found, F.cross_entropy(_SCALE * states @ items.T, targets))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
def test_corrections_are_added_to_all_logits_but_a_positions_own(dtype: torch.dtype, tolerance: float) -> None:
    states, items, targets, weights = _inputs()
    corrections = torch.randn(len(items), generator=torch.Generator().manual_seed(4))
    found = catalogue_cross_entropy(
        states, items, targets, scale=_SCALE, weights=weights, corrections=corrections, dtype=dtype
    )
    is_own = F.one_hot(targets, len(items)).bool()
    logits = _SCALE * states @ items.T + corrections.masked_fill(is_own, 0)
    expected = (F.cross_entropy(logits, targets, reduction="none") * weights).sum() / weights.sum()
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=0)
    for ours, theirs in zip(_gradients(found, states, items), _gradients(expected, states, items), strict=True):
        assert (ours - theirs).abs().max() <= tolerance * theirs.abs().max()


def test_all_items_drawn_once_are_the_whole_catalogue() -> None:
    states, items, targets, _ = _inputs()
    drawn = torch.randperm(len(items), generator=torch.Generator().manual_seed(5))
    number = torch.argsort(drawn)  # of each item among those drawn
    found = catalogue_cross_entropy(
        states, items[drawn], number[targets], scale=_SCALE, corrections=torch.zeros(len(items))
    )
    expected = catalogue_cross_entropy(states, items, targets, scale=_SCALE)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(_gradients(found, states, items), _gradients(expected, states, items))
