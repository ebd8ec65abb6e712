"""Which metrics a model has, by what its y means, and what they are for given answers.

| y | metrics |
| --- | --- |
| numbers, with a target | RMSE against it |
| numbers that can be the next x | RMSE against the real next input, one step ahead and over the \
closed loop's horizon |
| tokens | perplexity of the real next token (of the target, if one is given) |
| classes | agreement with the reference; accuracy, with a target |
| a score | AUC of the shocks that were put in (of the target, if one is given); steps with the \
same alarm as the reference |
"""

from collections.abc import Mapping

import numpy as np

from export.cases import CLOSED_LOOP, HORIZON, SHOCK, TEACHER_FORCED, Case, Cases
from export.metrics import Score, auc, error_of, perplexity, share_equal

Array = np.ndarray
Answers = Mapping[str, Array]  # case -> y (B, T, ...), in the model's units


class Scoring:
    """The metrics of one model, over the cases that the gate ran."""

    def __init__(self, cases: Cases, target: Array | None = None) -> None:
        """Args:
        target: (N, T, ...) as `checked_target` gives it.
        """
        self._cases = cases
        self._means = cases.means
        self._alarm = cases.pipeline.alarm
        self._unit = "raw units" if cases.pipeline.y else "the model's units"
        self._target = None if target is None else _along(target, cases.teacher_forced)

    def scores(self, answers: Answers) -> dict[str, list[Score]]:
        """case -> what `answers` are worth in it."""
        found: dict[str, list[Score | None]] = {}
        real = self._cases.teacher_forced
        y = answers[TEACHER_FORCED]
        match self._means:
            case "numbers":
                found[TEACHER_FORCED] = [self._error(y, real)]
                if CLOSED_LOOP in answers and self._target is None:
                    found[CLOSED_LOOP] = [self._rollout_error(answers[CLOSED_LOOP])]
            case "tokens":
                found[TEACHER_FORCED] = [self._perplexity(y, real)]
            case "classes":
                found[TEACHER_FORCED] = self._classes(y, real)
            case "score":
                found[TEACHER_FORCED] = self._alarms(y, real)
                if self._target is None and SHOCK in answers:
                    found[SHOCK] = [self._shocks_found(answers[SHOCK])]
        return {case: [s for s in given if s is not None] for case, given in found.items()}

    def _error(self, y: Array, real: Case) -> Score | None:
        if self._target is not None:
            return error_of("RMSE", *self._raw(y, self._target, is_raw=True), self._unit)
        if self._cases.closed_loop is None:
            return None
        pairs = self._pairs(real)
        wanted = real.x[:, 1:][:, pairs]
        return error_of("RMSE, one step", *self._raw(y[:, :-1][:, pairs], wanted), self._unit)

    def _rollout_error(self, y: Array) -> Score | None:
        """Of those loops whose real future is in the example, without its end in between."""
        real, period = self._cases.teacher_forced.x, self._cases.period
        rows, steps = real.shape[:2]
        ys, wanted = [], []
        for k, start in enumerate(int(s) for s in self._cases.starts):
            stop = start + HORIZON
            if stop < steps and start // period == stop // period:
                ys.append(y[k * rows : (k + 1) * rows, :HORIZON])
                wanted.append(real[:, start + 1 : stop + 1])
        if not ys:
            return None
        raw = self._raw(np.concatenate(ys), np.concatenate(wanted))
        return error_of(f"RMSE, {HORIZON} steps", *raw, self._unit)

    def _perplexity(self, logits: Array, real: Case) -> Score:
        if self._target is not None:
            return perplexity(logits.reshape(-1, logits.shape[-1]), self._target.reshape(-1))
        ids = real.x if real.x.dtype.kind == "i" else real.x.argmax(axis=-1)
        pairs = self._pairs(real)
        logits = logits[:, :-1][:, pairs]
        return perplexity(logits.reshape(-1, logits.shape[-1]), ids[:, 1:][:, pairs].reshape(-1))

    def _classes(self, y: Array, real: Case) -> list[Score | None]:
        found = y.argmax(axis=-1)
        scores: list[Score | None] = [
            share_equal("agreement with the reference", found, real.y.argmax(axis=-1))
        ]
        if self._target is not None:
            scores.append(share_equal("accuracy", found, self._target))
        return scores

    def _alarms(self, y: Array, real: Case) -> list[Score | None]:
        scores: list[Score | None] = []
        if self._alarm is not None:
            threshold = self._alarm.threshold
            found, wanted = (self._cases.pipeline.decode(v) > threshold for v in (y, real.y))
            scores.append(share_equal("same alarm as the reference", found, wanted))
        if self._target is not None:
            scores.append(auc("AUC", y.reshape(-1), self._target.reshape(-1) > 0))
        return scores

    def _shocks_found(self, y: Array) -> Score | None:
        """AUC of the steps that see a shock: a window sees it for as long as it is."""
        case = self._cases.named(SHOCK)
        if case is None:
            return None
        seen = np.zeros(y.shape[1], bool)
        for place in case.places:
            seen[place : place + (self._cases.reference.window or 1)] = True
        return auc("AUC of the shocks", y.reshape(-1), seen)

    def _pairs(self, real: Case) -> Array:
        """The steps whose next one is real: not those at which the example begins again."""
        steps = np.arange(real.x.shape[1] - 1)
        return np.asarray(steps[(steps + 1) % self._cases.period != 0])

    def _raw(self, y: Array, wanted: Array, is_raw: bool = False) -> tuple[Array, Array]:
        """Both in raw units, a row a step."""
        pipeline, tail = self._cases.pipeline, y.shape[2:]
        y = pipeline.decode(y).reshape(-1, *tail)
        if not is_raw and pipeline.x is not None:
            wanted = wanted.astype(np.float64) * pipeline.x.std + pipeline.x.mean
        return y, wanted.reshape(-1, *tail)


def _along(target: Array, real: Case) -> Array:
    """The truth beside each step of the real input, cycled as it is."""
    rows, steps = real.x.shape[:2]
    return np.asarray(target[:rows, np.arange(steps) % target.shape[1]])
