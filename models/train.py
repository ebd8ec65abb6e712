"""The command: ``python -m models.train NAME`` trains a model, ``--list`` shows what there is."""

import argparse
import platform
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from tqdm import tqdm

from models.errors import BelowNaiveError, ModelsError, SettingError
from models.fitting import Progress, Settings, fit
from models.runs import WEIGHTS, Report, new_run, write_run
from models.tables import (
    count_parameters,
    describe_parameters,
    score_table,
    zoo_markdown,
    zoo_table,
)
from models.zoo import ZOO, Entry, find

RUNS = Path("runs")
THREADS = 1  # the matrices are too small to share, and one thread adds up in one order: repeatable
PACKAGES = ("torch", "numpy", "safetensors")
BAR_INTERVAL_S = 0.5  # a log file gets each state of the bar on a line of its own
SEED_LIMIT = 2**63  # what torch takes; numpy takes more
INTERRUPTED = 130  # the shell's exit status for a command that was stopped with Ctrl-C


def main(argv: Sequence[str] | None = None, zoo: Mapping[str, Entry] = ZOO) -> int:
    """Run the command.

    Args:
        argv: the arguments; None: those of the process.
        zoo: the models that can be trained.
    Returns:
        The exit status: 0 for a model that was trained, beats the naive forecasts and is written.
    """
    parser = _parser(zoo)
    arguments = parser.parse_args(argv)
    console = Console()
    try:
        if arguments.list:
            console.print(zoo_table(_reports(zoo)))
            return 0
        if arguments.table:
            print(zoo_markdown(_reports(zoo)))
            return 0
        if arguments.name is None:
            parser.error(f"which model? one of {', '.join(zoo)}; or --list or --table")
        entry = find(arguments.name, zoo)
        entry = replace(entry, settings=_override(entry.settings, arguments))
        target = RUNS / entry.name if arguments.out is None else arguments.out
        train(entry, target, arguments.seed, console)
    except (
        ModelsError,
        OSError,
    ) as error:  # OSError: no space, no right to write; its text says so
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; nothing was written", file=sys.stderr)
        return INTERRUPTED
    return 0


def train(entry: Entry, target: Path, seed: int, console: Console) -> Report:
    """Train a model, score it on held-out time, and write its run.

    The same entry, seed and versions give the same weights. Torch's global generator is seeded, and
    torch is set to one thread.

    Args:
        target: the run's folder; replaced if it is there, untouched if anything goes wrong.
        seed: zero or above.
    Raises:
        BelowNaiveError: it learnt too little. Nothing is written.
        ModelsError: its other kinds, as their texts say.
    """
    if not 0 <= seed < SEED_LIMIT:
        raise SettingError("seed", seed, f"a whole number from 0 to {SEED_LIMIT - 1}")
    torch.set_num_threads(THREADS)
    torch.manual_seed(seed)
    model = entry.factory()
    parameters = count_parameters(model)
    console.print(f"{entry.name}: {entry.description}; {describe_parameters(parameters)}")
    with new_run(target) as folder:
        with _progress_bar(entry.settings) as on_batch:
            result = fit(
                model,
                entry.task,
                entry.settings,
                np.random.default_rng(seed),
                folder / WEIGHTS,
                on_batch,
            )
        report = Report(
            name=entry.name,
            seed=seed,
            parameters=parameters,
            scores=entry.task.score(model),
            training_s=round(result.seconds, 1),
            epochs=result.epochs,
            best_epoch=result.best_epoch,
            best_loss=result.best_loss,
            settings=asdict(entry.settings),
            versions={"python": platform.python_version()} | {p: version(p) for p in PACKAGES},
            window=entry.task.window,
        )
        console.print(score_table(entry.name, entry.task.data_name, report.scores))
        if failures := [line for score in report.scores for line in score.failures()]:
            raise BelowNaiveError(entry.name, failures)
        write_run(folder, entry.task, model, report)
    console.print(
        f"trained in {result.seconds:.1f} s, best of {result.epochs} epochs: {result.best_epoch}; "
        f"written to {target}"
    )
    return report


@contextmanager
def _progress_bar(settings: Settings) -> Iterator[Callable[[Progress], None]]:
    """A bar over all the batches that there may be; early stopping leaves it short of its end."""
    total = settings.epochs * settings.batches
    with tqdm(total=total, unit="batch", dynamic_ncols=True, mininterval=BAR_INTERVAL_S) as bar:

        def on_batch(progress: Progress) -> None:
            bar.set_description(f"epoch {progress.epoch}", refresh=False)
            bar.set_postfix(
                train=f"{progress.train_loss:.4f}",
                val=f"{progress.validation_loss:.4f}",
                best=f"{progress.best_loss:.4f}",
                lr=f"{progress.learning_rate:.1e}",
                refresh=False,
            )
            bar.update()

        yield on_batch


def _parser(zoo: Mapping[str, Entry]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m models.train", description="Train a model of models/zoo.py."
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help=f"one of {', '.join(zoo)}")
    parser.add_argument("--list", action="store_true", help="show the models, and their scores")
    parser.add_argument("--table", action="store_true", help="the same, in Markdown")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help=f"the run; {RUNS}/NAME if not given"
    )
    parser.add_argument("--seed", type=int, default=0, help="of weights, crops, dropout (0)")
    overrides = parser.add_argument_group("settings", "instead of those in the model's entry")
    for field in fields(Settings):
        overrides.add_argument(f"--{field.name.replace('_', '-')}", type=field.type, metavar="N")
    return parser


def _override(settings: Settings, arguments: argparse.Namespace) -> Settings:
    """The settings with those that were given on the command line.

    Raises:
        SettingError: one is out of its range.
    """
    given = {field.name: getattr(arguments, field.name) for field in fields(Settings)}
    return replace(settings, **{name: value for name, value in given.items() if value is not None})


def _reports(zoo: Mapping[str, Entry]) -> list[tuple[Entry, Report | None]]:
    return [(entry, Report.read(RUNS / name)) for name, entry in zoo.items()]


if __name__ == "__main__":
    sys.exit(main())
