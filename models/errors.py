"""What can go wrong in training, each with its data and with what to do about it."""

from collections.abc import Iterable


class ModelsError(Exception):
    """Base class: the command shows its text, without a traceback, and exits with status 1."""


class UnknownModelError(ModelsError):
    """No model of that name is in the zoo."""

    def __init__(self, name: str, known: Iterable[str]) -> None:
        self.name = name
        self.known = tuple(known)
        super().__init__(f"no model is called `{name}`; choose one of {', '.join(self.known)}")


class SettingError(ModelsError):
    """A training setting is out of its range."""

    def __init__(self, name: str, got: object, expected: str) -> None:
        self.name = name
        self.got = got
        super().__init__(f"`{name}` is {got}, expected {expected}")


class SeriesError(ModelsError):
    """A series is missing, is not the one that was pinned, or is too short for its use."""


class RunError(ModelsError):
    """The folder that is to hold a run holds something else."""


class DivergedError(ModelsError):
    """The loss became infinite or NaN."""

    def __init__(self, epoch: int, loss: float) -> None:
        self.epoch = epoch
        self.loss = loss
        super().__init__(
            f"the loss is {loss} in epoch {epoch}; train again with a lower --learning-rate"
        )


class BelowNaiveError(ModelsError):
    """The trained model does not beat a naive forecast by the margin asked for."""

    def __init__(self, name: str, failures: Iterable[str]) -> None:
        self.name = name
        self.failures = tuple(failures)
        super().__init__(
            f"`{name}` does not beat the naive forecasts: {'; '.join(self.failures)}; "
            "nothing was written. Train it longer, or change its entry in models/zoo.py"
        )
