"""What a user reads when no way to call a module is found: short, and of their own code."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from export.__main__ import main
from export.calling.called import find_call
from export.errors import CallError
from export.finding import find_reference
from export.user_code import describe

X = torch.randn(2, 24, 3, generator=torch.Generator().manual_seed(0))
IDS = torch.arange(48).reshape(2, 24) % 3
MAX_LINES = 8


class Layer(nn.Module):
    """An nn.LSTM and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 6, batch_first=True)
        self.fc = nn.Linear(6, 1)


class Alone(Layer):
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc(self.lstm(x)[0])
        return y


class Typo(Layer):
    def forward(self, x: Tensor, state: tuple[Tensor, Tensor] | None = None) -> Tensor:
        out, _ = self.lstm(x, state)
        return self.fc(out.hiden)  # type: ignore[no-any-return]


class Layers(nn.Module):
    """Three states in a list, each of its own size."""

    def __init__(self) -> None:
        super().__init__()
        sizes = [(3, 8), (8, 6), (6, 4)]
        self.cells = nn.ModuleList(nn.GRUCell(a, b) for a, b in sizes)

    def forward(self, x: Tensor, states: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        new = []
        for cell, h in zip(self.cells, states, strict=True):
            x = cell(x, h)
            new.append(x)
        return x, new


class Initial(Layers):
    """The same, with a method that says the shapes."""

    def init_state(self, batch: int) -> list[Tensor]:
        return [torch.zeros(batch, size) for size in (8, 6, 4)]


class Branching(Layer):
    """A row's answer depends on whether the batch's sum is positive."""

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        new = torch.tanh(self.fc(self.lstm(x)[0])) + h
        return new.sum() * new, new


class Needy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.Linear(8, 5)

    def forward(self, x: Tensor, h: Tensor, mask: Tensor, scale: float) -> Tensor:
        y: Tensor = self.cell(torch.cat([x, h, mask, scale.missing], dim=1))  # type: ignore[attr-defined]
        return y


def refused(module: nn.Module, x: Tensor = X, told: str | None = None) -> str:
    with pytest.raises(CallError) as caught:
        find_call(module.eval(), x, told)
    text = str(caught.value)
    assert len(text.splitlines()) <= MAX_LINES, text
    return text


def test_the_users_own_mistake_comes_first_with_its_line() -> None:
    """The type, the words, the file and the line, before all that failed earlier in forward."""
    first = refused(Typo()).splitlines()[1]
    assert "AttributeError: 'Tensor' object has no attribute 'hiden' (test_refusal.py:" in first
    assert "return self.fc(out.hiden)" in first


def test_the_signature_is_shown_and_what_it_suggests() -> None:
    """`forward` as it is written; a state alone, or arguments of which some are no states."""
    assert "Typo, forward(x, state=None), with x of 3 features a step" in refused(Typo())
    assert 'the state, `states`, is a tensor, a tuple or a list: "x, h -> y, h"' in refused(
        Layers()
    )
    needy = refused(Needy())
    assert "Say with --call what `h`, `mask`, `scale` are" in needy
    assert "mask:1" in needy


def test_reasons_that_differ_in_numbers_only_are_one() -> None:
    """No two lines say the same of other sizes."""
    lines = refused(Layers()).splitlines()
    assert len([line for line in lines if "inconsistent hidden_size" in line]) == 1


def test_what_mixes_rows_is_the_first_reason() -> None:
    """It ran through, so that it is nearer than any wrong shape."""
    assert "a row's result depends on the other rows" in refused(Branching()).splitlines()[1]


def test_a_told_call_says_the_shapes_that_were_tried_and_the_way_out() -> None:
    """And with the method that it names, the module is taken."""
    told = "x, [h1, h2, h3] -> y, [h1, h2, h3]"
    text = refused(Layers(), told="x, [h1, h2] -> y, [h1, h2]")
    assert "guessed from its weights: (3,), (4,), (6,), (8,), (1, 3)" in text
    assert "`init_state(batch)`" in text
    found = find_call(Initial().eval(), X, told)
    assert [s.shape for s in found.states] == [(8,), (6,), (4,)]


def test_a_told_call_that_forward_has_no_places_for_says_what_it_takes() -> None:
    """Nothing of shapes, which are not the fault."""
    text = refused(Alone(), told="x, h -> y, h")
    assert "takes 2 positional arguments but 3 were given" in text
    assert "It takes x alone" in text
    assert "guessed" not in text


def test_ids_are_called_ids() -> None:
    """And a module without an embedding is said to want floats."""
    text = refused(Alone(), IDS)
    assert "with x of token ids, one a step" in text
    assert "integers, which are taken for token ids; write numbers as floats" in text


def test_a_module_without_states_says_so_and_that_a_window_works() -> None:
    """At most eight lines with the reason of the cut."""
    with pytest.raises(CallError) as caught:
        find_reference(nn.Sequential(nn.Linear(3, 1)).eval(), X)
    text = str(caught.value)
    assert len(text.splitlines()) <= MAX_LINES, text
    assert "nothing goes on from one step to the next: it has no state" in text
    assert "--mode windowed" in text


def test_what_an_installed_package_raises_is_shown_at_the_users_line() -> None:
    """The innermost line that is neither torch's nor ours."""
    with pytest.raises(RuntimeError) as caught:
        torch.zeros(2, 3) @ torch.zeros(2, 3)
    assert "(test_refusal.py:" in describe(caught.value)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("1 / 0", "importing `{}` raised ZeroDivisionError: division by zero (broken.py:1: 1 / 0)"),
        ("def build(:", "importing `{}` raised SyntaxError: "),
        ("def build(): raise OSError('no data')", "raised OSError: no data (broken.py:1: "),
        ("import sys\ndef build(): sys.exit(3)", "raised SystemExit: 3 (broken.py:2: "),
    ],
    ids=["import", "syntax", "build", "exit"],
)
def test_a_file_that_raises_is_one_line_on_stderr(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], source: str, said: str
) -> None:
    """Exit status 1 and no traceback."""
    path = tmp_path / "broken.py"
    path.write_text(source)
    status = main([f"{path}:build", "--example", str(tmp_path / "x.npy"), "--name", "broken"])
    printed = capsys.readouterr().err
    assert status == 1
    assert said.format(path) in printed
    assert "Traceback" not in printed
