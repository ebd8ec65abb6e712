"""An ONNX file that somebody else exported becomes an artifact."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnxruntime.quantization import quantize_dynamic

from export.__main__ import main
from export.errors import CallError, CausalityError, ExportError, SourceError
from export.exporter import Exported
from export.onnx_in.source import load_onnx_source
from service.runtime import Runtime
from tests.export import onnx_files as files
from tests.export.onnx_files import HIDDEN, INPUTS, Owner
from tests.export.short import export

Array = np.ndarray
STEPS = 520
FLOAT_ATOL, INT8_ATOL = 1e-5, 0.05
INT8 = ("onnx-int8", "onnx-int8-rowwise")
LSTM = (["x", "h0", "c0"], ["y", "hn", "cn"])
FREE = {"x": {0: "b", 1: "t"}, "h0": {1: "b"}, "c0": {1: "b"}}
FREE_DYNAMO = {"x": {0: "b", 1: "t"}, "h": {1: "b"}, "c": {1: "b"}}

LEAST_SPREAD = 1.0  # untrained: after a shock their y is far from where it ever was


def zeros(*shape: int, dtype: str = "float32") -> Array:
    return np.zeros(shape, dtype)


def h_and_c(*shape: int, names: str = "h0 c0 hn cn") -> dict[str, tuple[str, Array]]:
    h, c, new_h, new_c = names.split()
    return {h: (new_h, zeros(*shape)), c: (new_c, zeros(*shape))}


def arguments(batch: int, steps: int, layers: int = 2) -> tuple[torch.Tensor, ...]:
    state = torch.zeros(layers, batch, HIDDEN)
    return torch.randn(batch, steps, INPUTS), state, state.clone()


def batch_first(path: Path) -> Owner:
    """torch's old exporter, batch and time free."""
    files.export_torch(path, files.Predictor(), arguments(2, 4), LSTM, FREE)
    return Owner(path, lambda x, s: {"x": x[None], **s}, h_and_c(2, 1, HIDDEN), "y", 1)


def time_first(path: Path) -> Owner:
    """x (T, B, I)."""
    module = files.Predictor(batch_first=False)
    axes = {"x": {0: "t", 1: "b"}, "h0": {1: "b"}, "c0": {1: "b"}}
    x, h, c = arguments(2, 4)
    files.export_torch(path, module, (x.transpose(0, 1), h, c), LSTM, axes)
    return Owner(path, lambda x, s: {"x": x[:, None], **s}, h_and_c(2, 1, HIDDEN), "y", 0)


def dynamo(path: Path) -> Owner:
    """torch's exporter of today, its outputs named by itself, batch free and 4 steps fixed."""
    axes = {name: {k: n for k, n in a.items() if n == "b"} for name, a in FREE_DYNAMO.items()}
    files.export_torch(path, files.Predictor(), arguments(2, 4), dynamic=axes, dynamo=True)
    names = [value.name for value in onnx.load(path).graph.output]
    states = h_and_c(2, 1, HIDDEN, names=f"h c {names[1]} {names[2]}")
    return Owner(path, lambda x, s: {"x": x[None], **s}, states, names[0], 1, steps=4)


def fixed(path: Path, dynamo: bool = False) -> Owner:
    """No axis is free: one row, four steps."""
    files.export_torch(path, files.Predictor(), arguments(1, 4), LSTM, dynamo=dynamo)
    return Owner(path, lambda x, s: {"x": x[None], **s}, h_and_c(2, 1, HIDDEN), "y", 1, steps=4)


def fixed_dynamo(path: Path) -> Owner:
    """The same by torch's exporter of today: both numbers are in the shapes of Reshape, too."""
    return fixed(path, dynamo=True)


def fixed_step(path: Path) -> Owner:
    """One row, one step, one layer: which axis of x is the batch cannot be seen."""
    module = files.Predictor(layers=1)
    files.export_torch(path, module, arguments(1, 1, layers=1), LSTM)
    return Owner(path, lambda x, s: {"x": x[None], **s}, h_and_c(1, 1, HIDDEN), "y", 1, steps=1)


