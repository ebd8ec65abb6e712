"""What a figure was measured on: the machine and the versions, the same in every benchmark."""

import platform
from collections.abc import Iterable
from importlib.metadata import version

from service.cpu import read_cpu


def conditions(packages: Iterable[str], **settings: object) -> dict[str, object]:
    """The machine, the settings of the run, and the versions of `packages`."""
    cpu = read_cpu()
    return {
        "machine": cpu.machine,
        "cpu": str(cpu),
        **settings,
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
    }
