"""What a CPU is and can do, read from what Linux says of it."""

import pytest

from service.cpu import Cpu, parse_cpuinfo, read_cpu

XEON = """processor\t: 0
model name\t: Intel(R) Xeon(R) Platinum 8480+
flags\t\t: fpu sse4_2 avx2 avx512f avx_vnni avx512_vnni amx_bf16 amx_int8

processor\t: 1
model name\t: another core
flags\t\t: fpu
"""
PI_5 = """processor\t: 0
BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm aes crc32 atomics asimdrdm asimddp
CPU implementer\t: 0x41
"""
GRAVITON_3 = "Features\t: fp asimd asimddp sve i8mm bf16\n"
PI_2 = "model name\t: ARMv7 Processor rev 5 (v7l)\nFeatures\t: half thumb neon vfpv4\n"


@pytest.mark.parametrize(
    ("text", "model", "features"),
    [
        (
            XEON,
            "Intel(R) Xeon(R) Platinum 8480+",
            ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8"),
        ),
        ("flags : avx512vnni avx2x\n", "", ()),
        (PI_5, "", ("neon", "dotprod")),
        (GRAVITON_3, "", ("neon", "dotprod", "i8mm")),
        (PI_2, "ARMv7 Processor rev 5 (v7l)", ("neon",)),
        ("", "", ()),
    ],
)
def test_the_features_that_matter_to_int8_are_read(
    text: str, model: str, features: tuple[str, ...]
) -> None:
    """Of the first core, whole words, in ARM's own words on ARM."""
    assert parse_cpuinfo(text, "m") == Cpu("m", model, features)


def test_a_cpu_names_itself_in_one_line() -> None:
    """By its model, or by its architecture where there is no other name."""
    assert str(Cpu("x86_64", "EPYC", ("avx2", "avx512f"))) == "EPYC (avx2, avx512f)"
    assert str(Cpu("arm64", "", ())) == "arm64 (no int8 features known)"
    assert read_cpu().machine in str(read_cpu()) or read_cpu().model in str(read_cpu())
