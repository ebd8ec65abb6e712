"""The reference: the user's trained model behind one inner interface, batch first.

    run(x (B, T, ...), state) -> (y (B, T, ...), state')

All that the rest of export ever sees, however the model is called, wherever its state was hidden,
and whatever it was written in. The artifact's variants are held against it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor

State = dict[str, Tensor]  # name -> (B, ...)


@dataclass(frozen=True)
class StateSpec:
    """One state: its name, and its shape without the batch."""

    name: str
    shape: tuple[int, ...]


class Reference(Protocol):
    """A trained model that can be advanced by chunks."""

    @property
    def name(self) -> str:
        """What the user calls it: the class of the module, or the file."""
        ...

    @property
    def mode(self) -> Literal["causal", "windowed"]: ...

    @property
    def window(self) -> int | None:
        """How many inputs an answer depends on, its own included; None: all that there were."""
        return None

    @property
    def states(self) -> Sequence[StateSpec]: ...

    @property
    def axis_sizes(self) -> set[int]:
        """The sizes of all axes of weights and states, so that a batch can be told from them."""
        ...

    def describe(self) -> str:
        """How the model is called, in the notation of `--call`, and where its axes lie."""
        ...

    def initial(self, batch: int) -> State:
        """The state of sessions that have not begun: name -> (B, ...)."""
        ...

    def run(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Advance by a chunk, in eager mode.

        Args:
            x: (B, T, ...), as the module expects its values (standardised, unitless).
            state: name -> (B, ...), as the chunk before left it. Not changed.
        Returns:
            y (B, T, ...) and the state after the last step.
        """
        ...

    def whole_steps(self, steps: int) -> Sequence[int] | None:
        """Which steps of a sequence `whole` should be asked for; None: all, at no more cost."""
        ...

    def whole(self, x: Tensor, steps: Sequence[int]) -> Tensor:
        """y of some steps as the module gives it by itself, from its own start.

        Returns:
            (B, len(steps), ...): what `run` is held against before anything is lowered.
        """
        ...

    def what_looks_ahead(self) -> str:
        """Why the module may not be causal, and what to do, in words for its user."""
        ...
