"""The models that Carousel trains: one entry each, and one factory each.

A factory takes nothing and returns the untrained module in its final size, so that a command can
name it, as ``models.zoo:sine_cell``, and then load the weights. To add a model, write its factory
and its entry; a purpose other than those here needs a task of its own (``models.task``).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from torch import nn

from models.anomaly import AnomalyDetection
from models.autoencoder import AnomalyDetector
from models.char_rnn import CharRNN
from models.classification import Classification
from models.classifier import BidirectionalClassifier
from models.data import sine, temperature
from models.errors import UnknownModelError
from models.faults import faulty_temperature
from models.fitting import Settings
from models.forecasting import Forecasting
from models.language import Language
from models.networks import CellForecaster, GRUForecaster, LSTMForecaster, StackForecaster
from models.predictors import (
    AttentionLSTM,
    NormLSTM,
    Seq2Seq,
    StockPredictor,
    TransformerForecaster,
)
from models.shapes import SHAPES, shapes
from models.stock import daily_range, stock
from models.task import Task
from models.text import python_topics
from models.windows import WindowForecasting


@dataclass(frozen=True)
class Entry:
    """A model that can be trained by name.

    Args:
        name: as on the command line and under ``runs/``.
        description: one line.
        factory: the untrained module.
        task: the data and the purpose.
        settings: how it is trained.
        call: its ``forward``, in the notation of ``python -m export --call``.
        export_flags: what ``python -m export`` has to be told of it besides its files.
    """

    name: str
    description: str
    factory: Callable[[], nn.Module]
    task: Task
    settings: Settings
    call: str = "X -> y"
    export_flags: tuple[str, ...] = ()


LSTM_CALL = "X, (h, c)=None -> Y, (h, c)"


def _windowed(steps: int) -> tuple[str, ...]:
    """Of models that need their whole window: it is their session's state."""
    return ("--mode", "windowed", "--window", str(steps))


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


def sine_gru() -> GRUForecaster:
    """The tutorials' GRU: the hand-written cell, hidden 32 (3,168 weights), on one feature."""
    return GRUForecaster(input_size=1, hidden_size=32, output_size=1)


def series_stack() -> StackForecaster:
    """Two hand-written cells, one above the other, on hourly temperature."""
    return StackForecaster(input_size=1, hidden_size=32, output_size=1, num_layers=2)


def bidirectional() -> BidirectionalClassifier:
    """Reads both ways: which of four waveforms has the middle of a window?"""
    return BidirectionalClassifier(input_size=1, hidden_size=32, num_classes=len(SHAPES))


def char_rnn() -> CharRNN:
    """The tutorials' CharRNN: embedding and two layers, on the help of this Python's version."""
    vocabulary = len(TEXT.text.vocabulary)
    return CharRNN(vocab_size=vocabulary, embed_size=32, hidden_size=128, num_layers=2)


def anomaly_detector() -> AnomalyDetector:
    """A day of hourly temperature through a narrow place, and back."""
    return AnomalyDetector(input_size=1, hidden_size=24)


def stock_predictor() -> StockPredictor:
    """The tutorials' StockPredictor: five features of a day, two layers, the last output."""
    return StockPredictor(input_size=5, hidden_size=32, num_layers=2, output_size=1, dropout=0.1)


def attention_lstm() -> AttentionLSTM:
    """A softmax over the outputs of all steps, on windows of hourly temperature.

    It learns to look at the end of a window by how long ago the start was: after 480 hours instead
    of 48 its error is 6 °C, so it is of use with its window alone.
    """
    return AttentionLSTM(input_size=1, hidden_size=48, output_size=1)


def norm_lstm() -> NormLSTM:
    """Batch normalisation between LSTM and head, on windows of hourly temperature."""
    return NormLSTM(input_size=1, hidden_size=48, output_size=1)


def seq2seq() -> Seq2Seq:
    """Two days of hourly temperature in, the next day out, with Luong's attention."""
    return Seq2Seq(input_size=1, hidden_size=32, horizon=24)


def transformer() -> TransformerForecaster:
    """A small encoder over windows of hourly temperature, to compare with."""
    return TransformerForecaster(input_size=1, d_model=32, nhead=4, num_layers=2, output_size=1)


# A sine's one-step and closed-loop errors are both the noise, so they weigh the same. The next hour
# of weather is ten times easier than the day after it, in squares, so its rollout weighs a tenth.
SINE = Forecasting(sine, warmup=100, rollout=30, rollout_weight=1.0)
SERIES = Forecasting(temperature, warmup=120, rollout=24, rollout_weight=0.1, level_jitter=0.6)

