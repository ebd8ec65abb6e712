"""The zoo's notation of its forwards is what `python -m export --call` takes."""

import pytest
import torch

from export.calling.called import find_call
from export.errors import CallError
from models.zoo import ZOO


@pytest.mark.parametrize("name", ZOO)
def test_a_model_can_be_called_as_its_entry_says(name: str) -> None:
    """Untrained, on 40 steps; a transformer has no recurrent layer to take a state from."""
    entry = ZOO[name]
    module = entry.factory().eval()
    x = torch.randn(2, 40, 5 if name == "stock-predictor" else 1)
    if name == "char-rnn":
        x = torch.randint(0, 20, (2, 40))
    if name == "transformer":
        with pytest.raises(CallError, match="no recurrent torch layer"):
            find_call(module, x, entry.call)
        return
    found = find_call(module, x, entry.call)
    assert found.call.text.startswith(entry.call)
    assert found.states
