"""What all tests share: quiet thread pools, and the demo models, trained and exported for real.

`make test` runs them in as many workers as there are cores. What is made once for many tests is
made in one worker: the tests of a file stay together, and so do the files that need the demo
models. The authors' modules share nothing, and go each to the next free worker, at the end.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from schemathesis.pytest.plugin import SchemathesisFunction
from threadpoolctl import threadpool_limits
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling
from xdist.workermanage import WorkerController

from models.zoo import ZOO
from service.artifact import Artifact, find_artifacts

ROOT = Path(__file__).parents[1]
DEMOS = ("sine-cell", "series-lstm")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the commands that tests start
DEMO_FILES = frozenset(
    {
        "tests/e2e/test_not_isolated.py",
        "tests/e2e/test_readme.py",
        "tests/e2e/test_serving_docs.py",
        "tests/export/test_isolation.py",
        "tests/export/test_rowwise.py",
        "tests/export/test_saturation.py",
        "tests/export/test_timing.py",
        "tests/laws/test_int8_drift.py",
        "tests/laws/test_laws.py",
        "tests/laws/test_snapshots.py",
    }
)
AUTHORS = "tests/export/test_authors.py"
# What takes most, the longest first: begun last, one worker would be at it when the rest are done.
LONGEST = (
    "demos",
    "tests/laws/test_zoo.py",
    "tests/export/test_exporter.py",
    "tests/export/test_authors_command.py",
    "tests/export/test_refusal.py",
    "tests/export/test_network.py",
    "tests/export/test_calling.py",
    "tests/e2e/test_serve.py",
    "tests/e2e/test_keys.py",
    "tests/export/test_docs.py",
    "tests/export/test_windowed.py",
    "tests/fuzz/test_openapi.py",
    "tests/export/test_pointwise.py",
    "tests/benchmarks/test_peers.py",
    "tests/chaos/test_vanish.py",
)


class Scheduling(LoadFileScheduling):  # type: ignore[misc]  # it has no types
    """By file, but for the two exceptions.

    pytest-xdist's own groups (`--dist=loadgroup`) are silently ignored by pytest 9.2:
    https://github.com/pytest-dev/pytest-xdist/issues/1386 (2026).
    """

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.split("::")[0]
        if file == AUTHORS and "[" in nodeid:
            return file + nodeid[nodeid.index("[") :]
        return "demos" if file in DEMO_FILES else file

    def _assign_work_unit(self, node: WorkerController) -> None:
        self.workqueue.move_to_end(min(self.workqueue, key=_turn), last=False)
        super()._assign_work_unit(node)


def _turn(scope: str) -> int:
    """The longest first, and last what is short and fills the gaps; else as it stands."""
    if scope.startswith(f"{AUTHORS}["):
        return len(LONGEST) + 1
    return LONGEST.index(scope) if scope in LONGEST else len(LONGEST)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadFileScheduling | None:
    return Scheduling(config, log) if config.getoption("dist") == "loadfile" else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Who needs the demo models is known here, who runs where is decided by the file's name.

    No id may come twice: pytest-xdist would run the first test of it alone. schemathesis gives its
    tests, one for each route, the id of their function.
    """
    seen: set[str] = set()
    for item in items:
        if isinstance(item, SchemathesisFunction):
            item._id = item.id.with_params(item.operation_label)
        if item.nodeid in seen:
            raise pytest.UsageError(f"two tests are called {item.nodeid}: one would not run")
        seen.add(item.nodeid)
        file = item.path.relative_to(ROOT).as_posix()
        if "demo_runs" in getattr(item, "fixturenames", ()) and file not in DEMO_FILES:
            raise pytest.UsageError(f"{file} needs the demo models: name it in DEMO_FILES")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """A test marked `needs(program)` skips where it is missing, and fails in CI."""
    for marker in item.iter_markers("needs"):
        for program in marker.args:
            if shutil.which(program) is None:
                reason = f"{program} is not installed; `make packages` installs it where it may"
                (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """numpy's and torch's pools take the cores from each other: 30 times slower on two."""
    torch.set_num_threads(1)
    with threadpool_limits(1):
        yield


@pytest.fixture(scope="session")
def demo_runs() -> dict[str, Path]:
    """name -> its folder under runs/, trained now by the real command if it is not there."""
    for name in DEMOS:
        if not (ROOT / "runs" / name / "report.json").is_file():
            subprocess.run([sys.executable, "-m", "models.train", name], cwd=ROOT, check=True)
    return {name: ROOT / "runs" / name for name in DEMOS}


def export_arguments(run: Path, out: Path) -> list[str]:
    """What `python -m export` gets for a model of the zoo, as README has it."""
    module = run.name.replace("-", "_")
    files = ("weights.safetensors", "holdout.npy", "pipeline.json")
    flags = zip(("--weights", "--example", "--pipeline"), files, strict=True)
    given = [part for flag, file in flags for part in (flag, str(run / file))]
    named = ["--name", run.name, "--out", str(out), "--timing", "0.2"]
    return [f"models.zoo:{module}", *given, *named, *ZOO[run.name].export_flags]


@pytest.fixture(scope="session")
def demo_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BENTOML_HOME of the tests' own, into which the demo models are exported."""
    return tmp_path_factory.mktemp("bentoml")


@pytest.fixture(scope="session")
def demo_artifacts(
    demo_runs: dict[str, Path], demo_home: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Artifact]:
    """name -> its artifact, exported now, with all five variants, and put in BentoML's store."""
    out = tmp_path_factory.mktemp("demos") / "artifacts"
    environment = {**os.environ, "BENTOML_HOME": str(demo_home)}
    for run in demo_runs.values():
        command = [sys.executable, "-m", "export", *export_arguments(run, out)]
        subprocess.run(command, cwd=ROOT, check=True, env=environment)
    loaded = [Artifact.load(path) for path in find_artifacts(out)]
    return {artifact.manifest.name: artifact for artifact in loaded}
