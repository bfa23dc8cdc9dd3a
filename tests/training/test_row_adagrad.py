"""The optimizer of large tables against numpy, and against torch's own AdamW where gradients aren't sparse."""

import numpy as np
import torch
from torch import nn

from recflow.training.row_adagrad import RowAdagrad


def test_rows_move_by_their_own_sum_of_squares_and_others_stay() -> None:
    torch.manual_seed(0)
    table = nn.Embedding(6, 3, sparse=True)
    expected, squares = table.weight.detach().numpy().copy(), np.zeros(6)
    optimizer = RowAdagrad([{"params": [table.weight], "lr": 0.5, "weight_decay": 0}], lr=0.1)
    rng = np.random.default_rng(1)
    for rows in ([0, 2, 2], [2, 5]):
        gradient = rng.normal(size=(len(rows), 3)).astype(np.float32)
        optimizer.zero_grad()
        table(torch.tensor(rows)).backward(torch.from_numpy(gradient))
        optimizer.step()
        for row in set(rows):
            total = gradient[np.array(rows) == row].sum(axis=0)
            squares[row] += np.mean(total**2)
            expected[row] -= 0.5 * total / np.sqrt(squares[row])
    np.testing.assert_allclose(table.weight.detach().numpy(), expected, rtol=1e-5, atol=1e-6)


def test_other_parameters_move_as_adamw_moves_them() -> None:
    start = torch.randn(4, 3, generator=torch.Generator().manual_seed(2))
    ours, theirs = (nn.Parameter(start.clone()) for _ in range(2))
    table = nn.Embedding(5, 3, sparse=True)
    groups = [{"params": [ours], "weight_decay": 0.1}, {"params": [table.weight], "weight_decay": 0}]
    optimizers = RowAdagrad(groups, lr=0.05), torch.optim.AdamW([theirs], lr=0.05, weight_decay=0.1)
    for step in range(3):
        for optimizer in optimizers:
            optimizer.zero_grad()
        ((ours - step) ** 2).sum().backward()
        ((theirs - step) ** 2).sum().backward()
        table(torch.tensor([step])).sum().backward()
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(ours, theirs)
