"""What the operator may set, and what stops the start."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from service.config import Config, load_config
from service.config.__main__ import main
from service.config.__main__ import settings as all_settings
from service.errors import SettingsError


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for field in Config.model_fields:
        monkeypatch.delenv(f"CAROUSEL_{field.upper()}", raising=False)


def test_the_defaults_serve_what_export_wrote() -> None:
    """One worker, the store on disk, every model under artifacts/."""
    config = load_config()
    assert config.artifacts == Path("artifacts")
    assert (config.models, config.variant, config.default_model) == ((), None, None)
    assert (config.store, config.workers, config.threads) == ("disk", 1, 1)
    assert (config.store_path, config.durability) == (Path("sessions"), "process")
    assert (config.max_batch, config.asked_batch) == (256, None)
    assert (config.max_steps_per_request, config.idle_timeout_s) == (16_384, 3_600.0)


def test_settings_are_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A list is written with commas; an empty value is no value."""
    monkeypatch.setenv("CAROUSEL_MODELS", "artifacts/a/1, sine-cell:latest,")
    monkeypatch.setenv("CAROUSEL_MAX_BATCH", "32")
    monkeypatch.setenv("CAROUSEL_IDLE_TIMEOUT_S", "0.5")
    monkeypatch.setenv("CAROUSEL_VARIANT", "")
    config = load_config()
    assert config.models == ("artifacts/a/1", "sine-cell:latest")
    assert (config.max_batch, config.idle_timeout_s, config.variant) == (32, 0.5, None)
    assert config.asked_batch == 32


def test_without_keys_the_service_is_for_this_machine_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Unless the operator says that anybody may ask; with keys, both cannot be meant."""
    assert load_config().is_loopback_only
    monkeypatch.setenv("CAROUSEL_ALLOW_ANONYMOUS", "true")
    assert not load_config().is_loopback_only
    monkeypatch.setenv("CAROUSEL_API_KEYS_FILE", "keys.toml")
    with pytest.raises(SettingsError, match="ALLOW_ANONYMOUS=true and API keys contradict"):
        load_config()
    monkeypatch.delenv("CAROUSEL_ALLOW_ANONYMOUS")
    assert not load_config().is_loopback_only


def test_of_several_tenants_none_gets_the_whole_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    """A quarter, unless it is set; where there are no tenants, all of it."""
    assert load_config().tenant_queue == 4096
    monkeypatch.setenv("CAROUSEL_API_KEYS", "lines of keys")
    assert load_config().tenant_queue == 1024
    monkeypatch.setenv("CAROUSEL_MAX_QUEUE", "3")
    assert load_config().tenant_queue == 1
    monkeypatch.setenv("CAROUSEL_MAX_QUEUE_PER_TENANT", "2")
    assert load_config().tenant_queue == 2


def test_keys_of_snapshots_are_long_and_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several are written with commas; the first signs."""
    monkeypatch.setenv("CAROUSEL_SNAPSHOT_KEY", f"{'a' * 32},{'b' * 40}")
    config = load_config()
    assert config.snapshot_key == ("a" * 32, "b" * 40)
    assert "aaaa" not in repr(config)
    monkeypatch.setenv("CAROUSEL_SNAPSHOT_KEY", f"{'a' * 32},{'b' * 31}")
    with pytest.raises(SettingsError, match="a key has 31 bytes, expected 32 or more") as caught:
        load_config()
    assert "aaaa" not in str(caught.value)
    assert "bbbb" not in str(caught.value)


