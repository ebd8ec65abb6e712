"""The report's sentences and numbers as text, alike on the page, in Markdown and on screen."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from export.isolation import COMPANIES, Found, Isolation
from export.measured import Measured
from export.metrics import Metric
from export.reporting.evidence import Evidence
from export.timing import EAGER, StepTime

TINY_SHARE = 1e-4  # shares below it are "<0.01%"
HOSTILE = "1e4"  # the company that the sentence of isolation is about: no sensor sends 1e30


@dataclass(frozen=True)
class Outcome:
    """One variant's line of the verdict."""

    variant: str
    written: bool
    default: bool
    facts: tuple[str, ...]  # of a variant that was left out: why


def headline(evidence: Evidence) -> str:
    """The verdict in one sentence."""
    count, gone = len(evidence.manifest.variants), len(evidence.left_out)
    steps = max(len(m.errors) for m in evidence.measured)
    who = "The one variant computes" if count == 1 else f"All {count} variants compute"
    if gone:
        who = f"{count} of {count + gone} variants {'computes' if count == 1 else 'compute'}"
    rest = f"; {gone} {'was' if gone == 1 else 'were'} left out" if gone else ""
    return (
        f"{who} what was trained, within the stated tolerances, over {steps:,} steps of real "
        f"input with the state carried{rest}."
    )


def outcomes(evidence: Evidence) -> list[Outcome]:
    """Every variant, those that were left out last."""
    written = [
        Outcome(name, True, name == evidence.manifest.default_variant, _facts(evidence, name))
        for name in evidence.manifest.variants
    ]
    gone = [Outcome(name, False, False, (why,)) for name, why in evidence.left_out.items()]
    return sorted(written, key=lambda o: not o.default) + gone


def _facts(evidence: Evidence, variant: str) -> tuple[str, ...]:
    worst = evidence.worst_of(variant)
    facts = [
        f"off by {error_of(worst)} at most, {share_of_spread(worst)} of std(y) ({worst.case.name})",
        size_of(evidence, variant),
        *_speed(evidence, variant),
    ]
    entry = next(v for name, v in evidence.manifest.variants.items() if name == variant)
    facts.append("isolated" if entry.isolated else "not isolated: served one session a call")
    return tuple(facts)


def _speed(evidence: Evidence, variant: str) -> list[str]:
    if not evidence.timing or not (time := evidence.timing.of(variant, 1)):
        return []
    ratios = []
    if variant != evidence.timing.baseline:
        ratios.append(f"{times(time.ratio)} {evidence.timing.baseline}'s")
    if eager := evidence.timing.of(EAGER, 1):
        ratios.append(f"{times(time.ratio / eager.ratio)} the trained module's time")
    return [f"a step takes {microseconds(time)}: {', '.join(ratios)}"]


def size_of(evidence: Evidence, variant: str) -> str:
    size, base = evidence.size_of(variant), evidence.size_of(evidence.baseline)
    if variant == evidence.baseline:
        return kib(size)
    return f"{kib(size)}, {size / base:.0%} of {evidence.baseline}"


def kib(size: int) -> str:
    """Bytes as people read them."""
    return f"{size / 1024:,.1f} KiB" if size < 1 << 20 else f"{size / (1 << 20):,.1f} MiB"


def times(ratio: float) -> str:
    """A ratio of times with two significant digits, 0.87 x."""
    return (
        f"{ratio:.2f} \N{MULTIPLICATION SIGN}"
        if ratio < 10
        else f"{ratio:.0f} \N{MULTIPLICATION SIGN}"
    )


def microseconds(time: StepTime) -> str:
    return (
        f"{time.microseconds:,.0f} µs" if time.microseconds >= 10 else f"{time.microseconds:.1f} µs"
    )


def share_of_spread(measured: Measured) -> str:
    share = measured.share_of_spread
    return "<0.01%" if share < TINY_SHARE else f"{share:.2%}"


def error_of(measured: Measured) -> str:
    """The greatest error."""
    return f"{measured.max_error:.1e}" if measured.max_error else "0"


def company_of(evidence: Evidence, company: str) -> str:
    """Who it is; ids cannot be hostile, so there the neighbours' states are."""
    ids = evidence.manifest.ports.x.dtype == "int64"
    return COMPANIES[company].replace(
        "rows that send", "rows whose state is" if ids else "rows that send"
    )