def fixed_rows(path: Path) -> Owner:
    """A batch of four, any number of steps."""
    files.export_torch(path, files.Predictor(), arguments(4, 4), LSTM, {"x": {1: "t"}})
    return Owner(
        path,
        lambda x, s: {"x": np.repeat(x[None], 4, axis=0), **s},
        h_and_c(2, 4, HIDDEN),
        "y",
        1,
        take=lambda y: y[2:3],
    )


def old_opset(path: Path) -> Owner:
    """Opset 9, where axes are attributes."""
    files.export_torch(path, files.Predictor(), arguments(2, 4), LSTM, FREE, opset=9)
    return Owner(path, lambda x, s: {"x": x[None], **s}, h_and_c(2, 1, HIDDEN), "y", 1)


def new_opset(path: Path) -> Owner:
    """Opset 23, which is newer than the graphs that Carousel writes."""
    module = files.Predictor()
    files.export_torch(path, module, arguments(1, 4), LSTM, dynamo=True, opset=23)
    return Owner(path, lambda x, s: {"x": x[None], **s}, h_and_c(2, 1, HIDDEN), "y", 1, steps=4)


def scripted_loop(path: Path) -> Owner:
    """A time loop as a Loop node that fills a sequence."""
    inputs = torch.randn(2, 4, INPUTS), torch.zeros(2, HIDDEN), torch.zeros(2, HIDDEN)
    free = {"x": {0: "b", 1: "t"}, "h0": {0: "b"}, "c0": {0: "b"}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated, as is the file's exporter
        module = torch.jit.script(files.Loop().eval())
    files.export_torch(path, module, inputs, LSTM, free)
    return Owner(path, lambda x, s: {"x": x[None], **s}, h_and_c(1, HIDDEN), "y", 1)


def last_of_four(path: Path) -> Owner:
    """One row, four steps, y of the last of them."""
    names = (["x", "h"], ["y", "hn"])
    inputs = torch.randn(1, 4, INPUTS), torch.zeros(1, 1, HIDDEN)
    files.export_torch(path, files.LastOnly(), inputs, names)
    states = {"h": ("hn", zeros(1, 1, HIDDEN))}
    return Owner(path, lambda x, s: {"x": x[None], **s}, states, "y", None, steps=4)


def cell(path: Path) -> Owner:
    """A cell of plain operators, one step a call, states of two axes."""
    names = (["x", "h", "c"], ["y", "new_h", "new_c"])
    inputs = torch.randn(2, INPUTS), torch.zeros(2, HIDDEN), torch.zeros(2, HIDDEN)
    free = {name: {0: "b"} for name in names[0]}
    files.export_torch(path, files.Cell(), inputs, names, free)
    states = h_and_c(1, HIDDEN, names="h c new_h new_c")
    return Owner(path, lambda x, s: {"x": x, **s}, states, "y", 0, steps=1)


def packed(path: Path) -> Owner:
    """One state for h and c, (2, B, H), and a scalar rate."""
    files.write_packed(path)
    states = {"state": ("stateN", zeros(2, 1, HIDDEN))}
    rate = np.array(16000, np.int64)
    return Owner(path, lambda x, s: {"input": x, "sr": rate, **s}, states, "output", 0, steps=1)


def gru(path: Path, linear_before_reset: int) -> Owner:
    files.write_gru(path, linear_before_reset)
    states = {"h0": ("hn", zeros(1, 1, HIDDEN))}
    return Owner(path, lambda x, s: {"x": x[:, None], **s}, states, "y", 0)


def gru_reset_before(path: Path) -> Owner:
    """A GRU node, the reset before the matrix product."""
    return gru(path, 0)


def gru_reset_after(path: Path) -> Owner:
    """A GRU node, the reset after it."""
    return gru(path, 1)


def last_only(path: Path) -> Owner:
    """A sequence in, y of its last step out."""
    names = (["x", "h"], ["y", "h_out"])
    inputs = torch.randn(2, 4, INPUTS), torch.zeros(1, 2, HIDDEN)
    free = {"x": {0: "b", 1: "t"}, "h": {1: "b"}}
    files.export_torch(path, files.LastOnly(), inputs, names, free)
    states = {"h": ("h_out", zeros(1, 1, HIDDEN))}
    return Owner(path, lambda x, s: {"x": x[None], **s}, states, "y", None, steps=1)


def tokens(path: Path) -> Owner:
    """Token ids in."""
    names = (["x", "h"], ["y", "hn"])
    inputs = torch.zeros(2, 4, dtype=torch.int64), torch.zeros(1, 2, HIDDEN)
    files.export_torch(path, files.Tokens(), inputs, names, {"x": {0: "b", 1: "t"}, "h": {1: "b"}})
    states = {"h": ("hn", zeros(1, 1, HIDDEN))}
    return Owner(path, lambda x, s: {"x": x[None], **s}, states, "y", 1)


def doubles(path: Path) -> Owner:
    """float64 throughout."""
    files.write_elman(path, "float64")
    states = {"h_in": ("h_out", zeros(1, HIDDEN, dtype="float64"))}
    return Owner(path, lambda x, s: {"x": x.astype("f8"), **s}, states, "y", 0, steps=1)


def one_row(path: Path) -> Owner:
    """A batch of one that cannot be freed: the row is flattened away."""
    files.write_flat(path)
    states = {"h": ("h_out", zeros(HIDDEN))}
    return Owner(path, lambda x, s: {"x": x[0], **s}, states, "y", None, steps=1)


@dataclass(frozen=True)
class Case:
    build: Callable[[Path], Owner]
    call: str | None = None
    ids: int = 0
    int8: tuple[str, ...] = INT8
    says: str = "the file's own operators"
    every: int = 1  # the owner gets y of each so many steps


CASES = [
    Case(batch_first),
    Case(time_first),
    Case(dynamo),
    Case(fixed, says="its batch of 1 made free"),
    Case(fixed_dynamo, says="its batch of 1 made free"),
    Case(fixed_step, says="its batch of 1 made free"),
    Case(fixed_rows, says="its batch of 4 made free"),
    Case(old_opset),
    Case(new_opset, says="its batch of 1 made free"),
    Case(scripted_loop),
    Case(last_of_four, says="its batch of 1 made free", every=4),
    Case(cell),
    Case(packed, call="x, state, 16000 -> y, state"),
    Case(packed, call="x, state, sr=16000 -> y, state"),
    Case(gru_reset_before),
    Case(gru_reset_after),
    Case(last_only),
    Case(tokens, ids=11),
    Case(doubles),
    Case(one_row, int8=("onnx-int8",), says="row by row"),
]


def input_of(case: Case) -> Array:
    rng = np.random.default_rng(0)
    if case.ids:
        return rng.integers(0, case.ids, STEPS)
    return rng.standard_normal((STEPS, INPUTS)).astype(np.float32)


def export_file(path: Path, example: Array, tmp_path: Path, call: str | None = None) -> Exported:
    np.save(tmp_path / "example.npy", example)
    source = load_onnx_source(path, tmp_path / "example.npy")
    return export(source, "theirs", tmp_path / "out", notation=call)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.build.__name__)
