"""`python -m service.check ARTIFACT`: does an artifact compute, on this machine, what was trained?

By hand, on an edge device: the files' hashes, the self-test of every variant as the service runs it
at load, and how long a step takes. Exit status: 0, all that ran passed; 1, something failed, or
nothing could run; 2, what was asked for is not there.

Needs numpy, onnxruntime, pydantic and safetensors, nothing else of the service's; a TorchScript
variant also torch, and is skipped without it.
"""

import argparse
import json
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import numpy as np

from service.artifact import Artifact, Golden, locate_artifact
from service.cpu import read_cpu
from service.errors import CarouselError, EngineMissingError
from service.manifest import MANIFEST, Variant
from service.runtime import Runtime
from service.self_test import ALONE, BATCHED, STEP_BY_STEP, SelfTest, repeat, run_self_test

TIMING_S = 0.5  # for each variant and batch: thousands of steps of a small model
MIN_CALLS, MAX_CALLS, WARM_UP_CALLS = 20, 5_000, 10
PACKAGES = ("onnxruntime", "numpy")


@dataclass(frozen=True)
class Latency:
    """The time of one step of `batch` rows, as the service would run it."""

    batch: int
    p50_us: float
    p90_us: float
    p99_us: float
    steps_per_s: float  # of all rows together


@dataclass(frozen=True)
class Checked:
    """What was found of one variant."""

    variant: str
    result: Literal["pass", "FAIL", "skipped"]
    reason: str  # why it did not pass
    size_bytes: int
    self_test: SelfTest | None = None
    latency: tuple[Latency, ...] = ()


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    path = locate_artifact(arguments.artifact)
    if not (path / MANIFEST).is_file():
        return _complain(
            f"{arguments.artifact} holds no {MANIFEST}; expected an artifact directory "
            "NAME/VERSION/ as `python -m export` writes it, or NAME/ for its newest version",
            2,
        )
    try:
        artifact = Artifact.load(path)
        golden = artifact.golden()
    except CarouselError as error:
        return _complain(error.message, 1)
    variants = arguments.variant or list(artifact.manifest.variants)
    for name in variants:
        try:
            artifact.variant(name)
        except CarouselError as error:
            return _complain(error.message, 2)
    found = [
        check_variant(artifact, name, golden, arguments.batch, arguments.threads)
        for name in variants
    ]
    report = {**_conditions(artifact, arguments.threads), "variants": [_entry(c) for c in found]}
    print(json.dumps(report, indent=1) if arguments.json else _text(artifact, report, found))
    results = {checked.result for checked in found}
    return 0 if "pass" in results and "FAIL" not in results else 1


def check_variant(
    artifact: Artifact, name: str, golden: Golden, batches: Sequence[int], threads: int
) -> Checked:
    """Load one variant, replay its golden sequences, and time its steps."""
    size = _size_bytes(artifact.variant(name))
    try:
        runtime = Runtime(artifact, name, threads)
        found = run_self_test(artifact, runtime, golden)
    except EngineMissingError as error:
        return Checked(name, "skipped", f"needs {error.data['package']}", size)
    except CarouselError as error:
        return Checked(name, "FAIL", error.message, size)
    if failure := found.failure():
        return Checked(name, "FAIL", failure.message, size, found)
    runtime.isolated = found.isolated  # as the service would run it
    latency = tuple(measure(artifact, runtime, golden, batch) for batch in batches)
    return Checked(name, "pass", "", size, found, latency)


def measure(artifact: Artifact, runtime: Runtime, golden: Golden, batch: int) -> Latency:
    """Time steps of `batch` rows of the golden sequences, their state carried."""
    x = np.resize(golden.x, (batch, *golden.x.shape[1:]))
    steps = [np.ascontiguousarray(x[:, t : t + 1]) for t in range(x.shape[1])]
    state = repeat(artifact.initial, batch)
    for call in range(WARM_UP_CALLS):
        _, state = runtime.run(steps[call % len(steps)], state)
    times: list[float] = []
    end = time.perf_counter() + TIMING_S
    while len(times) < MIN_CALLS or (len(times) < MAX_CALLS and time.perf_counter() < end):
        start = time.perf_counter()
        _, state = runtime.run(steps[len(times) % len(steps)], state)
        times.append(time.perf_counter() - start)
    p50, p90, p99 = (float(value) * 1e6 for value in np.percentile(times, [50, 90, 99]))
    return Latency(batch, p50, p90, p99, batch * len(times) / sum(times))


def _size_bytes(variant: Variant) -> int:
    return variant.size + (variant.step.size if variant.step else 0)


# The report -------------------------------------------------------------------------------------


def _conditions(artifact: Artifact, threads: int) -> dict[str, object]:
    return {
        "artifact": str(artifact.path),
        "name": artifact.manifest.name,
        "version": artifact.manifest.version,
        "system": f"{platform.system()} {platform.release()}",
        "cpu": asdict(read_cpu()),
        "python": platform.python_version(),
        **{package: version(package) for package in PACKAGES},
        "threads": threads,
    }


