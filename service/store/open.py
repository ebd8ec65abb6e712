"""Which store the settings mean.

Redis's client takes 0.2 s of a core to import, in each process: only who has sessions there pays.
"""

from service.config import Config
from service.store import Store
from service.store.disk.store import DiskStore
from service.store.memory import MemoryStore


def import_store(config: Config) -> None:
    """Import what `open_store` will: for whoever cannot find the project later on."""
    if config.store == "redis":
        import service.store.redis  # noqa: F401


def open_store(config: Config) -> Store:
    """The store that the settings name, open; Redis is connected to when it is there.

    Raises:
        SettingsError: it cannot be opened as it is set up.
    """
    if config.store == "redis" and config.redis_url is not None:
        from service.store.redis import RedisStore
        from service.store.redis_link import Link

        link = Link(config.redis_url, must_survive_power_cuts=config.durability == "power")
        return RedisStore(link, config.max_sessions, config.idle_timeout_s)
    if config.store == "memory":
        return MemoryStore(config.max_sessions, config.idle_timeout_s)
    return DiskStore(
        config.store_path, config.max_sessions, config.idle_timeout_s, config.durability
    )


def check_store(config: Config) -> None:
    """For the process that starts the workers: what `open_store` would raise in each of them.

    What a reboot left is put right here, once.

    Raises:
        SettingsError: as `open_store`.
    """
    if config.store == "disk":
        DiskStore.check(config.store_path, config.max_sessions, config.durability)