def test_an_artifact_computes_what_its_owner_computes(case: Case, tmp_path: Path) -> None:
    """520 steps in random chunks, two rows, against the file as its owner runs it; each variant."""
    torch.manual_seed(0)
    owner = case.build(tmp_path / "model.onnx")
    x = input_of(case)
    artifact = export_file(owner.path, x, tmp_path, case.call).artifact
    manifest = artifact.manifest
    assert tuple(manifest.variants) == ("onnx-fp32", *case.int8)
    assert case.says in manifest.lowering[0].why
    rows = np.stack([x, x[::-1]])
    wanted = np.stack([owner.run(row) for row in rows])
    for variant in manifest.variants:
        y = run_in_chunks(Runtime(artifact, variant), rows, artifact.initial)
        y = y[:, case.every - 1 :: case.every]
        atol = FLOAT_ATOL if variant == "onnx-fp32" else INT8_ATOL
        np.testing.assert_allclose(y.reshape(wanted.shape), wanted, atol=atol, rtol=atol)
    assert float(np.abs(wanted).std()) > 10 * FLOAT_ATOL  # a constant y would prove nothing


def run_in_chunks(runtime: Runtime, x: Array, initial: dict[str, Array]) -> Array:
    rng = np.random.default_rng(1)
    state = {name: np.repeat(value, len(x), axis=0) for name, value in initial.items()}
    ys, at = [], 0
    while at < x.shape[1]:
        size = int(rng.integers(1, 40))
        y, state = runtime.run(np.ascontiguousarray(x[:, at : at + size]), state)
        ys.append(y)
        at += size
    return np.concatenate(ys, axis=1)


