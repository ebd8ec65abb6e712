"""A variant as torch.export wrote it."""

from typing import Any

from service.torch_backend import TorchBackend


class TorchExportBackend(TorchBackend):
    """A `.pt2` archive."""

    def _load(self, torch: Any, path: str) -> Any:
        return torch.export.load(path).module(check_guards=False)
