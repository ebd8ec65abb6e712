"""`parity.json`: the same for programs, with the error of every step."""

from dataclasses import asdict

from export.isolation import Found
from export.reporting.evidence import Evidence


def as_record(evidence: Evidence) -> dict[str, object]:
    """What was not measured is not there."""
    manifest = evidence.manifest
    record: dict[str, object] = {
        "name": manifest.name,
        "version": manifest.version,
        "reference": f"{manifest.provenance.module}, eager, float32",
        "unit": "absolute error of y in the model's units, greatest over rows and outputs",
        "measured": [m.as_json() for m in evidence.measured],
        "left_out": [{"variant": v, "why": why} for v, why in evidence.left_out.items()],
        "isolation": {
            variant: [_company(found) for found in isolation.found]
            for variant, isolation in evidence.isolation.items()
        },
        "gates": [asdict(gate) for gate in evidence.gates],
    }
    if evidence.ladder:
        record["ladder"] = [rung.as_json() for rung in evidence.ladder]
    if evidence.timing:
        record["timing"] = asdict(evidence.timing)
    return record


def _company(found: Found) -> dict[str, object]:
    """JSON has no infinity: null."""
    far = {k: None if v == float("inf") else v for k, v in (("y", found.y), ("state", found.state))}
    return {"company": found.company, "trials": found.trials, "moved": found.moved, **far}
