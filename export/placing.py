"""Where an artifact is written, and how it comes into place: whole, or not at all.

It is written to a hidden folder beside its target, named for this process, and renamed. Whatever
stops the export before that leaves no trace; a kill leaves the hidden folder, which no reader
counts and the next export sweeps.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from export.errors import SourceError
from service.manifest import MANIFEST

WORKING = ".export-"  # then the pid


@contextmanager
def staging(parent: Path) -> Iterator[Path]:
    """A hidden folder in `parent`, gone at the end unless it was renamed; so is a new `parent`."""
    try:
        existed = parent.is_dir()
        parent.mkdir(parents=True, exist_ok=True)
        _sweep(parent)
        folder = Path(tempfile.mkdtemp(prefix=f"{WORKING}{os.getpid()}-", dir=parent))
    except OSError as error:
        raise SourceError(f"cannot write to {parent}: {error.strerror}; choose --out") from error
    folder.chmod(0o755)  # mkdtemp's 0700 would hide the artifact from the server's user
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if not existed and not any(parent.iterdir()):
            parent.rmdir()


def _sweep(parent: Path) -> None:
    """Remove the working folders of exports that were killed."""
    for folder in parent.glob(f"{WORKING}*"):
        pid = folder.name.removeprefix(WORKING).split("-")[0]
        try:
            os.kill(int(pid), 0)
        except ProcessLookupError:
            shutil.rmtree(folder, ignore_errors=True)
        except (PermissionError, ValueError):
            continue  # alive, or not ours


def place(folder: Path, target: Path) -> Path:
    """Rename the folder into place. The same version is the same content: it is left as it is."""
    for file in folder.iterdir():
        file.chmod(0o644)  # safetensors writes for its owner only
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
    try:
        os.rename(folder, target)
    except OSError:
        if not (target / MANIFEST).is_file():
            raise
        return target
    parent = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(parent)
    finally:
        os.close(parent)
    return target
