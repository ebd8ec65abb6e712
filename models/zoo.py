"""The models that Carousel trains: one entry each, and one factory each.

A factory takes nothing and returns the untrained module in its final size, so that a command can
name it, as ``models.zoo:sine_cell``, and then load the weights. To add a model, write its factory
and its entry; a purpose other than forecasting needs a task of its own (``models.task``).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from torch import nn

from models.data import sine, temperature
from models.errors import UnknownModelError
from models.fitting import Settings
from models.forecasting import Forecasting
from models.networks import CellForecaster, LSTMForecaster
from models.task import Task


@dataclass(frozen=True)
class Entry:
    """A model that can be trained by name.

    Args:
        name: as on the command line and under ``runs/``.
        description: one line.
        factory: the untrained module.
        task: the data and the purpose.
        settings: how it is trained.
    """

    name: str
    description: str
    factory: Callable[[], nn.Module]
    task: Task
    settings: Settings


def sine_cell() -> CellForecaster:
    """The tutorials' LSTM: the hand-written cell, hidden 32 (4,224 weights), on one feature."""
    return CellForecaster(input_size=1, hidden_size=32, output_size=1)


def sine_lstm() -> LSTMForecaster:
    """The twin of ``sine_cell`` on ``nn.LSTM``."""
    return LSTMForecaster(input_size=1, hidden_size=32, output_size=1)


def series_cell() -> CellForecaster:
    """The hand-written cell on hourly temperature."""
    return CellForecaster(input_size=1, hidden_size=32, output_size=1)


def series_lstm() -> LSTMForecaster:
    """Two layers of ``nn.LSTM`` with dropout between them, on hourly temperature."""
    return LSTMForecaster(input_size=1, hidden_size=64, output_size=1, num_layers=2, dropout=0.05)


# A sine's one-step and closed-loop errors are both the noise, so they weigh the same. The next hour
# of weather is ten times easier than the day after it, in squares, so its rollout weighs a tenth.
SINE = Forecasting(sine, warmup=100, rollout=30, rollout_weight=1.0)
SERIES = Forecasting(temperature, warmup=120, rollout=24, rollout_weight=0.1, level_jitter=0.6)

ENTRIES = (
    Entry(
        name="sine-cell",
        description="hand-written cell on a noisy sine wave",
        factory=sine_cell,
        task=SINE,
        settings=Settings(epochs=14, batches=20, batch_size=32, learning_rate=5e-3),
    ),
    Entry(
        name="sine-lstm",
        description="nn.LSTM on a noisy sine wave",
        factory=sine_lstm,
        task=SINE,
        settings=Settings(epochs=15, batches=20, batch_size=32, learning_rate=5e-3),
    ),
    Entry(
        name="series-cell",
        description="hand-written cell on hourly temperature",
        factory=series_cell,
        task=SERIES,
        settings=Settings(epochs=24, batches=25, batch_size=16, learning_rate=5e-3),
    ),
    Entry(
        name="series-lstm",
        description="two-layer nn.LSTM on hourly temperature",
        factory=series_lstm,
        task=SERIES,
        settings=Settings(epochs=20, batches=25, batch_size=16, learning_rate=5e-3),
    ),
)

ZOO: Mapping[str, Entry] = MappingProxyType({entry.name: entry for entry in ENTRIES})


def find(name: str, zoo: Mapping[str, Entry] = ZOO) -> Entry:
    """The entry of that name.

    Raises:
        UnknownModelError: there is none; the error lists those that there are.
    """
    if name not in zoo:
        raise UnknownModelError(name, zoo)
    return zoo[name]
