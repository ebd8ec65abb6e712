"""What this machine's CPU is, and which of its instructions decide how int8 is computed.

With dot products (VNNI, AMX; dotprod, i8mm) products of int8 are summed in 32 bits; AVX2 and plain
AVX-512 sum pairs of uint8 x int8 in saturating 16 bits. Linux tells in /proc/cpuinfo; elsewhere the
features are unknown, and so none is shown.
"""

import platform
from dataclasses import dataclass
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
BOARD = Path("/proc/device-tree/model")  # of single-board computers, ended by a NUL
X86 = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8")
# Linux's word -> ARM's own; 32-bit kernels say `neon` where 64-bit ones say `asimd`
ARM = {"neon": "neon", "asimd": "neon", "asimddp": "dotprod", "i8mm": "i8mm"}


@dataclass(frozen=True)
class Cpu:
    """A CPU by name, with what it has of the features above."""

    machine: str  # x86_64, aarch64, ...
    model: str  # empty: unknown
    features: tuple[str, ...]

    def __str__(self) -> str:
        known = ", ".join(self.features) or "no int8 features known"
        return f"{self.model or self.machine} ({known})"


def read_cpu() -> Cpu:
    """The CPU that this process runs on."""
    text = CPUINFO.read_text(errors="replace") if CPUINFO.is_file() else ""
    cpu = parse_cpuinfo(text, platform.machine())
    if cpu.model:
        return cpu
    board = BOARD.read_text(errors="replace").strip("\0\n ") if BOARD.is_file() else ""
    return Cpu(cpu.machine, board or platform.processor(), cpu.features)


def parse_cpuinfo(text: str, machine: str) -> Cpu:
    """Read what Linux writes into /proc/cpuinfo, of the first core."""
    first: dict[str, str] = {}
    for line in text.splitlines():
        key, _, value = line.partition(":")
        first.setdefault(key.strip(), value.strip())
    words = {*first.get("flags", "").split(), *first.get("Features", "").split()}
    arm = {ARM[word]: None for word in ARM if word in words}  # each once, in ARM's order
    features = (*(word for word in X86 if word in words), *arm)
    return Cpu(machine, first.get("model name", ""), features)