def refuse(
    path: Path, tmp_path: Path, match: str, kind: type[ExportError], call: str | None = None
) -> None:
    example = np.random.default_rng(0).standard_normal((STEPS, INPUTS)).astype(np.float32)
    with pytest.raises(kind, match=match):
        export_file(path, example, tmp_path, call)
    assert not (tmp_path / "out").exists() or not [*(tmp_path / "out").rglob("manifest.json")]


def test_a_bidirectional_file_is_refused(tmp_path: Path) -> None:
    """Its chunks differ from the whole; the error names the node."""
    path = tmp_path / "model.onnx"
    files.export_torch(path, files.Bidirectional(), arguments(2, 4), LSTM, FREE)
    refuse(path, tmp_path, r"\(LSTM\) is bidirectional", CausalityError)


def test_a_file_that_is_quantized_already_is_refused(tmp_path: Path) -> None:
    """Dynamic scales look at the whole chunk; the error names the operator and the way out."""
    owner = batch_first(tmp_path / "float.onnx")
    path = tmp_path / "model.onnx"
    quantize_dynamic(owner.path, path, op_types_to_quantize=["LSTM"])
    refuse(path, tmp_path, r"\(DynamicQuantizeLSTM\).*give the float file", CausalityError)


def test_a_file_without_states_is_refused(tmp_path: Path) -> None:
    """An output that has no input's shape cannot be carried; the error says what to do."""
    path = tmp_path / "model.onnx"
    head = torch.nn.Linear(INPUTS, 2)
    files.export_torch(path, head, (torch.randn(1, INPUTS),), (["x"], ["y"]), {"x": {0: "b"}})
    refuse(path, tmp_path, "has no state.*Export the module itself", CallError)


def test_sixteen_bit_floats_are_refused(tmp_path: Path) -> None:
    """The error names a value and says what to export."""
    path = files.write_elman(tmp_path / "model.onnx", "float16")
    refuse(path, tmp_path, "16-bit floats.*Export the model in float32", SourceError)


def test_states_that_change_their_shape_are_refused(tmp_path: Path) -> None:
    """In as (n, 16), out as (n, 8): both are shown."""
    path = files.write_elman(tmp_path / "model.onnx", out=8)
    told = r"`h_in` float32 \(n, 16\) and comes out as `h_out` float32 \(n, 8\)"
    refuse(path, tmp_path, told, CallError, "x, h -> y, h")
    refuse(path, tmp_path, "has no state", CallError)