def test_the_config_is_frozen() -> None:
    """What is in force does not change while the service runs."""
    with pytest.raises(ValidationError, match="frozen"):
        load_config().workers = 2  # type: ignore[misc]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("CAROUSEL_WORKRES", "2", r"CAROUSEL_WORKRES is not a setting.*mean CAROUSEL_WORKERS\?"),
        ("CAROUSEL_ZZZ", "1", "CAROUSEL_ZZZ is not a setting of Carousel; the settings are CAROU"),
        ("CAROUSEL_WORKERS", "two", "CAROUSEL_WORKERS=two: Input should be a valid integer"),
        ("CAROUSEL_WORKERS", "0", "CAROUSEL_WORKERS=0: Input should be greater than 0"),
        ("CAROUSEL_MAX_BATCH", "-1", "CAROUSEL_MAX_BATCH=-1: Input should be greater than 0"),
        ("CAROUSEL_STORE", "etcd", "CAROUSEL_STORE=etcd: Input should be 'memory'"),
        ("CAROUSEL_IDLE_TIMEOUT_S", "soon", "CAROUSEL_IDLE_TIMEOUT_S=soon: .* valid number"),
        ("CAROUSEL_CORS_ORIGINS", "app.example", "`app.example` is not an origin, expected `"),
        ("CAROUSEL_CORS_ORIGINS", "https://a.example/", "`https://a.example/` is not an origin"),
        ("CAROUSEL_CORS_ORIGINS", "https://A.example", "is not an origin"),
        ("CAROUSEL_CORS_ORIGINS", "https://a.example:443", "is not an origin.*a port unless it"),
        ("CAROUSEL_CORS_ORIGINS", "https://*.example", "is not an origin"),
        ("CAROUSEL_CORS_ORIGINS", "null", "`null` is not an origin"),
        ("CAROUSEL_CORS_ORIGINS", "*,https://a.example", "others are named beside it"),
    ],
)
def test_a_setting_that_cannot_be_meant_stops_the_start(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, message: str
) -> None:
    """One line that names the variable and what it takes."""
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=message) as caught:
        load_config()
    assert "\n" not in caught.value.message
    assert caught.value.data == {"setting": name}


