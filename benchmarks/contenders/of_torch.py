"""torch: by hand as it stands and under `torch.compile`, Lightning, and the textbook's loop with `loss.backward()`.

The formulas are Keras's: NAdam's momentum_decay of 1 and an epsilon of 1e-7 make torch's optimizers those of Keras.
"""

from __future__ import annotations

import logging
import shutil
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from contenders.contender import Contender, Run, Trained, by_epoch
from contenders.of_keras import eager, loop, of_every_backend
from contenders.workloads import L2, WIDE, Parts, Workload


def gradients(parts: Parts, x: Any, y: Any) -> tuple[Any, Any, list[Any]]:
    """Loss, predictions and gradients by autograd."""
    y_pred = parts.model(x, training=True)
    loss = parts.loss(y, y_pred)
    parts.model.zero_grad()
    loss.backward()
    return loss.detach(), y_pred.detach(), [variable.value.grad for variable in parts.variables]


class Net(nn.Module):
    """The workload's model, from Keras's weights."""

    def __init__(self, workload: Workload) -> None:
        super().__init__()
        self.workload = workload
        weights = [torch.from_numpy(value) for value in workload.weights()]
        self.wide = None
        if workload.letter == "d":
            self.wide, weights = self.layer(*weights[:WIDE]), weights[WIDE:]
        activation: Callable[[], nn.Module] = nn.ELU if workload.letter == "a" else nn.ReLU
        modules: list[nn.Module] = []
        for kernel, bias in zip(weights[:-2:2], weights[1:-2:2], strict=True):
            modules += [self.layer(kernel, bias), activation()]
            if kernel.ndim == 4:
                modules.append(nn.MaxPool2d(2))
        kernel, bias = weights[-2:]
        if workload.letter == "c":  # torch flattens channels first
            modules.append(nn.Flatten())
            kernel = kernel.reshape(5, 5, 64, 10).permute(2, 0, 1, 3).reshape(-1, 10)
        self.deep = nn.Sequential(*modules, self.layer(kernel, bias))

    @staticmethod
    def layer(kernel: torch.Tensor, bias: torch.Tensor) -> nn.Module:
        if kernel.ndim == 4:
            made: Any = nn.Conv2d(kernel.shape[2], kernel.shape[3], 3)
            kernel = kernel.permute(3, 2, 0, 1)
        else:
            made = nn.Linear(kernel.shape[0], kernel.shape[1])
            kernel = kernel.T
        with torch.no_grad():
            made.weight.copy_(kernel)
            made.bias.copy_(bias)
        return made

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y_pred = self.deep(x)
        return y_pred if self.wide is None else y_pred + self.wide(x)

    def measures(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The batch's loss and, without a graph, its metric."""
        y_pred = self(x)
        if self.workload.classes:
            return nn.functional.cross_entropy(y_pred, y), (y_pred.detach().argmax(dim=1) == y).float().mean()
        loss = nn.functional.mse_loss(y_pred, y)
        if self.workload.letter == "a":
            loss = loss + L2 * sum(module.weight.square().sum() for module in self.deep if isinstance(module, nn.Linear))
        return loss, (y_pred.detach() - y).abs().mean()

    def optimizers(self) -> list[torch.optim.Optimizer]:
        if self.workload.letter == "a":
            return [torch.optim.NAdam(self.parameters(), 0.01, eps=1e-7, momentum_decay=1.0)]
        if self.wide is not None:
            return [torch.optim.SGD(self.wide.parameters(), 0.01), torch.optim.Adam(self.deep.parameters(), 1e-3, eps=1e-7)]
        return [torch.optim.Adam(self.parameters(), 1e-4, eps=1e-7)]


def tensors(workload: Workload, X: np.ndarray, y: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """The rows as torch wants them: channels first, classes as 64-bit numbers."""
    if workload.letter == "c":
        X = X.reshape(len(X), 1, *workload.inputs[:2])
    return torch.from_numpy(X), torch.from_numpy(y.astype("int64") if workload.classes else y)


def by_hand(workload: Workload) -> Run:
    """Zero, forward, backward, step."""
    net, size, data = Net(workload), workload.batch, []
    optimizers = net.optimizers()

    def begin(X: np.ndarray, y: np.ndarray) -> None:
        data[:] = tensors(workload, X, y)

    def epoch() -> tuple[float, float]:
        X, y = data
        total, total_metric = torch.zeros(()), torch.zeros(())
        for start in range(0, len(X), size):
            for optimizer in optimizers:
                optimizer.zero_grad()
            loss, metric = net.measures(X[start : start + size], y[start : start + size])
            loss.backward()
            for optimizer in optimizers:
                optimizer.step()
            total += loss.detach()
            total_metric += metric
        steps = len(X) // size
        return float(total) / steps, float(total_metric) / steps

    return by_epoch(begin, epoch)


def compiled(workload: Workload) -> Run:
    """The same under `torch.compile`: one program for loss and gradients, and one for each optimizer."""
    if shutil.which("g++") is None:
        raise ImportError("torch.compile needs a C++ compiler, and there is no g++")
    net, size, data = Net(workload), workload.batch, []
    optimizers = net.optimizers()
    measures = torch.compile(net.measures)
    steps = [torch.compile(optimizer.step) for optimizer in optimizers]

    def begin(X: np.ndarray, y: np.ndarray) -> None:
        data[:] = tensors(workload, X, y)

    def epoch() -> tuple[float, float]:
        X, y = data
        total, total_metric = torch.zeros(()), torch.zeros(())
        for start in range(0, len(X), size):
            for optimizer in optimizers:
                optimizer.zero_grad()
            loss, metric = measures(X[start : start + size], y[start : start + size])
            loss.backward()
            for step in steps:
                step()
            total += loss.detach()
            total_metric += metric
        count = len(X) // size
        return float(total) / count, float(total_metric) / count

    return by_epoch(begin, epoch)


def by_lightning(workload: Workload) -> Run:
    """Lightning's trainer over batches that are already cut."""
    import lightning  # pyright: ignore[reportMissingImports]

    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = Net(workload)
            self.made = self.net.optimizers()
            self.ends: list[float] = []
            self.sums = torch.zeros(2)
            self.means = (float("nan"), float("nan"))
            self.automatic_optimization = workload.letter != "d"

        def configure_optimizers(self) -> Any:
            return self.made  # the same at each call of fit, which asks again

        def training_step(self, batch: Any, index: int) -> Any:
            mine: Any = [] if self.automatic_optimization else self.optimizers()
            for optimizer in mine:
                optimizer.zero_grad()
            loss, metric = self.net.measures(*batch)
            if mine:
                self.manual_backward(loss)
            for optimizer in mine:
                optimizer.step()
            self.sums += torch.stack([loss.detach(), metric])
            return loss

        def on_train_epoch_end(self) -> None:
            loss, metric = self.sums.tolist()
            steps = self.trainer.num_training_batches
            self.means = loss / steps, metric / steps
            self.sums.zero_()
            self.ends.append(time.perf_counter())

    class Batches:
        # Lightning takes a plain list for several loaders.
        def __init__(self, *pairs: Any) -> None:
            self.pairs = pairs

        def __iter__(self) -> Any:
            return iter(self.pairs)

        def __len__(self) -> int:
            return len(self.pairs)

    module = Module()
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer: Any = lightning.Trainer(max_epochs=0, accelerator="cpu", **quiet)

    def run(X: np.ndarray, y: np.ndarray, epochs: int) -> Trained:
        module.ends = [time.perf_counter()]
        rows, targets = tensors(workload, X, y)
        batches = Batches(*zip(rows.split(workload.batch), targets.split(workload.batch), strict=True))
        trainer.fit_loop.max_epochs += epochs
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its advice on loaders and loggers
            trainer.fit(module, batches)
        return Trained(module.ends, *module.means)

    return run


CONTENDERS = [
    Contender("textbook, eager", eager(gradients, few=False)),
    Contender("by hand", by_hand),
    Contender("by hand, torch.compile", compiled),
    Contender("Lightning", by_lightning),
    *of_every_backend(steps_per_execution=False),
    Contender("kustom.Loop, inductor", loop("loop+inductor")),
]
