"""Parts of torch that are on their way out: used in silence, and missed in plain words."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

import torch

from export.errors import UnavailableError


@contextmanager
def torch_part(name: str) -> Iterator[None]:
    """Use the part `name` of torch inside; its warnings, of deprecation above all, are left out.

    Raises:
        UnavailableError: this torch has not got it, or says that it does not work here.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (ImportError, NotImplementedError) as error:
        raise _unavailable(name, error) from error
    except AttributeError as error:
        if not isinstance(error.obj, ModuleType):
            raise  # no part of torch, but a mistake
        raise _unavailable(name, error) from error


def _unavailable(name: str, error: Exception) -> UnavailableError:
    return UnavailableError(f"torch {torch.__version__} has no working {name} ({error})")
