"""`python -m export MODULE:FACTORY --weights FILE --example FILE.npy --name NAME`."""

import argparse
import json
import re
import sys
from contextlib import redirect_stdout
from pathlib import Path

import torch
from rich.console import Console
from threadpoolctl import threadpool_limits

from export.cases import STEPS
from export.errors import ExportError, SourceError
from export.exporter import ALL_VARIANTS, ON_REQUEST, Exported, Progress, export
from export.onnx_in.source import SUFFIX as ONNX_SUFFIX
from export.onnx_in.source import OnnxSource, load_onnx_source
from export.publish import publish
from export.reporting.table import parity_table
from export.source import Source, load_source
from export.target import read_target
from export.tolerances import WORSENING
from export.user_code import describe, users_line
from service.errors import CarouselError
from service.manifest import NAME_PATTERN

MIN_STEPS, MAX_STEPS = 100, 1_000_000  # of the proof: below, there is no drift to be seen
MAX_WINDOW = 10_000  # steps: a session's state is as large, and is stored at each commit
TIMING_S = 4.0  # ratios are then good to a few hundredths; other programs take cores, not ratios
TABLE_COLUMNS = 122  # what the parity table needs; a narrower terminal wraps it
EPILOG = """\
how a module is called (--call); the common ways are found out by trying.
Left of -> stands what forward takes, right of it what it returns:
  x, y  one step's input and output     X, Y  a whole sequence's
  a name on both sides is a state; without a y, the first state is the output

  a cell, one step a call
    x, (h, c) -> h, c
    x, h -> y, h                 an output of its own
    x, [h1, h2] -> [h1, h2=y]    the state h2 is the output too
  a loop, a sequence a call
    X, (h, c)=None -> Y, (h, c)  given None, it starts its state itself
    X, h -> y, h                 it answers for the last step only
    X -> Y; X is (time, batch, ...)   which axis is time, if both work
  no state is given: it is kept on the module, or hidden in it
    X -> Y      X -> y      x -> y
  groups
    (h, c) a tuple, [h, c] a list, {key: h} a dict, (h,) a tuple of one
    x, [(h1, c1), (h2, c2)] -> y, [(h1, c1), (h2, c2)]
    x, h -> {output: y, state: h}    a dict, or an object's attributes
  further arguments
    x, hx=(h, c) -> h, c         a keyword argument
    x, h, True -> h              fixed: numbers, True, False and None
    x, mask:1, h -> h            the last 1 column of the example
    X, lengths -> Y              the lengths of the sequences
    x, h, t -> h                 the index of the step
  further results
    x, h -> y, y, h              several y are joined on the last axis
    x, h -> y, h, attention      a name on the right alone (or _) is dropped

export imports and runs MODULE, so run it on code that you trust; serving
never does. Exit status: 0 written; 1 refused, nothing written; 2 the command
line is wrong. docs/exporting.md has examples, and what each error means.
"""


def main(argv: list[str] | None = None) -> int:
    parser = _parser()
    arguments = parser.parse_args(argv)
    _check_mode(parser, arguments.mode, arguments.window)
    console = Console(stderr=True)
    try:
        # numpy's and torch's thread pools take the cores from each other: 30 times slower here.
        with threadpool_limits(1), console.status("loading") as status:
            torch.set_num_threads(1)
            _run(arguments, status.update)
    except (ExportError, CarouselError) as error:
        print(f"export: {error}", file=sys.stderr)
        return 1
    except Exception as error:
        if users_line(error) is None:
            raise  # a fault of export's own: the traceback is what we need
        print(f"export: your module raised {describe(error)}; mend it", file=sys.stderr)
        return 1
    return 0


def _run(arguments: argparse.Namespace, progress: Progress) -> None:
    with redirect_stdout(sys.stderr):  # what the user's module prints is no result of ours
        exported = _export(arguments, progress)
    manifest = exported.artifact.manifest
    Console(width=TABLE_COLUMNS).print(parity_table(manifest, exported.measured))
    for layer in manifest.lowering:
        print(f"{layer.layer}: {layer.road}; {layer.why}")
    print(f"wrote {exported.artifact.path}")
    if arguments.store:
        progress("copying into BentoML's model store")
        print(f"BentoML model store: {publish(exported.artifact)}")


def _export(arguments: argparse.Namespace, progress: Progress) -> Exported:
    source = _source(arguments)
    for note in source.notes if isinstance(source, Source) else ():
        print(f"export: {note}", file=sys.stderr)
    return export(
        source,
        _name(arguments.name),
        arguments.out,
        notation=arguments.call,
        window=arguments.window,
        variants=arguments.variants,
        default_variant=arguments.default_variant,
        tolerances=dict(arguments.tolerance),
        steps=arguments.steps,
        target=None if arguments.target is None else read_target(arguments.target),
        worsening=arguments.worsening,
        timing_s=arguments.timing,
        max_drift=arguments.max_drift,
        min_speedup=arguments.min_speedup,
        progress=progress,
    )


