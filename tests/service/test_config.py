"""What the operator may set, and what stops the start."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from service.config import Config, load_config
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