# What carries its state from step to step is judged far beyond its training windows too.
RANGE = WindowForecasting(stock, window=30, target=daily_range, long_window=300, average_steps=5)
# 48 hours: two days are enough to see what is the day's course and what is the weather's.
NEXT_HOUR = WindowForecasting(temperature, window=48, level_jitter=0.6)
NEXT_HOUR_STREAM = WindowForecasting(temperature, window=48, long_window=480, level_jitter=0.6)
NEXT_DAY = WindowForecasting(temperature, window=48, horizon=24, long_window=480, level_jitter=0.6)
SHAPE = Classification(shapes, window=48)
TEXT = Language(python_topics, steps=64)
FAULTS = AnomalyDetection(faulty_temperature, window=24, level_jitter=0.3)

ENTRIES = (
    Entry(
        name="sine-cell",
        description="hand-written cell on a noisy sine wave",
        factory=sine_cell,
        call=LSTM_CALL,
        task=SINE,
        settings=Settings(epochs=14, batches=20, batch_size=32, learning_rate=5e-3),
    ),
    Entry(
        name="sine-lstm",
        description="nn.LSTM on a noisy sine wave",
        factory=sine_lstm,
        call=LSTM_CALL,
        task=SINE,
        settings=Settings(epochs=15, batches=20, batch_size=32, learning_rate=5e-3),
    ),
    Entry(
        name="series-cell",
        description="hand-written cell on hourly temperature",
        factory=series_cell,
        call=LSTM_CALL,
        task=SERIES,
        settings=Settings(epochs=24, batches=25, batch_size=16, learning_rate=5e-3),
    ),
    Entry(
        name="series-lstm",
        description="two-layer nn.LSTM on hourly temperature",
        factory=series_lstm,
        call=LSTM_CALL,
        task=SERIES,
        settings=Settings(epochs=20, batches=25, batch_size=16, learning_rate=5e-3),
    ),
    Entry(
        name="sine-gru",
        description="hand-written GRU cell on a noisy sine wave",
        factory=sine_gru,
        call="X, h=None -> Y, h",
        task=SINE,
        settings=Settings(epochs=14, batches=20, batch_size=32, learning_rate=5e-3),
    ),
    Entry(
        name="series-stack",
        description="two hand-written cells, stacked, on hourly temperature",
        factory=series_stack,
        call="X, ((h1, c1), (h2, c2))=None -> Y, ((h1, c1), (h2, c2))",
        task=SERIES,
        settings=Settings(epochs=13, batches=25, batch_size=16, learning_rate=5e-3),
    ),
    Entry(
        name="bidirectional",
        description="bidirectional nn.LSTM tells four waveforms apart",
        factory=bidirectional,
        export_flags=(
            *_windowed(SHAPE.window),
            # It is so steep that the module itself rounds by 3e-5 from batch to batch.
            *("--tolerance", "onnx-fp32=1e-4"),
        ),
        task=SHAPE,
        settings=Settings(
            epochs=80,
            batches=40,
            batch_size=64,
            learning_rate=5e-3,
            plateau_epochs=4,
            stop_epochs=12,
        ),
    ),
    Entry(
        name="char-rnn",
        description="CharRNN: embedding and two-layer nn.LSTM on Python's help",
        factory=char_rnn,
        call=LSTM_CALL,
        task=TEXT,
        settings=Settings(epochs=14, batches=30, batch_size=32, learning_rate=5e-3),
    ),
    Entry(
        name="anomaly-detector",
        description="encoder and decoder nn.LSTM find faults in temperature",
        call="X -> Y",
        factory=anomaly_detector,
        export_flags=_windowed(FAULTS.window),
        task=FAULTS,
        settings=Settings(epochs=80, batches=60, batch_size=64, learning_rate=5e-3),
    ),
    Entry(
        name="stock-predictor",
        description="StockPredictor: tomorrow's high minus low from 30 daily bars",
        factory=stock_predictor,
        task=RANGE,
        settings=Settings(epochs=30, batches=40, batch_size=128, learning_rate=3e-3),
    ),
    Entry(
        name="attention-lstm",
        description="softmax attention over 48 hours of temperature",
        factory=attention_lstm,
        task=NEXT_HOUR,
        settings=Settings(epochs=25, batches=40, batch_size=64, learning_rate=5e-3),
    ),
    Entry(
        name="norm-lstm",
        description="nn.LSTM and BatchNorm1d on 48 hours of temperature",
        factory=norm_lstm,
        task=NEXT_HOUR_STREAM,
        settings=Settings(
            epochs=50,
            batches=40,
            batch_size=128,
            learning_rate=4e-3,
            plateau_epochs=4,
            stop_epochs=12,
        ),
    ),
    Entry(
        name="seq2seq",
        description="encoder, decoder and attention: the next 24 hours of temperature",
        factory=seq2seq,
        export_flags=_windowed(NEXT_DAY.window),
        task=NEXT_DAY,
        settings=Settings(epochs=16, batches=25, batch_size=64, learning_rate=5e-3),
    ),
    Entry(
        name="transformer",
        description="TransformerEncoder on 48 hours of temperature",
        factory=transformer,
        export_flags=_windowed(NEXT_HOUR.window),
        task=NEXT_HOUR,
        settings=Settings(epochs=20, batches=40, batch_size=64, learning_rate=2e-3),
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
