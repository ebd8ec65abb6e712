"""A TorchScript archive whose bytes tell of the module alone, in any process and folder.

Rules
- The source locations that torch adds are left out: they hold this machine's paths and the caller's
  stack, and serve tracebacks only.
- The numbers that tell classes of one name apart count what the process has scripted before; here
  they count from 0.
- The Final constants of a class are a set to torch, written in any order; here they are sorted.
"""

import io
import re
import zipfile
from pathlib import Path

MANGLED = re.compile(rb"___torch_mangle_\d+")
CONSTANTS = re.compile(rb"(?m)(?:^  \w+ : Final\[.*\n)+")  # torch writes a set of them
SERIALIZATION_ID = ".data/serialization_id"  # a hash over the records, those left out too


def write_archive(saved: io.BytesIO, path: Path) -> None:
    """Write what `torch.jit.save` gave; the same module gives the same bytes."""
    numbers: dict[bytes, bytes] = {}

    def renumber(match: re.Match[bytes]) -> bytes:
        return numbers.setdefault(match[0], b"___torch_mangle_%d" % len(numbers))

    with zipfile.ZipFile(saved) as full, zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as kept:
        for name in full.namelist():
            _, _, inner = name.partition("/")
            if inner.endswith(".debug_pkl") or inner == SERIALIZATION_ID:
                continue
            content = full.read(name)
            if inner.endswith((".py", ".pkl")):
                content = MANGLED.sub(renumber, content)
                content = CONSTANTS.sub(_in_order, content)
                inner = MANGLED.sub(renumber, inner.encode()).decode()
            kept.writestr(zipfile.ZipInfo(f"{path.stem}/{inner}"), content)


def _in_order(lines: re.Match[bytes]) -> bytes:
    return b"".join(sorted(lines[0].splitlines(keepends=True)))
