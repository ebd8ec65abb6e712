"""The models that Carousel trains.

Each factory returns the untrained module in its final size, so that a command can name it, as
``models.zoo:sine_cell``, and then load the weights.
"""

from models.networks import CellForecaster, LSTMForecaster


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
    return LSTMForecaster(input_size=1, hidden_size=64, output_size=1, num_layers=2, dropout=0.1)
