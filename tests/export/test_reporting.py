"""The report says what was measured, and is a page that can be read."""

import html
import json
import re
import subprocess
from dataclasses import asdict, dataclass, replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from export.cases import Case
from export.climate import Divergence
from export.gate_errors import ROWWISE, STOCK, GateError
from export.isolation import COMPANIES, Found, Isolation
from export.measured import Measured
from export.metrics import Metric
from export.reporting.evidence import NOT_WRITTEN, Evidence
from export.reporting.figures import FLOOR, drift_figure, peaks_of
from export.reporting.markdown import as_markdown
from export.reporting.page import as_page
from export.reporting.record import as_record
from export.reporting.report import write_report
from export.reporting.words import headline, isolation_sentences, outcomes
from export.timing import BATCHES, EAGER, Machine, StepTime, Timing
from service.manifest import (
    File,
    Lowering,
    Manifest,
    Port,
    Ports,
    Provenance,
    StatePort,
    Tolerance,
    Variant,
    VariantName,
)
from service.pipeline import Pipeline

Array = np.ndarray
INF = float("inf")
WHY = "onnx-int8 drifts to 1.3e-02 at step 7 of 3000 (atol 0.01, rtol 0) on case `shock` <b>|</b>"
PHONE, DESKTOP = 390, 1280
FRAME = """<!DOCTYPE html><iframe style="border:0" width="{width}" height="9000" srcdoc="{page}">
</iframe><script>
onload = () => {{
  const view = document.querySelector("iframe").contentWindow, page = view.document;
  const right = e => e.getBoundingClientRect().right;
  const all = [...page.querySelectorAll("body *")].filter(e => !e.closest(".scroll *"));
  document.body.dataset.seen = JSON.stringify({{
    inner: view.innerWidth,
    scroll: page.documentElement.scrollWidth,
    wide: all.filter(e => right(e) > view.innerWidth).map(e => e.outerHTML.slice(0, 99)),
    small: [...page.querySelectorAll("svg text")].map(e => e.getBoundingClientRect().height)
      .filter(height => height < 9),
    plots: page.querySelectorAll("figure svg").length,
    loaded: view.performance.getEntriesByType("resource").map(e => e.name),
  }});
}};
</script>"""


@dataclass(frozen=True)
class Rung:
    """What the ladder of quantization may give."""

    plan: str
    max_error: float
    speedup: float | None
    verdict: str

    def as_json(self) -> dict[str, object]:
        return asdict(self)


def measured(variant: str, name: str, steps: int, size: float, atol: float) -> Measured:
    """A closed loop is judged for 50 steps, and then by where it goes; one case has metrics."""
    rng = np.random.default_rng(len(variant) + steps)
    y = np.sin(np.arange(steps) / 9).astype(np.float32)[None, :, None]
    errors = size * rng.uniform(0.2, 1, steps) * np.linspace(0.3, 1, steps)
    tolerance = Tolerance(atol=atol, rtol=1e-5 if "fp32" in variant else 0.0)
    case = Case(name, y, y, (0,), cycled=True, judged=50 if name == "closed-loop" else None)
    why = "rounding of float32" if "fp32" in variant else "int8: 10% of each output's deviation"
    metrics, divergence = [], None
    if name == "teacher-forced":
        error = 1.5 + size
        metrics = [Metric("RMSE, one step", "°C", 1.5, error, error / 1.5 - 1, 0.05)]
    if name == "closed-loop":
        divergence = Divergence(0.25, 0.5, None)
    share = size / 0.7
    found = Measured(variant, case, errors, errors / atol, tolerance, why, share)
    return replace(found, metrics=tuple(metrics), divergence=divergence)


def isolation(far: float) -> Isolation:
    def of(company: str) -> Found:
        hostile = company in ("1e4", "1e30", "mixed")
        y = far if hostile else far / 100
        return Found(company, 12, 12 if far else 0, y, y)

    return Isolation(tuple(of(company) for company in COMPANIES))


