"""A worker ends when the process that started it dies, even by kill -9.

Else it would go on alone, hold the port, and keep the service from being started again.
"""

import ctypes
import os
import signal
import sys
from contextlib import suppress

_STARTED_BY = "_CAROUSEL_STARTED_BY"  # not of CAROUSEL_*: no setting
_PR_SET_PDEATHSIG = 1  # prctl(2)


def note_parent() -> None:
    """In the process that starts the workers: tell them who it is."""
    os.environ[_STARTED_BY] = str(os.getpid())


def end_with_parent() -> None:
    """In a worker: be asked to stop (SIGTERM, so it drains) when its parent dies.

    Elsewhere than on Linux, and in a process that nobody started as a worker, nothing.
    """
    parent = os.environ.get(_STARTED_BY)
    if parent is None or int(parent) == os.getpid() or sys.platform != "linux":
        return
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)
    try:
        os.kill(int(parent), 0)
    except ProcessLookupError:  # it died while this one was starting
        os.kill(os.getpid(), signal.SIGTERM)
    except PermissionError:  # it lives, as another user
        return