def _entry(checked: Checked) -> dict[str, object]:
    test = checked.self_test
    entry: dict[str, object] = {
        "variant": checked.variant,
        "result": checked.result.lower(),
        "size_bytes": checked.size_bytes,
    }
    if checked.reason:
        entry["reason"] = checked.reason
    if test is not None:
        entry["tolerance"] = test.tolerance.model_dump()
        entry["golden"] = [asdict(r) for r in test.replays]
        entry["isolated"] = test.isolated
        entry["latency"] = [asdict(one) for one in checked.latency]
    return entry


def _text(artifact: Artifact, report: dict[str, object], found: Sequence[Checked]) -> str:
    cpu = read_cpu()
    sequences, steps = artifact.golden().x.shape[:2]
    lines = [
        f"{report['name']}:{report['version']}  {report['artifact']}",
        "every file is what the manifest says",
        "",
        f"machine   {cpu.machine}, {report['system']}",
        f"CPU       {cpu}",
        f"software  onnxruntime {report['onnxruntime']}, numpy {report['numpy']}, "
        f"Python {report['python']}; threads: {report['threads']}",
        "",
        f"greatest error of {sequences} golden sequences of {steps} steps, in the model's units",
        *_table(
            ["variant", "", "size", *(ALONE, BATCHED, STEP_BY_STEP), "allowed", "isolated here"],
            [_parity_row(artifact, checked) for checked in found],
            words=2,
        ),
        "",
    ]
    timed = [
        [checked.variant, str(one.batch), *_microseconds(one), f"{one.steps_per_s:,.0f}"]
        for checked in found
        for one in checked.latency
    ]
    if timed:
        head = ["variant", "batch", "p50 us", "p90 us", "p99 us", "steps/s"]
        lines += ["time of one step of a batch", *_table(head, timed, words=1), ""]
    if any(checked.self_test and not checked.self_test.isolated for checked in found):
        lines += ["what is not isolated runs one row and one step at a time, and is timed so"]
    lines += [f"FAIL: {checked.reason}" for checked in found if checked.result == "FAIL"]
    return "\n".join([*lines, _verdict(found)])


def _parity_row(artifact: Artifact, checked: Checked) -> list[str]:
    test = checked.self_test
    default = checked.variant == artifact.manifest.default_variant
    why = f": {checked.reason}" if checked.result == "skipped" else ""
    name = checked.variant + (" (default)" if default else "")
    row = [name, checked.result + why, _size(checked.size_bytes)]
    if test is None:
        return [*row, "", "", "", "", ""]
    errors = [f"{replay.max_error:.1e}" for replay in test.replays]
    rtol = f" + {test.tolerance.rtol:g} |y|" if test.tolerance.rtol else ""
    return [*row, *errors, f"{test.tolerance.atol:g}{rtol}", "yes" if test.isolated else "no"]


def _microseconds(one: Latency) -> list[str]:
    return [f"{value:,.0f}" for value in (one.p50_us, one.p90_us, one.p99_us)]


def _size(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:.1f} MB" if size_bytes >= 1e6 else f"{size_bytes / 1e3:.1f} kB"


def _verdict(found: Sequence[Checked]) -> str:
    count = {
        result: sum(checked.result == result for checked in found)
        for result in ("pass", "FAIL", "skipped")
    }
    skipped = f", {count['skipped']} skipped" if count["skipped"] else ""
    if count["FAIL"]:
        return f"{count['FAIL']} of {len(found)} variants failed{skipped}"
    if not count["pass"]:
        return "nothing could run here, so nothing is proven"
    return f"{count['pass']} passed{skipped}: this machine computes what was exported"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], words: int) -> list[str]:
    """Columns as wide as they need be, the first `words` to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]

    def line(row: Sequence[str]) -> str:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)][:words]
        cells += [cell.rjust(width) for cell, width in zip(row, widths, strict=True)][words:]
        return "  ".join(cells).rstrip()

    return [line(head), *map(line, rows)]


def _complain(message: str, status: int) -> int:
    print(f"check: {message}", file=sys.stderr)
    return status


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value}, expected 1 or more")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m service.check",
        description="Replay an artifact's golden sequences on this machine and time its steps.",
    )
    add = parser.add_argument
    add("artifact", type=Path, help="directory NAME/VERSION/, or NAME/ for its newest version")
    add("--variant", action="append", metavar="V", help="only this one; may be repeated")
    add("--batch", type=_positive, nargs="+", default=[1, 16], help="rows a step (%(default)s)")
    add("--threads", type=_positive, default=1, help="of one run (%(default)s)")
    add("--json", action="store_true", help="the same as JSON")
    return parser


if __name__ == "__main__":
    sys.exit(main())