def distance(found: Found) -> str:
    """How far company moved a row."""
    if not found.moved:
        return "same bits"
    if found.y == float("inf"):
        return "NaN or refused"
    if found.y == 0:
        return f"state {found.state:.1g}"
    return f"{found.y:.2g}"


def isolation_sentences(evidence: Evidence) -> list[str]:
    """What company did to each kind of variant, the isolated ones first."""
    entries = {str(name): entry for name, entry in evidence.manifest.variants.items()}
    unmoved = [v for v, isolation in evidence.isolation.items() if isolation.isolated]
    alone = [v for v in unmoved if v not in entries or entries[v].isolated]
    sentences = []
    if alone:
        trials = sum(found.trials for found in evidence.isolation[alone[0]].found)
        sentences.append(
            f"{join(alone)}: the same bits in each of {trials} trials, whoever was beside the row, "
            "wherever it stood, however it was cut into chunks."
        )
    for variant, isolation in evidence.isolation.items():
        if not isolation.isolated:
            sentences.append(_moved(evidence, variant, isolation))
        elif variant not in alone:
            sentences.append(
                f"{variant}: no bit was seen to move, but it takes one scale of its whole batch, "
                "so the service runs one session a call."
            )
    return sentences


def _moved(evidence: Evidence, variant: str, isolation: Isolation) -> str:
    found = {one.company: one for one in isolation.found}
    after = "; so the service runs one session a call, step by step"
    after = "" if variant in evidence.left_out else after
    hostile, calm = found.get(HOSTILE), found["calm"]
    if hostile and hostile.y > 10 * calm.y and evidence.manifest.ports.x.dtype == "float32":
        far = "NaN" if hostile.y == float("inf") else f"{hostile.y:.2g}"
        return (
            f"{variant}, run as one batch: a neighbour that sends {HOSTILE} moves other sessions "
            f"by {far}, calm neighbours by {calm.y:.1g}{after}."
        )
    worst = isolation.worst
    far = f"moves by {max(worst.y, worst.state):.1g} at most"
    if worst.y == float("inf"):
        far = "gets NaN, or its batch is refused"
    company = company_of(evidence, worst.company)
    return f"{variant}, run as one batch: a session {far} ({company}){after}."


ASKED = {  # case -> what it asks, for who has not read the manual
    "teacher-forced": "The example's real input.",
    "shock": "Real input, with single steps thrown far out.",
    "silence": "Real input that falls silent.",
    "closed-loop": "Each output is the next input.",
    "generated": "What the trained module wrote by itself, read by the variant.",
}


def caption(found: Sequence[Measured]) -> str:
    """A case in words and numbers, also for who does not see the plot."""
    steps, rows = max(len(m.errors) for m in found), len(found[0].case.x)
    nearest = max(found, key=lambda m: float(np.nan_to_num(m.excess[: m.judged], nan=np.inf).max()))
    where = "Nearest to its tolerance" if nearest.within else "Farthest beyond its tolerance"
    judged = ""
    if nearest.judged < steps:
        judged = (
            f" The first {nearest.judged:,} are judged one by one; after them (grey), "
            "when phases have come apart, it is what values the model takes that is judged."
        )
    whys = join(list(dict.fromkeys(m.why for m in found)), "; ")
    return (
        f"{ASKED.get(found[0].case.name, '')} {rows} {'row' if rows == 1 else 'rows'} of {steps:,} "
        f"steps.{judged} {where}: {nearest.variant}, off by {nearest.errors[nearest.worst]:.1e} at "
        f"step {nearest.worst:,}. Allowed: {whys}."
    ).strip()


def long_run(measured: Measured) -> str:
    """How far what the model does in the long run is from the reference's, if that is judged."""
    divergence = measured.divergence
    if divergence is None:
        return ""
    return f"long run: {divergence.shift:.1g} of {divergence.allowed:.1g} std"


def worsening(metric: Metric) -> str:
    return "the same" if abs(metric.worsening) < TINY_SHARE else f"{metric.worsening:+.2%}"


def join(names: list[str], between: str = "") -> str:
    """As a sentence lists things; or with a sign between them."""
    if between or len(names) == 1:
        return between.join(names)
    return f"{', '.join(names[:-1])} and {names[-1]}"
