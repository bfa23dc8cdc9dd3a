"""An optimizer for a network with a table of millions of rows, of which a step touches some thousands."""

from collections.abc import Callable
from typing import Any

import torch


class RowAdagrad(torch.optim.AdamW):
    """AdamW, and for parameters with sparse gradients row-wise Adagrad.

    Row-wise Adagrad (Duchi et al., JMLR 2011, with one sum of squares a row as for the tables of DLRM, Naumov et al.,
    2019) reads and writes the rows that have a gradient alone, and remembers one number of each. Groups of such
    parameters have their own `lr`, and no decay.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take a step."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for table in group["params"]:
                if table.grad is not None and table.grad.is_sparse:
                    self._step_of_rows(table, group["lr"])
                    table.grad = None  # so that AdamW's step leaves it out
        super().step()
        return loss

    def _step_of_rows(self, table: torch.Tensor, rate: float) -> None:
        gradient = table.grad.coalesce()  # type: ignore[union-attr]
        rows, values = gradient.indices()[0], gradient.values()
        state = self.state[table]
        if not state:
            state["row_squares"] = torch.zeros(len(table), device=table.device)
        squares = state["row_squares"][rows] + values.square().mean(dim=1)
        state["row_squares"][rows] = squares
        table.index_add_(0, rows, values * (squares + 1e-20).rsqrt()[:, None], alpha=-rate)
