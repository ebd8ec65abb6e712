"""What tells one boot of the machine from another, and the time in each."""

import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from service.errors import SettingsError

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, slots=True)
class Machine:
    """Time in seconds."""

    boot: int  # 128 bits, another at each boot
    since_boot: Callable[[], float]  # never set, goes on while the machine sleeps
    wall: Callable[[], float]  # since 1970; may be set


def this_machine() -> Machine:
    """The one that this runs on.

    Raises:
        SettingsError: it does not tell its boots apart.
    """
    try:
        boot = uuid.UUID(_BOOT_ID.read_text().strip()).int
    except (OSError, ValueError) as error:
        raise SettingsError(
            f"the disk store needs {_BOOT_ID} to tell one boot from another ({error}); set "
            "CAROUSEL_STORE=redis or memory"
        ) from error
    return Machine(boot, lambda: time.clock_gettime(time.CLOCK_BOOTTIME), time.time)
