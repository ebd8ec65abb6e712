"""The training loop: the same for every model of the zoo.

Adam, gradients clipped by norm, the learning rate halved on a plateau, early stopping. The weights
that are validated and kept are a running average of those that Adam visits: with a few hundred
small batches the last step is luck, and the average is not (Polyak & Juditsky, 1992). Each time the
validation loss improves, the average is saved, and the best comes back at the end, whatever the
loop tried after it.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from models.errors import DivergedError, SettingError
from models.task import Task

AVERAGE_DECAY = 0.98  # the average reaches back some 50 batches, two or three epochs
CLIP_NORM = 1.0  # L2 norm of the whole gradient (Pascanu, Mikolov & Bengio, 2013)


@dataclass(frozen=True)
class Settings:
    """How long and how boldly to train.

    Args:
        epochs: at most; an epoch ends with a validation.
        batches: per epoch.
        batch_size: random crops per batch.
        learning_rate: Adam's, at first.
        weight_decay: L2, Adam's.
        plateau_epochs: without a better validation loss before the learning rate is halved.
        stop_epochs: without a better validation loss before training stops.
    """

    epochs: int
    batches: int
    batch_size: int
    learning_rate: float
    weight_decay: float = 1e-6
    plateau_epochs: int = 2
    stop_epochs: int = 6

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "weight_decay":
                if not 0 <= value < math.inf:
                    raise SettingError(field.name, value, "zero or a positive number")
            elif not 0 < value < math.inf:
                raise SettingError(field.name, value, "a positive number")


@dataclass(frozen=True)
class Progress:
    """Where training stands after a batch. The validation losses are infinite until there is one.

    Args:
        epoch: counted from 1.
        train_loss: mean of this epoch so far.
        validation_loss: of the last epoch that ended.
        best_loss: the lowest validation loss.
        learning_rate: now.
    """

    epoch: int
    train_loss: float
    validation_loss: float
    best_loss: float
    learning_rate: float


@dataclass(frozen=True)
class Fit:
    """How training went: the best epoch (counted from 1), its validation loss, and the effort."""

    best_epoch: int
    best_loss: float
    epochs: int
    seconds: float


def fit(
    model: nn.Module,
    task: Task,
    settings: Settings,
    rng: np.random.Generator,
    checkpoint: Path,
    on_batch: Callable[[Progress], None],
) -> Fit:
    """Train a model in place and leave it with its best weights, in evaluation mode.

    Args:
        model: changed. Its dropout draws from torch's global generator: seed that too.
        rng: where the crops come from.
        checkpoint: the best weights are kept here, as safetensors.
        on_batch: told of the progress after each batch.
    Raises:
        DivergedError: a loss is not finite. Lower the learning rate.
    """
    started = time.perf_counter()
    model.train()
    optimizer = torch.optim.Adam(
        model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
    )
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, factor=0.5, patience=settings.plateau_epochs - 1
    )
    averaging = get_ema_multi_avg_fn(AVERAGE_DECAY)  # type: ignore[no-untyped-call]
    average = AveragedModel(model, multi_avg_fn=averaging)
    validation_loss = best_loss = math.inf
    best_epoch = epoch = 0
    while epoch < settings.epochs and epoch - best_epoch < settings.stop_epochs:
        epoch += 1
        total = 0.0
        for batch in range(1, settings.batches + 1):
            total += _train_batch(model, task, settings.batch_size, optimizer, rng, epoch)
            average.update_parameters(model)
            rate = optimizer.param_groups[0]["lr"]
            on_batch(Progress(epoch, total / batch, validation_loss, best_loss, rate))
        average.eval()
        validation_loss = _finite(task.validation_loss(average.module), epoch)
        scheduler.step(validation_loss)
        if validation_loss < best_loss:
            best_loss, best_epoch = validation_loss, epoch
            save_file(average.module.state_dict(), checkpoint)
    model.load_state_dict(load_file(checkpoint))
    model.eval()
    return Fit(best_epoch, best_loss, epoch, time.perf_counter() - started)


def _train_batch(
    model: nn.Module,
    task: Task,
    batch_size: int,
    optimizer: torch.optim.Optimizer,
    rng: np.random.Generator,
    epoch: int,
) -> float:
    """One step of the optimizer. Returns the loss before it."""
    optimizer.zero_grad()
    loss = task.loss(model, batch_size, rng)
    value = _finite(loss.item(), epoch)
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
    optimizer.step()
    return value


def _finite(loss: float, epoch: int) -> float:
    if not math.isfinite(loss):
        raise DivergedError(epoch, loss)
    return loss