VARIANTS: tuple[VariantName, ...] = (
    "onnx-fp32",
    "onnx-int8-rowwise",
    "torchscript-fp32",
    "torchscript-int8",
)


def manifest() -> Manifest:
    """Of an artifact that has never been: four variants, one that was left out."""
    port = Port(dtype="float32", shape=["B", "T", 1])
    state = StatePort(dtype="float32", shape=["B", 64], name="h", input="h_0", output="h_n")
    return Manifest(
        schema_version=1,
        name="pump-house-7",
        version="0123456789abcdef",
        producer={"python": "3.11.7", "torch": "2.13.0"},
        mode="causal",
        ports=Ports(x=port, y=port, states=[state]),
        pipeline=Pipeline(),
        default_variant="onnx-int8-rowwise",
        variants={
            name: Variant(
                file=f"{name}.bin", sha256="0" * 64, size=20_000, isolated="onnx" in name, parity=[]
            )
            for name in VARIANTS
        },
        golden=File(file="golden.safetensors", sha256="0" * 64, size=1),
        lowering=[
            Lowering(layer="lstm_0", road="lstm", why="64 units, equal to the traced step"),
            Lowering(layer="onnx-int8", road=NOT_WRITTEN, why=WHY),
        ],
        provenance=Provenance(
            module="pumps/of/the/old/house.py:PumpNet",
            call="X, (h, c)=None -> Y, (h, c); X is (batch, time, ...)",
            weights_sha256="1" * 64,
            example_sha256="2" * 64,
            example_steps=2400,
        ),
    )


@pytest.fixture(scope="module")
def evidence() -> Evidence:
    """All that there can be in a report: four cases, a variant that was left out, a ladder."""
    cases = [("teacher-forced", 10_000), ("closed-loop", 2000), ("shock", 3000), ("silence", 3000)]
    sizes = {"onnx-fp32": 4e-7, "onnx-int8-rowwise": 3e-3}
    sizes |= {"torchscript-fp32": 6e-7, "torchscript-int8": 9e-3}
    found = [
        measured(variant, case, steps, size, 1e-5 if size < 1e-5 else 0.01)
        for variant, size in sizes.items()
        for case, steps in cases
    ]
    rejected = [measured("onnx-int8", case, steps, 0.013, 0.01) for case, steps in cases]
    gates = [
        GateError(f"lstm_{cell}", gate, variant, size, 4 * size, 1.0)
        for cell in range(2)
        for gate in "ifgo"
        for variant, size in ((ROWWISE, 1e-3), (STOCK, 3e-3))
    ]
    contestants = [(str(v), "onnx" in v) for v in VARIANTS]
    contestants += [("torchscript-fp32", True), ("torchscript-int8", True), (EAGER, True)]
    steps = [
        StepTime(v, batch, whole, 10.0 * batch, 0.5 + batch, (0.4, 1.6))
        for v, whole in contestants
        for batch in BATCHES
    ]
    machine = Machine("A processor of a rather long name at 2.60 GHz (avx2)", 2, {"numpy": "2"})
    company = {str(v): isolation(0.0 if "onnx" in v else 0.4) for v in VARIANTS}
    company["onnx-int8"] = isolation(INF)
    rungs = [
        Rung("all in int8", 0.013, 1.4, "drifts to 1.3e-02"),
        Rung("the second layer in float", 0.003, None, "taken"),
    ]
    timing = Timing("onnx-fp32", 25, steps, machine)
    return Evidence(manifest(), found, rejected, company, gates, timing, rungs)


@pytest.fixture(scope="module")
def page(evidence: Evidence) -> str:
    return as_page(evidence)


