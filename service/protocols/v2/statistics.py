"""What the models of a server have done, as v2 tells it.

Rules
- It is counted whatever the protocol, over all workers of the service, and may be a second old:
  it is made of the metrics that /metrics shows (docs/observing.md).
- A request of one session is an inference, and so is each row of a request without a sequence.
- `success`, `fail` and `queue` are of requests. The three parts of `compute` are what a batch
  took to read its sessions, to run and to commit, for each request in it: so a mean over requests
  is what one of them spent there, but for batches that had nothing to read or to commit. An
  execution is one call of the model.
- A retry that got the last reply again is a `cache_hit`, and a success; there is no other cache.
- Requests that were refused before a model was found are nobody's.
"""

import asyncio
from collections.abc import Iterable

from service.engine import Engine
from service.metrics import Samples

Json = dict[str, object]

_SECONDS, _RUNS = "carousel_model_seconds", "carousel_run_seconds_count"
_LAST = "carousel_model_last_request_timestamp_seconds"
_PARTS = {
    "success": ("done", "replayed"),
    "fail": ("refused", "failed"),
    "queue": ("wait",),
    "compute_input": ("read",),
    "compute_infer": ("run",),
    "compute_output": ("commit",),
    "cache_hit": ("replayed",),
    "cache_miss": (),
}


async def model_statistics(engine: Engine, name: str = "", version: str = "") -> Json:
    """Of all versions that are loaded: of one, of all of one model, or of every model.

    Raises:
        UnknownModelError: there is no such model, or version.
        ArtifactError: it is broken.
        ModelLoadingError: it is not loaded, so it has done nothing here.
    """
    if name:
        engine.catalog.get(f"{name}:{version}" if version else name)
    engine.publish()
    samples = await asyncio.to_thread(engine.metrics.samples)
    return {
        "model_stats": [
            _statistics(samples, model.name, model.version)
            for model in engine.catalog.models
            if name in ("", model.name) and version in ("", model.version)
        ]
    }


def _statistics(samples: Samples, model: str, version: str) -> Json:
    labels = {"model": model, "version": version}

    def duration(parts: Iterable[str]) -> Json:
        count = sum(samples.of(f"{_SECONDS}_count", **labels, part=part) for part in parts)
        seconds = sum(samples.of(f"{_SECONDS}_sum", **labels, part=part) for part in parts)
        return {"count": int(count), "ns": round(seconds * 1e9)}

    return {
        "name": model,
        "version": version,
        "last_inference": round(samples.of(_LAST, **labels) * 1e3),
        "inference_count": duration(["done"])["count"],
        "execution_count": int(samples.of(_RUNS, **labels)),
        "inference_stats": {what: duration(parts) for what, parts in _PARTS.items()},
        "batch_stats": [],
    }
