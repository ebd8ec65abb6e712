"""Who may import whom: read from the source, over all packages."""

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("models", "export", "service", "benchmarks")

# Of `service`, left never imports right; one place holds modules that may import each other's left.
SERVICE_ORDER: list[set[str]] = [
    {"errors"},
    {"redis_url"},
    {
        "config",
        "cpu",
        "vocabulary",
        "choice",
        "collector",
        "key_ring",
        "logs",
        "metrics",
        "origin",
        "pace",
        "parent",
    },
    {"port"},
    {"wire", "keys", "config.__main__", "tracing"},
    {"pipeline"},
    {"manifest", "reading"},
    {"layout"},
    {"artifact", "pieces"},
    {"bound_graph", "torch_backend"},
    {"onnx_backend", "torchscript_backend", "torch_export_backend"},
    {"runtime"},
    {"self_test"},
    {"model", "check"},
    {"catalog", "feedback"},
    {"shelf"},
    {"session"},
    {"job", "snapshot"},
    {"store.record_bytes"},
    {"store.table"},
    {"store", "batcher"},
    {"store.record_table"},
    {"store.memory", "store.counted", "forecast", "sweeper"},
    {"store.disk"},
    {"store.disk.layout"},
    {"store.disk.mapping", "store.disk.machine"},
    {"store.disk.slots", "store.disk.index"},
    {"store.disk.tenants"},
    {"store.disk.recovery", "store.disk.lock"},
    {"store.disk.directory"},
    {"store.disk.sessions"},
    {"store.disk.table"},
    {"store.disk.store"},
    {"promotion", "store.redis_layout"},
    {"leases", "store.redis_link"},
    {"store.redis"},
    {"store.open"},
    {"homes", "watch", "observer"},
    {"blocks", "batches"},
    {"engine"},
    {"copying"},
    {
        "protocols",
        "protocols.asgi",
        "protocols.frames",
        "protocols.idempotency",
        "protocols.openapi_errors",
    },
    {
        "protocols.exchange",
        "protocols.content_coding",
        "protocols.one_write",
        "protocols.watches",
        "protocols.openapi_form",
        "protocols.openapi_bodies",
        "protocols.seating",
    },
    {"protocols.gathering"},
    {"protocols.lines"},
    {
        "protocols.around",
        "protocols.many",
        "protocols.ndjson",
        "protocols.forecast",
        "protocols.access",
        "protocols.binary",
        "protocols.copies",
        "protocols.openapi_copies",
    },
    {"protocols.v2", "protocols.v2.datatypes"},
    {"protocols.v2.messages", "protocols.v2.parameters"},
    {"protocols.v2.tensor_rows"},
    {"protocols.v2.inference"},
    {"protocols.v2.metadata", "protocols.v2.statistics", "protocols.v2.http_body"},
    {"protocols.v2.http_app", "protocols.openapi_v2"},
    {"protocols.v2.proto", "protocols.v2.proto.pool"},
    {"protocols.v2.proto.model_config_pb2"},
    {"protocols.v2.proto.inference_pb2"},
    {"protocols.v2.rpc_codec", "protocols.v2.rpc_status"},
    {"protocols.v2.rpc_call"},
    {"protocols.v2.rpc_stream"},
    {"protocols.v2.rpc_service"},
    {"protocols.v2.rpc_server"},
    {"protocols.native", "protocols.openapi"},
    {"protocols.front", "protocols.conversation", "protocols.seats", "protocols.uvicorn_sockets"},
    {"protocols.websocket"},
    {"api"},
    # The client: of what serves it imports `errors` alone.
    {"client.errors", "client.patience"},
    {"client.rows", "client.talk"},
    {"client.place", "client.forecasting"},
    {"client.lane"},
    {"client.lanes", "client.ndjson"},
    {"client.message"},
    {"client.channel", "client.sync_links", "client.async_links"},
    {"client.sync_stream", "client.async_stream"},
    {"client.sync", "client.asynchronous"},
    {"client"},
]
EXPORT_ORDER: list[set[str]] = [  # the same of `export`; a package has a place of its own
    {"errors", "precision", "reference", "user_code"},
    {"lowered", "weights"},
    {"source"},
    {"algebra"},
    {"calling"},
    {"streaming"},
    {"graphs"},
    {"onnx_in"},
    {"finding", "lowering", "model_input"},
    {"spread", "running", "driven", "metrics", "target"},
    {"climate", "tolerances"},
    {"cases", "isolation", "gate_errors", "timing", "variants", "placing"},
    {"measured", "scoring"},
    {"parity", "ladder"},
    {"trials", "draft"},
    {"reporting"},
    {"exporter", "publish"},
    {"__main__"},
]
PACKAGE_MAY_IMPORT = {  # of our own packages, beside itself
    "models": set[str](),
    "export": {
        "service.artifact",
        "service.cpu",
        "service.errors",
        "service.layout",
        "service.manifest",
        "service.pipeline",
        "service.runtime",
    },
    "service": set[str](),
    "benchmarks": {"models", "export", "service"},
}
ONLY_IN = {  # third party -> the modules of `service` that may import it
    "torch": {"service.torch_backend"},
    "bentoml": {"service.api"},
    "_bentoml_impl": set[str](),
    "_bentoml_sdk": set[str](),
    "redis": {"service.store.redis_link"},
    "prometheus_client": {"service.metrics"},
    "opentelemetry": {"service.tracing"},
    "structlog": {"service.logs"},
    "grpc": {
        "service.protocols.v2.rpc_call",
        "service.protocols.v2.rpc_server",
        "service.protocols.v2.rpc_service",
        "service.protocols.v2.rpc_status",
        "service.protocols.v2.rpc_stream",
    },
    "grpc_health": {"service.protocols.v2.rpc_server"},
    "grpc_reflection": {"service.protocols.v2.rpc_server"},
    "google": {
        "service.protocols.v2.proto.inference_pb2",
        "service.protocols.v2.proto.model_config_pb2",
        "service.protocols.v2.proto.pool",
        "service.protocols.v2.rpc_call",
        "service.protocols.v2.rpc_server",
        "service.protocols.v2.rpc_service",
    },
    "tritonclient": set[str](),
}
LEAVING_TORCH = {  # how the names of what torch will drop begin -> the modules that may use them
    "torch.jit": {
        "benchmarks.latency.torchscript",
        "export.graphs.torchscript",
        "service.torchscript_backend",
    },
    "torch._C._jit": {"export.graphs.torchscript"},
    "torch.ao": {"export.graphs.torch_int8"},
    "torch.quantization": set[str](),
}


