"""A variant under torch.jit: the only module of `service` that needs it."""

from typing import Any

from service.torch_backend import TorchBackend


class TorchScriptBackend(TorchBackend):
    """A `.pt` archive."""

    def _load(self, torch: Any, path: str) -> Any:
        return torch.jit.load(path, "cpu").eval()
