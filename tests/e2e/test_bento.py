"""The built Bento: what it holds, and that it serves, elsewhere and without torch."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml
from httpx_sse import connect_sse

from tests.e2e.conftest import BENTOML, ROOT, SERIES, SINE, Server, environment, start_server
from tests.e2e.test_stream import duplex, line
from tests.service.build_artifact import build_artifact

REGISTER = """
import bentoml, pathlib, shutil, sys
for path in map(pathlib.Path, sys.argv[1:]):
    tag = f"{path.parent.name}:{path.name}"
    with bentoml.models.create(tag, labels={"carousel": "artifact"}) as model:
        shutil.copytree(path, model.path, dirs_exist_ok=True)
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BENTOML_HOME with both models in its store, and nothing else."""
    root = tmp_path_factory.mktemp("source")
    home = tmp_path_factory.mktemp("bentoml")
    paths = [str(build_artifact(root, spec)) for spec in (SINE, SERIES)]
    run([sys.executable, "-c", REGISTER, *paths], home)
    return home


@pytest.fixture(scope="module")
def bento(home: Path) -> Path:
    """The directory of the Bento that `bentoml build` makes of this checkout."""
    run([str(BENTOML), "build"], home)
    (bento,) = [path for path in (home / "bentos" / "carousel").iterdir() if path.is_dir()]
    return bento


def run(command: list[str], home: Path) -> str:
    done = subprocess.run(
        command, cwd=ROOT, env=environment(home), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def no_torch(tmp_path: Path) -> Path:
    """A directory that, first on the path, makes `import torch` fail."""
    (tmp_path / "torch.py").write_text('raise ImportError("torch is not in the serving image")')
    return tmp_path


@pytest.fixture
def served(bento: Path, home: Path, no_torch: Path, tmp_path: Path) -> Iterator[Server]:
    """`bentoml serve carousel:latest`, from an empty directory."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    server = start_server(
        tmp_path,
        "carousel:latest",
        cwd=elsewhere,
        home=home,
        PYTHONPATH=str(no_torch),
        CAROUSEL_STORE_PATH="",
    )
    try:
        server.wait_until_it_listens()
        yield server
    finally:
        server.stop()


def test_the_bento_holds_the_service_and_the_models_and_no_more(bento: Path) -> None:
    """Neither the code that trains and exports, nor torch, nor tests."""
    source = bento / "src"
    held = {path.relative_to(source) for path in source.rglob("*.py")}
    ours = {path.relative_to(ROOT) for path in (ROOT / "service").rglob("*.py")}
    assert held == ours
    info = yaml.safe_load((bento / "bento.yaml").read_text())
    assert {model["tag"].partition(":")[0] for model in info["models"]} == {
        "sine-cell",
        "series-lstm",
    }
    requirements = (bento / "env" / "python" / "requirements.txt").read_text()
    assert "onnxruntime==" in requirements
    assert "torch" not in requirements
    assert all("==" in line for line in requirements.splitlines() if line.strip())


def test_the_requirements_of_the_bento_are_what_is_tested_here() -> None:
    """Each pinned version is the installed one."""
    packages = yaml.safe_load((ROOT / "bentofile.yaml").read_text())["python"]["packages"]
    frozen = subprocess.run(
        [sys.executable, "-m", "pip", "freeze"], capture_output=True, text=True, check=True
    )
    installed = {line.lower().replace("_", "-") for line in frozen.stdout.splitlines()}
    assert {package for package in packages if package not in installed} == set()


def test_the_bento_serves_its_own_models_without_torch(served: Server, tmp_path: Path) -> None:
    """From another directory, which gets the sessions; a session goes on."""
    ready = httpx.get(served.url + "/readyz")
    assert ready.status_code == 200
    assert [name.partition(":")[0] for name in ready.json()["models"]] == [
        "series-lstm",
        "sine-cell",
    ]
    for step in range(3):
        reply = httpx.post(served.url + "/predict", json=line("s", [[0.5]], step=step)).json()
        assert (reply["step"], reply["created"]) == (step + 1, step == 0)
    assert "/predict" in httpx.get(served.url + "/docs.json").json()["paths"]
    with duplex(served) as stream:
        assert stream.head()[0] == 200
        for step in range(3, 6):
            stream.send(line("s", [[0.5]], step=step))
            assert stream.read()["step"] == step + 1  # before the next line is sent
        stream.finish()
        assert stream.rest() == []
    body = {"session_id": "s", "horizon": 2}
    with (
        httpx.Client(base_url=served.url, timeout=30) as http,
        connect_sse(http, "POST", "/forecast", json=body) as source,
    ):
        assert [event.event for event in source.iter_sse()] == ["start", "step", "step", "done"]
    assert (tmp_path / "elsewhere" / "sessions" / "header").exists()


def test_the_models_of_bentomls_store_are_served_where_there_is_nothing_else(
    home: Path, tmp_path: Path
) -> None:
    """The checkout, no artifacts/; and by tag."""
    nowhere = str(tmp_path / "nowhere")
    for models, names in [("", ["series-lstm", "sine-cell"]), ("sine-cell:latest", ["sine-cell"])]:
        server = start_server(
            tmp_path, home=home, CAROUSEL_ARTIFACTS=nowhere, CAROUSEL_MODELS=models
        )
        try:
            server.wait_until_it_listens()
            served = httpx.get(server.url + "/readyz").json()["models"]
            assert [name.partition(":")[0] for name in served] == names
        finally:
            server.stop()


def test_torch_is_really_out_of_reach(no_torch: Path) -> None:
    """Or the test above would prove nothing."""
    done = subprocess.run(
        [sys.executable, "-c", "import torch"],
        env={**os.environ, "PYTHONPATH": str(no_torch)},
        capture_output=True,
        text=True,
    )
    assert "torch is not in the serving image" in done.stderr