@dataclass(frozen=True)
class Import:
    """One import statement's target."""

    module: str  # where it stands
    target: str
    line: int
    scope: str  # "" at the top of the module, else the function it stands in

    def __str__(self) -> str:
        return f"{self.module}:{self.line} imports {self.target}"


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def read_imports(source: str, module: str) -> Iterator[Import]:
    """Every import in `source`, wherever it stands."""

    def visit(node: ast.AST, scope: str) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                for alias in child.names:
                    yield Import(module, alias.name, child.lineno, scope)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{module}:{child.lineno}: a relative import"
                yield from from_import(child, scope)
            named = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
            inner = f"{scope}.{child.name}".strip(".") if named else scope  # type: ignore[attr-defined]
            yield from visit(child, inner)

    def from_import(node: ast.ImportFrom, scope: str) -> Iterator[Import]:
        base = node.module or ""
        for alias in node.names:
            full = f"{base}.{alias.name}"
            is_module = (ROOT / full.replace(".", "/")).with_suffix(".py").exists()
            yield Import(module, full if is_module else base, node.lineno, scope)

    yield from visit(ast.parse(source), "")


def imports_of(package: str) -> list[Import]:
    return [
        found
        for path in sorted((ROOT / package).rglob("*.py"))
        for found in read_imports(path.read_text(), name_of(path))
    ]