def test_states_that_cannot_be_told_apart_are_an_error_with_the_ways(tmp_path: Path) -> None:
    """One step, two states of one shape, names that say nothing: --call must say it."""
    path = tmp_path / "model.onnx"
    names = (["x", "a", "b"], ["p", "q", "r"])
    inputs = torch.randn(2, INPUTS), torch.zeros(2, HIDDEN), torch.zeros(2, HIDDEN)
    free = {name: {0: "n"} for name in names[0]}
    files.export_torch(path, files.Cell(), inputs, names, free)
    told = r'--call "x, a, b -> y, a, b"\n  --call "x, a, b -> y, b, a"'
    refuse(path, tmp_path, told, CallError)


def test_swapped_states_are_not_believed(tmp_path: Path) -> None:
    """--call that takes h for c: the file over the whole sequence gives another y."""
    owner = batch_first(tmp_path / "model.onnx")
    refuse(owner.path, tmp_path, "takes one state", CausalityError, "x, h, c -> y, c, h")


def test_names_out_of_their_place_are_an_error(tmp_path: Path) -> None:
    """`c0` where the file has `h0`, and not all names the file's own."""
    owner = batch_first(tmp_path / "model.onnx")
    call = "x, c0, h -> y, c0, h"
    refuse(owner.path, tmp_path, "`c0` at place 2, where the file has `h0`", CallError, call)


def test_an_input_of_which_nothing_is_said_is_an_error(tmp_path: Path) -> None:
    """The rate of a packed file: give it a value."""
    files.write_packed(tmp_path / "model.onnx")
    told = r"nothing of the input `sr` int64 \(\).*sr=16000"
    refuse(tmp_path / "model.onnx", tmp_path, told, CallError, "x, state -> y, state")
    refuse(tmp_path / "model.onnx", tmp_path, "a number for an input", CallError)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no model", b"\x08\x07"])
def test_what_is_no_onnx_file_is_refused(content: bytes, tmp_path: Path) -> None:
    """Empty, a zip, a truncated model."""
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    refuse(path, tmp_path, "is not (an ONNX file|a valid ONNX model)", SourceError)


def test_custom_operators_are_not_loaded(tmp_path: Path) -> None:
    """A node of a domain that ONNX Runtime does not have."""
    path = files.write_elman(tmp_path / "model.onnx")
    model = onnx.load(path)
    model.graph.node[3].domain = "com.example"
    model.opset_import.append(onnx.helper.make_opsetid("com.example", 1))
    onnx.save(model, path)
    refuse(path, tmp_path, "does not load in ONNX Runtime.*not loaded", SourceError)


def test_weights_beside_the_file_count_in_its_hash(tmp_path: Path) -> None:
    """External data is read; another weight there is another artifact; a missing file is named."""
    path = files.write_elman(tmp_path / "model.onnx")
    model = onnx.load(path)
    onnx.save(model, path, save_as_external_data=True, location="w.bin", size_threshold=0)
    np.save(tmp_path / "example.npy", np.ones((STEPS, INPUTS), np.float32))
    first = load_onnx_source(path, tmp_path / "example.npy")
    data = bytearray((tmp_path / "w.bin").read_bytes())
    data[3] ^= 1
    (tmp_path / "w.bin").write_bytes(bytes(data))
    second = load_onnx_source(path, tmp_path / "example.npy")
    assert first.weights_sha256 != second.weights_sha256
    (tmp_path / "w.bin").unlink()
    with pytest.raises(SourceError, match=r"w\.bin"):
        load_onnx_source(path, tmp_path / "example.npy")


def test_the_command_takes_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No --weights; with it, or without it for a module, the error says so."""
    path = str(files.write_elman(tmp_path / "model.onnx"))
    example = str(tmp_path / "example.npy")
    np.save(example, np.random.default_rng(0).standard_normal((STEPS, INPUTS)).astype("f4"))
    rest = ["--example", example, "--name", "n", "--out", str(tmp_path / "out"), "--no-store"]
    assert main([path, *rest]) == 0
    assert "onnx-int8-rowwise" in capsys.readouterr().out
    assert main([path, "--weights", path, *rest]) == 1
    assert "has its weights inside" in capsys.readouterr().err
