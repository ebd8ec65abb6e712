"""The files of deploy/: they parse, and what they say of the service is true of it."""

import asyncio
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.config import PREFIX, Config, load_config
from service.protocols.openapi import native_paths
from service.store.redis import RedisStore
from service.store.redis_link import Link
from tests.service.redis_servers import one_server

ROOT = Path(__file__).parents[1]
DEPLOY, README = ROOT / "deploy", ROOT / "README.md"
OF_BENTOML = {"/livez", "/healthz"}  # routes that are not ours; e2e tests ask /livez
STICKY = re.compile(r"cookie|stick|hash|ClientIP|affinity: *C|balance (?!roundrobin)", re.I)


def manifests() -> dict[tuple[str, str], Any]:
    """(kind, name) -> the manifest, of every file that the kustomization names."""
    folder = DEPLOY / "kubernetes"
    names = yaml.safe_load((folder / "kustomization.yaml").read_text())["resources"]
    found = {}
    for name in names:
        for one in yaml.safe_load_all((folder / name).read_text()):
            found[one["kind"], one["metadata"]["name"]] = one
    return found


def service_container() -> Any:
    pod = manifests()["Deployment", "carousel"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    return container


def compose() -> Any:
    return yaml.safe_load((DEPLOY / "compose.yaml").read_text())


def environments() -> Iterator[dict[str, str]]:
    yield {one["name"]: one["value"] for one in service_container()["env"]}
    yield compose()["services"]["carousel"]["environment"]
    (line,) = re.findall(r"^\$ (CAROUSEL_STORE=redis .*) make serve$", README.read_text(), re.M)
    yield dict(part.split("=", 1) for part in line.split())


@pytest.mark.parametrize(
    "environment", list(environments()), ids=["kubernetes", "compose", "readme"]
)
def test_the_settings_are_the_services_own(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All are known, and the service starts with them, on Redis."""
    for name in [name for name in os.environ if name.startswith(PREFIX)]:
        monkeypatch.delenv(name)
    assert {name.removeprefix(PREFIX).lower() for name in environment} <= set(Config.model_fields)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert load_config().store == "redis"


def test_the_redis_that_the_services_are_told_of_is_there() -> None:
    """By its name and port."""
    kubernetes, composed, _ = environments()
    valkey = manifests()["Service", "valkey"]
    (port,) = valkey["spec"]["ports"]
    expected = f"redis://{valkey['metadata']['name']}:{port['port']}/0"
    assert kubernetes["CAROUSEL_REDIS_URL"] == composed["CAROUSEL_REDIS_URL"] == expected
    assert "valkey" in compose()["services"]


def test_probes_ask_routes_that_exist() -> None:
    """Readiness asks /readyz; liveness does not, or a Redis that is away would restart all."""
    container = service_container()
    paths = {
        name: container[f"{name}Probe"]["httpGet"]["path"]
        for name in ("startup", "readiness", "liveness")
    }
    assert paths == {"startup": "/livez", "readiness": "/readyz", "liveness": "/livez"}
    assert set(paths.values()) <= set(native_paths()) | OF_BENTOML
    assert all(container[f"{name}Probe"]["httpGet"]["port"] == "http" for name in paths)


def test_both_ports_lead_to_where_the_service_listens() -> None:
    """HTTP's, which is BentoML's own default, and gRPC's; through each proxy and Service."""
    expected = {"http": 3000, "grpc": Config.model_fields["grpc_port"].default}
    container = service_container()
    assert {one["name"]: one["containerPort"] for one in container["ports"]} == expected
    assert "CAROUSEL_GRPC_PORT" not in {one["name"] for one in container["env"]}
    ports = manifests()["Service", "carousel"]["spec"]["ports"]
    assert {one["name"]: one["targetPort"] for one in ports} == {one: one for one in expected}
    published = compose()["services"]["proxy"]["ports"]
    assert published == [f"{port}:{port}" for port in expected.values()]
    proxy = (DEPLOY / "haproxy.cfg").read_text()
    for port in expected.values():
        assert re.search(rf"^ +bind :{port}\b", proxy, re.M)
        assert re.search(rf"^ +server-template carousel 1-20 carousel:{port} ", proxy, re.M)


def test_what_is_accepted_is_answered_before_a_pod_ends() -> None:
    """It leaves the balancers first, and has time to drain after."""
    pod = manifests()["Deployment", "carousel"]["spec"]["template"]["spec"]
    _, leaves_s = service_container()["lifecycle"]["preStop"]["exec"]["command"]
    assert pod["terminationGracePeriodSeconds"] >= int(leaves_s) + 30
    assert manifests()["PodDisruptionBudget", "carousel"]["spec"]["maxUnavailable"] == 1


def test_manifests_that_name_each_other_agree() -> None:
    """Selectors, the autoscaler's target, volumes."""
    found = manifests()
    for name, kind in (("carousel", "Deployment"), ("valkey", "StatefulSet")):
        template = found[kind, name]["spec"]["template"]
        labels = template["metadata"]["labels"]
        assert found[kind, name]["spec"]["selector"]["matchLabels"] == labels
        assert found["Service", name]["spec"]["selector"] == labels
        volumes = {one["name"] for one in template["spec"].get("volumes", [])}
        volumes |= {
            one["metadata"]["name"]
            for one in found[kind, name]["spec"].get("volumeClaimTemplates", [])
        }
        (container,) = template["spec"]["containers"]
        assert {one["name"] for one in container["volumeMounts"]} == volumes
    scaler = found["HorizontalPodAutoscaler", "carousel"]["spec"]
    assert scaler["scaleTargetRef"]["name"] == "carousel"
    assert "replicas" not in found["Deployment", "carousel"]["spec"]
    budget = found["PodDisruptionBudget", "carousel"]["spec"]["selector"]["matchLabels"]
    assert budget == found["Service", "carousel"]["spec"]["selector"]


def test_nothing_sticks_to_a_session() -> None:
    """In no file; the test knows what sticking looks like."""
    for path in DEPLOY.rglob("*.*"):
        code = "\n".join(line.partition("#")[0] for line in path.read_text().splitlines())
        assert not STICKY.search(code), path
    for sticky in ("sessionAffinity: ClientIP", "balance source", "cookie SERVERID", "ip_hash;"):
        assert STICKY.search(sticky)


def valkey_settings() -> dict[str, str]:
    text = (DEPLOY / "kubernetes" / "valkey.conf").read_text()
    lines = [line for line in text.splitlines() if line[:1].isalpha()]
    return {name: value for name, value in (line.split(maxsplit=1) for line in lines)}


def test_both_deployments_give_valkey_the_one_file() -> None:
    """And a volume where it says that it writes."""
    volumes = [one.split(":")[:2] for one in compose()["services"]["valkey"]["volumes"]]
    for source, target in volumes:
        assert source == "sessions" or (DEPLOY / source).is_file()
        assert target in (valkey_settings()["dir"], "/etc/valkey.conf")
    container = manifests()["StatefulSet", "valkey"]["spec"]["template"]["spec"]["containers"][0]
    mounts = {one["mountPath"] for one in container["volumeMounts"]}
    assert mounts == {valkey_settings()["dir"], "/etc/valkey"}


@pytest.mark.needs("redis-server")
def test_a_server_set_up_so_keeps_what_it_acknowledges(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A real one; the store has nothing to warn of but what the file itself says."""
    settings = {name: value for name, value in valkey_settings().items() if name != "dir"}

    async def connect(url: str) -> None:
        store = RedisStore(Link(url), 10, 60)
        await store.count()
        await store.close()

    options = [part for name, value in settings.items() for part in (f"--{name}", value)]
    with one_server(tmp_path, *options) as server:
        asyncio.run(connect(server.url))
    (line,) = [one.getMessage() for one in caplog.records if one.levelname == "WARNING"]
    assert line.endswith("`appendfsync everysec`: a power cut there loses the last two seconds")


@pytest.mark.needs("haproxy")
def test_haproxy_takes_its_configuration() -> None:
    """As `haproxy -c` says."""
    done = subprocess.run(
        ["haproxy", "-c", "-f", str(DEPLOY / "haproxy.cfg")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
