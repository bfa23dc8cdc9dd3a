"""What a fit runs on decides its precision and whether code is made for it."""

from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader

from recflow.training import trainer
from recflow.training.trainer import Compiled, device_options, fast_dtype, run_epochs


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Pretend that a GPU is there (or not) and that it has units for bf16 (or not)."""
    has_gpu, has_units = request.param
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: has_units)


@pytest.mark.parametrize(
    ("machine", "expected"),
    [
        ((False, False), {"auto": "32-true", "cpu": "32-true"}),
        ((True, False), {"auto": "32-true", "gpu": "32-true", "cpu": "32-true"}),
        ((True, True), {"auto": "bf16-mixed", "gpu": "bf16-mixed", "cuda": "bf16-mixed", "cpu": "32-true"}),
    ],
    indirect=["machine"],
)
def test_precision_follows_the_device(machine: None, expected: dict[str, str]) -> None:
    for accelerator, precision in expected.items():
        assert device_options(accelerator) == {"accelerator": accelerator, "precision": precision}


@pytest.mark.parametrize("has_units", [True, False])
def test_products_over_a_catalogue_are_in_bf16_where_a_processor_has_units(
    has_units: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: has_units)
    assert fast_dtype(torch.device("cpu")) is (torch.bfloat16 if has_units else torch.float32)
    assert fast_dtype(torch.device("mps")) is torch.float32


@pytest.mark.parametrize("machine", [(True, True), (False, False)], indirect=True)
def test_code_is_made_where_it_is_asked_for_and_on_a_gpu_alone(machine: None, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[dict[str, Any]] = []
    monkeypatch.setattr(trainer, "_fit", lambda training, checkpoint, options: given.append(options))
    for accelerator, compiled in (("auto", True), ("auto", False), ("cpu", True)):
        run_epochs(_Training(), epochs=3, accelerator=accelerator, compiled=compiled, enable_checkpointing=False)
    has_code = [any(isinstance(each, Compiled) for each in options.get("callbacks", [])) for options in given]
    assert has_code == [torch.cuda.is_available(), False, False]
    assert [options["max_epochs"] for options in given] == [3] * 3
    assert [options["devices"] for options in given] == [1] * 3
    assert given[0]["precision"] == ("bf16-mixed" if torch.cuda.is_available() else "32-true")


class _Layer(nn.Linear):
    """A layer that says what ran: its own code, or what was made of it."""

    ran: list[str]

    def compile(self, **options: Any) -> None:
        assert options == {"dynamic": True}
        self._compiled_call_impl = lambda x: self.ran.append("made") or self.forward(x)


class _Training(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = _Layer(2, 1)
        self.layer.ran = []

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        return self.layer(batch).sum()

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(torch.ones(6, 2), batch_size=3)  # type: ignore[arg-type]

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.layer.parameters(), lr=0.1)


def test_made_code_trains_and_is_gone_afterwards() -> None:
    training = _Training()
    start = training.layer.weight.detach().clone()
    run_epochs(training, epochs=2, callbacks=[Compiled()], enable_checkpointing=False)
    assert training.layer.ran == ["made"] * 4
    assert (training.layer.weight < start).all()
    training.layer(torch.ones(1, 2))
    assert len(training.layer.ran) == 4
