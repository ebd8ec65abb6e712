"""docs/exporting.md: its commands run, its notations and pipelines are valid, its errors exist."""

import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from export.__main__ import main
from export.calling.call import parse_call
from service.pipeline import Pipeline
from tests.e2e.conftest import serving

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "exporting.md").read_text()
TICKED = re.compile(r"`([^`]+)`")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def section(title: str) -> str:
    return PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0]


def rows(title: str) -> list[list[str]]:
    """The cells of the rows of the section's table, without its head."""
    lines = [line for line in section(title).splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]


def texts_of(path: Path) -> Iterator[str]:
    """Every string in a source file; what an f-string fills in is a line of its own."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.JoinedStr):
            parts = [str(v.value) if isinstance(v, ast.Constant) else "\n" for v in node.values]
            yield "".join(parts)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


@pytest.fixture(scope="module")
def texts() -> list[str]:
    files = [*(ROOT / "export").rglob("*.py"), *(ROOT / "service").rglob("*.py")]
    return [text for path in files for text in texts_of(path)]


@pytest.mark.needs("curl")
def test_the_five_minutes_run_as_they_stand(tmp_path: Path) -> None:
    """Trained, exported, served and asked: two rows of x give two of y."""
    (program,) = blocks("python")
    commands = [line[2:] for line in blocks("console")[0].splitlines()]
    (tmp_path / "mynet.py").write_text(program)
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "BENTOML_HOME": str(tmp_path / "bentoml"),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    train, export, serve, ask = commands
    for command in (train, export):
        subprocess.run(["bash", "-ec", command], cwd=tmp_path, env=environment, check=True)
    assert serve == "bentoml serve"
    with serving(tmp_path, CAROUSEL_ARTIFACTS=str(tmp_path / "artifacts")) as server:
        local = ask.replace("localhost:3000", f"127.0.0.1:{server.port}")
        done = subprocess.run(["bash", "-ec", local], capture_output=True, check=True)
    reply = json.loads(done.stdout)
    assert (reply["model"], reply["step"], len(reply["y"])) == ("pump", 2, 2)


@pytest.mark.parametrize("row", rows("How it is called"), ids=lambda row: row[-1])
def test_every_notation_of_the_table_parses(row: list[str]) -> None:
    """As it stands in the last column."""
    (notation,) = TICKED.findall(row[-1])
    call = parse_call(notation)
    assert {"x", "X"} & set(re.findall(r"\w+", notation.split("->")[0]))
    assert call.text == notation.split(";")[0].strip()


@pytest.mark.parametrize("text", blocks("json"))
def test_every_pipeline_is_valid(text: str) -> None:
    """And says nothing that is left out when it is read."""
    pipeline = Pipeline.model_validate_json(text)
    assert pipeline.model_dump(exclude_unset=True).keys() == json.loads(text).keys()


@pytest.mark.parametrize("row", rows("Errors"), ids=lambda row: row[0])
def test_every_quoted_error_is_in_the_source(row: list[str], texts: list[str]) -> None:
    """Its words, where `..` stands for what is filled in, in one text and in their order."""
    (quoted,) = TICKED.findall(row[0]) or [row[0]]
    parts = [re.escape(part.strip()) for part in quoted.split("..")]
    pattern = re.compile(".*".join(parts), re.DOTALL)
    assert any(pattern.search(text) for text in texts), quoted


def test_every_option_on_the_page_exists(capsys: pytest.CaptureFixture[str]) -> None:
    """And --help leads here."""
    with pytest.raises(SystemExit):
        main(["--help"])
    printed = capsys.readouterr().out
    known = set(re.findall(r"--[a-z][a-z-]+", printed))
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", PAGE)) <= known
    assert "docs/exporting.md" in printed
    assert max(len(line) for line in printed.splitlines()) <= 80


def test_every_link_leads_somewhere() -> None:
    """Files that the page points to are in the checkout."""
    for target in re.findall(r"\]\(([^)#:]+)\)", PAGE):
        assert (ROOT / "docs" / target).exists(), target