def _source(arguments: argparse.Namespace) -> Source | OnnxSource:
    if arguments.module.endswith(ONNX_SUFFIX):
        if arguments.weights or _init(arguments.init):
            raise SourceError(
                f"{arguments.module} has its weights inside; leave out --weights and --init"
            )
        return load_onnx_source(Path(arguments.module), arguments.example, arguments.pipeline)
    return load_source(
        arguments.module,
        arguments.weights,
        arguments.example,
        arguments.pipeline,
        _init(arguments.init),
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m export",
        description="Turn a trained recurrent module into an artifact, proven equal to it.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "module",
        metavar="MODULE:FACTORY",
        help="a class or function that builds the module; or an .onnx file",
    )
    add(
        "--weights",
        type=Path,
        help="its state_dict: .safetensors, .pt or .pth; without it FACTORY is trained",
    )
    add(
        "--example",
        type=Path,
        required=True,
        help="real input in raw units, .npy (T, features); or .txt",
    )
    add("--name", required=True, help="the artifact's name: lower case, digits, . _ -")
    add(
        "--out", type=Path, default=Path("artifacts"), help="where NAME/VERSION/ goes (%(default)s)"
    )
    add(
        "--pipeline",
        type=Path,
        help="what stands before and after the module, .json: scaling of x and y, vocabulary, "
        "classes, choose, alarm, error (docs/exporting.md)",
    )
    add("--call", metavar="NOTATION", help='how it is called: "x, (h, c) -> h, c"; see below')
    add(
        "--mode",
        choices=("auto", "causal", "windowed"),
        default="auto",
        help="causal (auto): its state is carried; windowed: its last N inputs are the state",
    )
    add("--window", type=_window, metavar="N", help="steps of a training window, for windowed")
    add("--init", metavar="JSON", default="{}", help="keywords for FACTORY")
    add(
        "--variants",
        type=_variants,
        metavar="A,B",
        help="which to write, the first is served by default; all of them must pass. Without it: "
        f"{','.join(ALL_VARIANTS)}, less any that cannot be had here, or is int8 and drifts; "
        f"{','.join(ON_REQUEST)} is written when it is named",
    )
    add("--default-variant", type=_variant, metavar="A", help="which is served by default")
    add(
        "--tolerance",
        type=_tolerance,
        action="append",
        default=[],
        metavar="VARIANT=ATOL",
        help="allow this much absolute error, in the model's units; may be repeated",
    )
    add(
        "--max-drift",
        type=_positive,
        metavar="X",
        help="allow the int8 variants this much absolute error, in the model's units, instead of "
        "what follows from the example; layers of onnx-int8-rowwise go to float until it holds",
    )
    add(
        "--min-speedup",
        type=_positive,
        metavar="R",
        help="onnx-int8-rowwise has to take at most 1/R of onnx-fp32's time for a step here, at "
        "batch 1 and 64; the bytes then depend on what was timed",
    )
    add(
        "--steps",
        type=_steps,
        metavar="N",
        help=f"how long the proof is, in each of its cases; a shorter example is cycled ({STEPS})",
    )
    add(
        "--target",
        type=Path,
        help="the truth of y at each step of the example, .npy: raw units; ids of tokens or "
        "classes; 1 for an anomaly",
    )
    add(
        "--worsening",
        type=_percent,
        metavar="PERCENT",
        help="how much worse an int8 variant's metrics may be (forecast error, perplexity, "
        f"agreement, AUC) than the module's ({100 * WORSENING:g})",
    )
    add(
        "--timing",
        type=_seconds,
        metavar="SECONDS",
        default=TIMING_S,
        help="how long to time the steps of the variants for the report (%(default)g); 0: not",
    )
    add(
        "--no-store",
        dest="store",
        action="store_false",
        help="do not copy it into BentoML's model store",
    )
    return parser


def _check_mode(parser: argparse.ArgumentParser, mode: str, window: int | None) -> None:
    if mode == "windowed" and window is None:
        parser.error(
            "--mode windowed needs --window N: as many steps as the windows that the model was "
            "trained on"
        )
    if mode != "windowed" and window is not None:
        parser.error(
            f"--window {window} is for models that need their whole window: say --mode windowed, "
            f"or leave it out (--mode is {mode})"
        )


def _window(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) <= MAX_WINDOW:
        raise argparse.ArgumentTypeError(f"`{text}`, expected a number of steps, 1 to {MAX_WINDOW}")
    return int(text)


def _steps(text: str) -> int:
    if not text.isdecimal() or not MIN_STEPS <= int(text) <= MAX_STEPS:
        raise argparse.ArgumentTypeError(
            f"`{text}`, expected a number of steps, {MIN_STEPS} to {MAX_STEPS}"
        )
    return int(text)


def _percent(text: str) -> float:
    """As a share."""
    try:
        value = float(text.removesuffix("%"))
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"`{text}`, expected a percentage as in 5")
    return value / 100


def _variant(text: str) -> str:
    known = (*ALL_VARIANTS, *ON_REQUEST)
    if text not in known:
        raise argparse.ArgumentTypeError(f"`{text}` is none of {', '.join(known)}")
    return text


def _variants(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(_variant(part.strip()) for part in text.split(",")))


def _tolerance(text: str) -> tuple[str, float]:
    variant, equals, atol = text.partition("=")
    try:
        value = float(atol)
    except ValueError:
        value = 0.0
    if not equals or not value > 0 or value == float("inf"):
        raise argparse.ArgumentTypeError(f"`{text}`, expected VARIANT=ATOL as in onnx-int8=0.02")
    return _variant(variant), value


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"`{text}`, expected seconds, 0 or more")
    return value


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"`{text}`, expected a number greater than 0")
    return value


def _name(name: str) -> str:
    if not re.fullmatch(NAME_PATTERN, name):
        raise SourceError(
            f"got the name `{name}`, expected lower-case letters, digits, `.`, `_` and `-`, "
            "beginning and ending with a letter or digit, at most 63 characters"
        )
    return name


def _init(text: str) -> dict[str, object]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise SourceError(f"--init `{text}` is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise SourceError(f"--init `{text}` is not an object of keywords")
    return value


if __name__ == "__main__":
    sys.exit(main())
