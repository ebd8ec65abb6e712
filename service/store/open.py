"""The store that the settings ask for."""

from service.config import Config
from service.store import Store
from service.store.memory import MemoryStore
from service.store.redis import RedisStore
from service.store.redis_link import Link


def open_store(config: Config) -> Store:
    """Open it; a Redis that is not there yet is connected to when it is."""
    if config.store == "redis" and config.redis_url is not None:
        link = Link(config.redis_url, must_survive_power_cuts=config.durability == "power")
        return RedisStore(link, config.max_sessions, config.idle_timeout_s)
    return MemoryStore(config.max_sessions, config.idle_timeout_s)
