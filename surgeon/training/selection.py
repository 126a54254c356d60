"""Evaluation on the validation split, clean and at the present theta, and the best weights by the clean metric."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from surgeon.editing.relaxation import Relaxation
from surgeon.editing.use import watched
from surgeon.errors import TaskError
from surgeon.opening.evaluation import Look, evaluate, fitted, is_better
from surgeon.opening.pairs import Pairs
from surgeon.opening.task_calls import primary_metric, task_batches, task_forward
from surgeon.plan import Task
from surgeon.support.sharding import reshard, whole_state
from surgeon.training.accelerator import gathered, shards
from surgeon.training.ema import Ema
from surgeon.training.figures import CLEAN, ORIGINAL
from surgeon.training.session import TrainingSession
from surgeon.training.settings import PATIENCE_THETA, FinetuneSettings
from surgeon.training.state import Evaluation, TrainingState

if TYPE_CHECKING:
    from accelerate import Accelerator

Metrics = dict[str, float]

RECORDED = 10_000
"""Sites times evaluations, at most, of which a run records the use: some 150 kB."""


class BestWeights:
    """Keeps the best weights by the clean validation metric; the model as it came counts as epoch 0.

    Args:
        model: what is evaluated.
        session: of a relaxed model.
        ema: the average that is evaluated instead of the weights.
        accelerator: the driver.
        given: the model that gets the best weights back, and its branches; another one where weights are sharded.

    Attributes:
        metric: name of the metric that decides.
        direction: "min" or "max".
        best_weights: state dict on the CPU, branches included; empty before the first evaluation.
        pairs: a sample of computed values and labels, of the original and of the best weights.
    """

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        settings: FinetuneSettings,
        session: TrainingSession | None,
        ema: Ema | None,
        accelerator: Accelerator,
        given: tuple[nn.Module, Relaxation | None],
    ) -> None:
        self.metric, self.direction = primary_metric(task)
        self.best_weights: dict[str, Tensor] = {}
        self.pairs: dict[str, Any] = {}
        self._model, self._task, self._settings = model, task, settings
        self._session, self._ema, self._accelerator = session, ema, accelerator
        self._relaxation = None if session is None else session.relaxation
        self._given, self._given_relaxation = given

    def evaluate(self, state: TrainingState) -> Evaluation:
        """Return clean metrics and those at the present theta, and keep the weights if the clean ones are the best."""
        use, seen_pairs = None, Pairs(self._task)
        driver = self._accelerator
        # FSDP casts weights to the lower precision in every forward, those of an evaluation included
        precision = driver.autocast() if shards(driver) else nullcontext()
        with precision, self._ema.swapped() if self._ema is not None else nullcontext():
            if self._relaxation is not None and self._looks_at_use(state.epoch):
                with watched(self._relaxation) as seen:
                    current = self._metrics(None)
                use = seen.ratios()
            else:
                current = self._metrics(None if self._relaxation is not None else seen_pairs.see)
            clean = current
            forward = functools.partial(task_forward, self._task)
            session = self._session
            with nullcontext() if session is None else session.clean_evaluation(self._training_batches(), forward):
                if self._relaxation is not None:
                    clean = self._metrics(seen_pairs.see)
                self._require(clean)
                self._keep(state, clean, seen_pairs)
        self._watch_theta(state, clean, current)
        return Evaluation(clean, current, use)

    def _looks_at_use(self, epoch: int) -> bool:
        """Tell whether an evaluation is one of those, evenly spread, at which the use of the branches is recorded."""
        assert self._relaxation is not None
        settings, sites = self._settings, len(self._relaxation.branches)
        every = math.ceil(sites * (settings.epochs // settings.evaluate_every + 1) / RECORDED)
        return sites > 0 and (epoch == settings.epochs or epoch // settings.evaluate_every % every == 0)

    def _metrics(self, look: Look | None) -> Metrics:
        driver = self._accelerator
        share = (driver.process_index, driver.num_processes)
        try:
            return evaluate(self._model, self._task, "validation", share, lambda sums: gathered(driver, sums), look)
        finally:
            if shards(driver):
                reshard(self._model)

    def _training_batches(self) -> Iterator[Any]:
        batches = task_batches(self._task, "train", self._settings.seed)
        yield from (fitted(batch, self._model) for batch in batches)

    def _require(self, clean: Mapping[str, float]) -> None:
        if self.metric not in clean:
            raise TaskError(
                f"expected the primary metric {self.metric!r} among those that metrics() returns, "
                f"got {', '.join(clean)}: correct primary_metric of the task"
            )

    def _keep(self, state: TrainingState, clean: Metrics, pairs: Pairs) -> None:
        if self.best_weights and not is_better(clean[self.metric], state.best_value, self.direction):
            state.since_best += 1
            return
        state.since_best = 0
        state.best_epoch, state.best_value, state.best_validation = state.epoch, clean[self.metric], clean
        state.best_theta = self._relaxation.thetas if self._relaxation is not None else {}
        self.pairs[CLEAN if self.best_weights else ORIGINAL] = pairs.found()
        self.best_weights = whole_state(self._model)

    def _watch_theta(self, state: TrainingState, clean: Metrics, current: Metrics) -> None:
        """Count how long the relaxed model has been the worse one, and lower theta if the user wants that."""
        if clean is current or not is_better(clean[self.metric], current[self.metric], self.direction):
            state.worse = 0
            return
        state.worse += 1
        if self._settings.adaptive_theta and state.worse >= PATIENCE_THETA:
            state.theta_scale, state.worse = state.theta_scale / 2, 0

    def load_best(self, state: TrainingState) -> None:
        """Put the best weights, and the coefficients that they had, back into the model."""
        self._given.load_state_dict(self.best_weights)
        if self._given_relaxation is not None:
            self._given_relaxation.set_thetas(state.best_theta)