def test_several_workers_need_a_store_that_they_can_share(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused with `memory`, whichever was set first."""
    monkeypatch.setenv("CAROUSEL_WORKERS", "2")
    assert load_config().workers == 2
    monkeypatch.setenv("CAROUSEL_STORE", "memory")
    with pytest.raises(SettingsError, match="2 workers cannot share the `memory` store"):
        load_config()


@pytest.mark.parametrize(
    ("store", "url", "message"),
    [
        (
            "redis",
            "",
            "CAROUSEL_REDIS_URL is not set: CAROUSEL_STORE=redis needs it, expected redi",
        ),
        ("redis", "localhost:6379", "it is not a URL of Redis, expected redis://HOST:PORT/0"),
        ("redis", "http://u:secret@h", "CAROUSEL_REDIS_URL=http://h: it is not a URL of Redis"),
        ("redis", "unix://", "is not a URL of Redis"),
        ("memory", "redis://u:secret@h/1", "CAROUSEL_REDIS_URL=redis://h/1: the store is `memory`"),
    ],
)
def test_the_redis_store_and_its_url_go_together(
    monkeypatch: pytest.MonkeyPatch, store: str, url: str, message: str
) -> None:
    """Either without the other stops the start; a password is not shown."""
    monkeypatch.setenv("CAROUSEL_STORE", store)
    monkeypatch.setenv("CAROUSEL_REDIS_URL", url)
    with pytest.raises(SettingsError) as caught:
        load_config()
    assert message in caught.value.message
    assert "secret" not in caught.value.message
    assert caught.value.data == {"setting": "CAROUSEL_REDIS_URL"}


@pytest.mark.parametrize(
    "url",
    ["redis://h", "rediss://u:p@h:6380/1", "unix:///run/redis.sock", "redis+cluster://h:7000"],
)
def test_every_kind_of_redis_url_is_taken(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """And several workers may share that store."""
    monkeypatch.setenv("CAROUSEL_STORE", "redis")
    monkeypatch.setenv("CAROUSEL_REDIS_URL", url)
    monkeypatch.setenv("CAROUSEL_WORKERS", "2")
    assert (load_config().redis_url, load_config().workers) == (url, 2)


def test_pages_of_other_origins_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them only where keys, or the operator's word, stand between them and the sessions."""
    monkeypatch.setenv("CAROUSEL_CORS_ORIGINS", "https://a.example, http://[::1]:8080")
    assert load_config().cors_origins == ("https://a.example", "http://[::1]:8080")
    monkeypatch.setenv("CAROUSEL_CORS_ORIGINS", "*")
    with pytest.raises(SettingsError, match=r"CORS_ORIGINS=\* without API keys would let every"):
        load_config()
    for setting, value in (("API_KEYS_FILE", "keys.toml"), ("ALLOW_ANONYMOUS", "true")):
        with monkeypatch.context() as one:
            one.setenv(f"CAROUSEL_{setting}", value)
            assert load_config().cors_origins == ("*",)


def test_every_setting_says_what_it_means() -> None:
    """In one sentence, with a capital letter and no full stop, as README's table has it."""
    shown = list(all_settings(Config()))
    assert len(shown) == len(Config.model_fields)
    for one in shown:
        assert len(one.meaning) > 10, one.name
        assert one.meaning[0].isupper() and one.meaning[-1] not in ".\n", one.name


SECRET = "s3cret" * 8


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main([*arguments]) == 0
    found = capsys.readouterr()
    assert found.err == ""
    return found.out


def test_what_is_in_force_is_printed_with_where_it_comes_from(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """For people and for scripts; an empty variable is none; any case is the same variable."""
    monkeypatch.setenv("CAROUSEL_MAX_BATCH", "32")
    monkeypatch.setenv("carousel_models", "a,b")
    monkeypatch.setenv("CAROUSEL_VARIANT", "")
    monkeypatch.setenv("COLUMNS", "100")
    found = {one["name"]: one for one in json.loads(printed(capsys, "--json"))}
    assert found.keys() == {f"CAROUSEL_{field.upper()}" for field in Config.model_fields}
    batch = found["CAROUSEL_MAX_BATCH"]
    assert (batch["value"], batch["default"]) == ("32", "256")
    assert batch["source"] == "environment: CAROUSEL_MAX_BATCH"
    assert found["CAROUSEL_MODELS"]["source"] == "environment: carousel_models"
    assert found["CAROUSEL_MODELS"]["value"] == "a,b"
    assert [found[f"CAROUSEL_{one}"]["source"] for one in ("VARIANT", "STORE")] == ["default"] * 2
    table = printed(capsys).splitlines()
    assert max(map(len, table)) <= 100
    (row,) = [line.split() for line in table if line.startswith("CAROUSEL_MAX_BATCH")]
    assert row[:5] == ["CAROUSEL_MAX_BATCH", "32", "environment", "Rows", "run"]


def test_secrets_are_not_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nor shown by the object, nor by the line that refuses them."""
    monkeypatch.setenv("CAROUSEL_SNAPSHOT_KEY", f"{SECRET},{SECRET}2")
    monkeypatch.setenv("CAROUSEL_API_KEYS", SECRET)
    monkeypatch.setenv("CAROUSEL_STORE", "redis")
    monkeypatch.setenv("CAROUSEL_REDIS_URL", f"redis://user:{SECRET}@host/1")
    for form in ([], ["--json"], ["--markdown"]):
        assert "s3cret" not in printed(capsys, *form)
    assert "redis://host/1" in printed(capsys)
    assert "(hidden, 2)" in printed(capsys)
    assert "s3cret" not in repr(load_config())


def test_bad_settings_print_the_line_that_stops_the_start(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On stderr, with status 2; no traceback."""
    monkeypatch.setenv("CAROUSEL_WORKRES", "2")
    assert main([]) == 2
    found = capsys.readouterr()
    assert found.out == ""
    assert found.err == (
        "carousel: CAROUSEL_WORKRES is not a setting of Carousel; did you mean CAROUSEL_WORKERS?\n"
    )


def test_the_printer_needs_neither_bentoml_nor_a_runtime() -> None:
    """It answers where nothing else of the service would start."""
    code = (
        "import sys, service.config.__main__; "
        "sys.exit(bool({'bentoml', 'onnxruntime', 'numpy'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
    done = subprocess.run([sys.executable, "-m", "service.config"], capture_output=True, text=True)
    assert done.stdout.startswith("setting ")


def test_the_table_of_readme_is_the_printers(capsys: pytest.CaptureFixture[str]) -> None:
    """Word for word: a new setting is there when `python -m service.config --markdown` is."""
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    assert printed(capsys, "--markdown") in readme