class Reader(HTMLParser):
    """The text of a page by section, its ids, and what its attributes name."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.named: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.text += " "  # a cell ends where the next begins
        for name, value in attributes:
            if name == "id":
                self.ids.append(value or "")
            if name in ("src", "href", "xlink:href", "action", "srcset"):
                self.named.append(value or "")

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_verdict_comes_first(evidence: Evidence, page: str) -> None:
    """One sentence, then what became of every variant, the default first, what is gone last."""
    text = " ".join(Reader(page.partition("<main>")[2]).text.split())
    assert text.startswith(
        "4 of 5 variants compute what was trained, within the stated tolerances, over 10,000 steps "
        "of real input with the state carried; 1 was left out."
    )
    found = outcomes(evidence)
    assert found[0].variant == evidence.manifest.default_variant
    assert (found[-1].variant, found[-1].written, found[-1].facts) == ("onnx-int8", False, (WHY,))
    order = [
        "onnx-int8 ✗ left out " + WHY,
        "Drift",
        "to the task",
        "each gate",
        "Size and speed",
        "Isolation",
    ]
    order += ["ladder", "lowered", "Provenance"]
    places = [text.index(part) for part in order]
    assert places == sorted(places)


def test_one_variant_and_all_variants_are_told_apart(evidence: Evidence) -> None:
    """Grammar of the verdict."""
    every = replace(evidence, manifest=manifest().model_copy(update={"lowering": []}))
    alone = {"onnx-fp32": every.manifest.variants["onnx-fp32"]}
    one = replace(evidence, manifest=every.manifest.model_copy(update={"variants": alone}))
    assert headline(one).startswith("The one variant computes what was trained")
    assert headline(every).startswith("All 4 variants compute what was trained")


def test_what_was_not_measured_is_not_there(evidence: Evidence) -> None:
    """No times, no gates, no ladder: no sections of them, and nothing else breaks."""
    page = as_page(replace(evidence, timing=None, gates=(), ladder=()))
    assert "ladder" not in page
    assert "each gate" not in page
    assert "µs" not in page
    markdown = as_markdown(replace(evidence, timing=None))
    assert "\N{MULTIPLICATION SIGN}" not in markdown
    assert "onnx-fp32's time" not in markdown


def test_the_ladder_shows_every_rung(page: str) -> None:
    """A speed-up of 1.4 is 0.71 of the time."""
    text = " ".join(Reader(page).text.split())
    assert "all in int8 1.3e-02 0.71 \N{MULTIPLICATION SIGN} drifts to 1.3e-02" in text
    assert "the second layer in float 3.0e-03 taken" in text


def test_the_page_names_nothing_outside_itself(page: str) -> None:
    """No address to load from, unique ids, each of them used by this page alone."""
    reader = Reader(page)
    assert all(name.startswith(("#", "data:")) for name in reader.named)
    assert len(reader.ids) == len(set(reader.ids))
    used = set(re.findall(r"url\(#([^)]+)\)", page)) | {n[1:] for n in reader.named if n[:1] == "#"}
    assert used <= set(reader.ids)
    assert "<script" not in page
    assert WHY.replace("<b>|</b>", "&lt;b&gt;|&lt;/b&gt;") in page
    assert not re.findall(r"#0000[0-9a-f]{2}", page)  # a colour that no style sheet knows


def test_the_same_evidence_gives_the_same_bytes(evidence: Evidence, tmp_path: Path) -> None:
    """All three files, and JSON that a strict reader takes."""
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        write_report(tmp_path / folder, evidence)
    names = ["parity.html", "parity.json", "parity.md"]
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == names
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    text = (tmp_path / "a" / "parity.json").read_text()
    record = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert record["isolation"]["onnx-int8"][3]["y"] is None
    assert record["left_out"] == [{"variant": "onnx-int8", "why": WHY}]
    assert len(record["gates"]) == 16
    assert record["timing"]["baseline"] == "onnx-fp32"


def test_times_stand_in_the_record_only_if_they_were_taken(evidence: Evidence) -> None:
    """Else it would change from export to export."""
    assert "timing" not in as_record(replace(evidence, timing=None))


def test_sentences_say_how_far_company_moves_a_row(evidence: Evidence) -> None:
    """In numbers, and what the service does about it."""
    first, *others = isolation_sentences(evidence)
    assert first.startswith("onnx-fp32 and onnx-int8-rowwise: the same bits in each of 84 trials")
    assert any(
        "torchscript-int8, run as one batch: a neighbour that sends 1e4 moves other sessions by "
        "0.4, calm neighbours by 0.004; so the service runs one session a call" in s
        for s in others
    )
    gone = "onnx-int8, run as one batch: a session gets NaN, or its batch is refused"
    (last,) = [s for s in others if s.startswith(gone)]
    assert "the service" not in last  # which has no such variant


def test_bits_that_did_not_move_make_no_stock_variant_isolated(evidence: Evidence) -> None:
    """What the manifest says counts; the sentence does not praise the other."""
    company = {"onnx-fp32": isolation(0.0), "torchscript-int8": isolation(0.0)}
    first, second = isolation_sentences(replace(evidence, isolation=company))
    assert first.startswith("onnx-fp32: the same bits")
    assert second.startswith("torchscript-int8: no bit was seen to move, but it takes one scale")


def test_markdown_is_one_table_that_github_takes(evidence: Evidence) -> None:
    """Every row has as many cells as the head; what would end a cell is escaped."""
    markdown = as_markdown(evidence)
    rows = [line for line in markdown.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + 5
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {9}
    assert "&lt;b>\\|&lt;/b>" in rows[-1]
    assert len([line for line in markdown.splitlines() if line.startswith("- ")]) == 3
    assert "(2,400 steps, cycled)" in markdown
    worst = re.search(r"\| `onnx-int8-rowwise` \|.*\| (\S+) \| 0.01 \| (\S+) \| yes \|", markdown)
    assert worst
    assert float(worst[1]) == pytest.approx(3e-3, rel=0.05)


@pytest.mark.parametrize("steps", [1, 2, 7, 50, 2400, 10_000])
def test_no_peak_is_lost_between_the_steps_that_are_drawn(steps: int) -> None:
    """An error at any one step is drawn at its height, where it was, and the curve ends there."""
    for at in {0, steps // 3, steps // 2, steps - 1}:
        errors = np.full(steps, 1e-6)
        errors[at] = 1.0
        drawn, peaks = peaks_of(errors)
        assert peaks.max() == 1.0
        assert (np.diff(drawn) >= 0).all()
        assert (drawn[0], drawn[-1]) == (1, steps)
        assert drawn[peaks.argmax()] <= at + 1
        assert len(drawn) <= 102


def test_a_curve_of_zeros_or_without_numbers_can_be_drawn() -> None:
    """Zero lies on the floor, NaN is a gap."""
    zero = measured("onnx-fp32", "case", 30, 0.0, 1e-5)
    broken = replace(zero, variant="onnx-int8", errors=np.full(30, np.nan))
    svg = drift_figure([zero, broken], "a title")
    assert "var(--variant-0)" in svg
    assert f"{FLOOR:.0e}" == "1e-09"
    assert "NaN" not in svg
    assert "nan" not in svg


@pytest.mark.needs("chromium")
@pytest.mark.parametrize("width", [PHONE, DESKTOP])
def test_a_browser_shows_it_without_a_sideways_scroll(
    width: int, page: str, tmp_path: Path
) -> None:
    """Nothing reaches over the edge but tables in their own scroll, nothing is loaded or wrong.

    It stands in a frame, since a browser's window is never as narrow as a phone's.
    """
    frame = tmp_path / "frame.html"
    frame.write_text(FRAME.format(width=width, page=html.escape(page)), encoding="utf-8")
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1400,900", "--dump-dom"]
    done = subprocess.run([*command, frame.as_uri()], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found = re.search(r'data-seen="([^"]*)"', done.stdout)
    assert found, done.stderr
    assert json.loads(html.unescape(found[1])) == {
        "inner": width,
        "scroll": width,
        "wide": [],
        "small": [],
        "plots": 5,
        "loaded": [],
    }
    assert [line for line in done.stderr.splitlines() if "CONSOLE" in line] == []