def names_used(source: str) -> Iterator[tuple[str, int]]:
    """Every dotted name that `source` imports or reads, and its line: torch, torch.jit, .."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)
        elif isinstance(node, ast.Attribute):
            parts: list[str] = []
            whole: ast.expr = node
            while isinstance(whole, ast.Attribute):
                parts.append(whole.attr)
                whole = whole.value
            if isinstance(whole, ast.Name):
                yield ".".join([whole.id, *reversed(parts)]), node.lineno


def uses_of_leaving_torch(source: str, module: str) -> list[str]:
    return [
        f"{module}:{line} uses {name}"
        for name, line in names_used(source)
        for part, users in LEAVING_TORCH.items()
        if name.startswith(part) and module not in users
    ]


def is_in(target: str, modules: set[str]) -> bool:
    return any(target == module or target.startswith(module + ".") for module in modules)


def rank(module: str) -> int:
    package, _, short = module.partition(".")
    order = {"service": SERVICE_ORDER, "export": EXPORT_ORDER}[package]
    if package == "export":
        short = short.partition(".")[0]
    for place, members in enumerate(order):
        if short in members:
            return place
    raise AssertionError(f"{module} has no place in the order of {package}: give it one")


def points_right(one: Import) -> bool:
    """A package of `export` may import within itself, which its own order rules."""
    if one.module in PACKAGES:
        return False
    if one.module.startswith("export."):
        inside = one.target.split(".")[1:2] == one.module.split(".")[1:2]
        return not inside and rank(one.target) >= rank(one.module)
    return rank(one.target) >= rank(one.module)


def wrong_arrows(found: list[Import]) -> list[str]:
    """What breaks the rules, in words."""
    wrong = []
    for one in found:
        package, target_package = one.module.partition(".")[0], one.target.partition(".")[0]
        if target_package in PACKAGES and target_package != package:
            if not is_in(one.target, PACKAGE_MAY_IMPORT[package]):
                wrong.append(str(one))
        elif target_package == package in ("service", "export") and points_right(one):
            wrong.append(f"{one}: left never imports right")
        if package == "service" and one.module not in ONLY_IN.get(target_package, {one.module}):
            wrong.append(f"{one}: only {ONLY_IN[target_package] or 'nobody'} may")
        if (
            package == "service"
            and target_package == "torch"
            and not one.scope.endswith("__init__")
        ):
            wrong.append(f"{one}: torch is imported in the constructor only")
    return wrong


@pytest.mark.parametrize("package", PACKAGES)
def test_arrows_between_modules_run_one_way(package: str) -> None:
    """Read from every import statement, also those inside functions."""
    assert wrong_arrows(imports_of(package)) == []


@pytest.mark.parametrize(
    ("module", "statement"),
    [
        ("service.session", "from service.engine import Engine"),
        ("service.batcher", "import service.store"),
        ("service.engine", "import bentoml"),
        ("service.protocols.native", "from service.api import Carousel"),
        ("service.api", "from export import anything"),
        ("service.runtime", "import models.cells"),
        ("service.torch_backend", "import torch"),
        ("service.torchscript_backend", "class B:\n    def __init__(self):\n        import torch"),
        ("service.model", "def load():\n    import torch"),
        ("service.store.memory", "import redis"),
        ("export.exporter", "from service.engine import Engine"),
        ("export.exporter", "import models.cells"),
        ("export.algebra.form", "from export.graphs.scan import write_scan"),
        ("export.parity", "from export.reporting.report import write_report"),
        ("models.train", "from service.artifact import Artifact"),
    ],
)
def test_a_wrong_arrow_is_found(module: str, statement: str) -> None:
    """The test itself can fail."""
    assert wrong_arrows(list(read_imports(statement, module)))


@pytest.mark.parametrize(
    ("module", "statement"),
    [
        ("service.engine", "from service.batcher import Batcher\nimport asyncio"),
        ("service.api", "import bentoml"),
        ("export.exporter", "from service.artifact import Artifact\nimport torch"),
        ("export.graphs.rowwise", "from export.algebra.affine import Affine"),
        ("export.graphs.rowwise", "from export.graphs.graph_builder import GraphBuilder"),
        (
            "service.torch_backend",
            "class B:\n    def __init__(self):\n        import torch",
        ),
    ],
)
def test_a_right_arrow_is_not(module: str, statement: str) -> None:
    """Nor does it find what is not there."""
    assert wrong_arrows(list(read_imports(statement, module))) == []


# What `import service.api` must not bring along: the serving image has none of the first, and each
# of the others is a part of every start and of every worker's memory, for who does not use it.
NOT_AT_IMPORT = (
    *("torch", "onnx", "onnxscript", "matplotlib", "pandas", "scipy", "sklearn"),
    "tritonclient",
    *("opentelemetry.sdk", "opentelemetry.exporter", "redis", "service.store.redis"),
)


def imported_by(statement: str, **settings: str) -> list[str]:
    """The modules of `NOT_AT_IMPORT` that a new process has after `statement`."""
    code = f"import json, sys; {statement}; print(json.dumps(sorted(sys.modules)))"
    environment = {n: v for n, v in os.environ.items() if not n.startswith("CAROUSEL_")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**environment, **settings},
    )
    assert done.returncode == 0, done.stderr
    return [name for name in json.loads(done.stdout) if name in NOT_AT_IMPORT]


def test_the_service_is_imported_without_what_a_server_does_not_need() -> None:
    """All of it, as `bentoml serve` imports it, in the process that starts the workers and in
    each of them."""
    assert imported_by("import service.api") == []


def test_who_asks_for_redis_has_it_at_import() -> None:
    """BentoML may take the project off the path after that, so it would be too late."""
    redis = {"CAROUSEL_STORE": "redis", "CAROUSEL_REDIS_URL": "redis://127.0.0.1:1/0"}
    assert {"redis", "service.store.redis"} <= set(imported_by("import service.api", **redis))


def test_the_client_needs_nothing_of_the_server_but_its_errors() -> None:
    """So that it runs where no model does."""
    imported = {
        one.target
        for one in imports_of("service")
        if one.module.startswith("service.client") and one.target.startswith("service")
    }
    assert {name for name in imported if not name.startswith("service.client")} <= {
        "service",
        "service.errors",
    }


@pytest.mark.parametrize("package", PACKAGES)
def test_what_torch_will_drop_stands_behind_one_module_each(package: str) -> None:
    """TorchScript and torch's quantization, read from the source of every module."""
    found = [
        use
        for path in sorted((ROOT / package).rglob("*.py"))
        for use in uses_of_leaving_torch(path.read_text(), name_of(path))
    ]
    assert found == []


@pytest.mark.parametrize(
    "source",
    [
        "import torch\ntorch.jit.script(1)",
        "import torch.jit",
        "from torch import jit",
        "from torch.jit import script",
        "def f():\n    from torch.ao.quantization import quantize_dynamic",
        "import torch\nx = torch.ao.quantization",
        "import torch\ntorch.quantization.quantize_dynamic(1)",
        "import torch\ntorch._C._jit_clear_class_registry()",
    ],
)
def test_a_use_of_what_torch_will_drop_is_found(source: str) -> None:
    """In any spelling; in its own module it is none."""
    assert uses_of_leaving_torch(source, "export.exporter")
    part = "torch_int8" if "quantization" in source else "torchscript"
    if "torch.quantization" not in source:
        assert not uses_of_leaving_torch(source, f"export.graphs.{part}")
