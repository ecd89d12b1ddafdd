"""The part of `ProgressionModel` that explains its forecasts: what was taken out of whose history is asked here, how
that is done is in `ehrseq.explain`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ehrseq.config import ModelConfig
from ehrseq.errors import ForecastError, nearest
from ehrseq.explain.edits import WhatIf, Without, describe_edits, edit_history, what_if_table
from ehrseq.explain.explanation import Explanation
from ehrseq.explain.faithfulness import measure
from ehrseq.explain.gradients import STEPS, check_gradients, integrated_gradients
from ehrseq.explain.names import display_names
from ehrseq.explain.occlusion import KINDS, RECENT_EVENTS, Score, occlude
from ehrseq.explain.randomise import randomised
from ehrseq.forecast.predict import check_branch, outcome_hazards
from ehrseq.forecast.screen import nobody_scored, screen
from ehrseq.forecast.table import Forecast, risk_table
from ehrseq.model.fitted import Fitted
from ehrseq.task.definition import Horizon, Task
from ehrseq.task.query import resolve_prediction_times
from ehrseq.timeline.store import Timelines, as_timelines

SHUFFLES = 3  # models of random weights that an explanation is held against


class Explaining:
    """Explanations of a fitted model's forecasts; `ProgressionModel` brings what is declared first."""

    config: ModelConfig
    task_: Task
    fitted_: Fitted
    times_withheld_: bool
    faithfulness_: dict[str, Any] | None = None

    if TYPE_CHECKING:

        def forecast(
            self, timelines: Any, at: Any = None, *, horizons: Sequence[str] | None = None, branch: str | None = None,
            lab_levels: Sequence[float] = (),
        ) -> Forecast:  # fmt: skip
            """See `ProgressionModel.forecast`."""

        def seen_in_training(self, subject_ids: NDArray[np.int64]) -> NDArray[np.bool_]:
            """See `ProgressionModel.seen_in_training`."""

        def _unseen(self, timelines: Timelines) -> Timelines: ...

        def _for_codes_of(self, timelines: Timelines) -> Fitted: ...

        def _check_fitted(self, *, task: bool = True) -> Fitted: ...

    def explain(
        self,
        timelines: Any,
        at: Any = None,
        *,
        patient: str | Sequence[str] | None = None,
        outcome: str | None = None,
        horizon: str | None = None,
        branch: str | None = None,
        kinds: Sequence[str] = KINDS,
        recent_events: int = RECENT_EVENTS,
    ) -> Explanation:
        """Which past events moved the forecasts that are issued: each is forecast again without them.

        `at` and `branch` as in `forecast`; `patient` (one or several), `outcome` and `horizon` (such as "18m"; default
        the task's) narrow it down. `kinds` are what is taken out: each "event" of the `recent_events` that became known
        last, all events of a "code", all of a "window" of time. Raises ForecastError where nobody can be scored for it,
        and for an unknown outcome; TimelineError for an unknown patient.
        """
        branch = self._branch(branch)
        timelines, fitted, scored = self._asked(timelines, at, patient, outcome)
        spans = self.task_.horizons if horizon is None else (Horizon(horizon),)
        reads = {"age_sex": ("sex",), "null": ()}.get(branch, self.config.network.demographics)
        score = self._scorer(fitted, branch, spans)
        contributions, scope = occlude(
            timelines, scored, score, kinds=kinds, recent_events=recent_events, demographics=reads
        )
        return Explanation(contributions, scope, branch, display_names(timelines), self._faithfulness_of(branch))

    def integrated_gradients(
        self,
        timelines: Any,
        at: Any = None,
        *,
        patient: str | Sequence[str] | None = None,
        outcome: str | None = None,
        horizon: str | None = None,
        steps: int = STEPS,
    ) -> pl.DataFrame:
        """How the forecasts of the networks alone (`branch="transformer"`) are made up of the events they read.

        Needs captum (the extra `explain`). The arguments are those of `explain`; `steps` is the number of
        points of the integral. One row a forecast and event, as `GRADIENT_SCHEMA`: `attribution` on the risk scale, and
        `gap`, by which all of a forecast's attributions miss `probability` - `baseline`. Raises ForecastError without
        captum, for a model without networks, and as `explain` does.
        """
        check_gradients(self._check_fitted(), steps)
        timelines, fitted, scored = self._asked(timelines, at, patient, outcome)
        spans = self.task_.horizons if horizon is None else (Horizon(horizon),)
        return integrated_gradients(fitted, timelines, scored, spans, self.config.network.max_events, steps)

    def what_if(
        self,
        timelines: Any,
        patient: str,
        at: Any = None,
        *,
        without: Sequence[Without] = (),
        values: Mapping[str, float] | None = None,
        horizons: Sequence[str] | None = None,
        branch: str | None = None,
    ) -> WhatIf:
        """The forecast of a patient, and of the same history edited: model sensitivity, not effect.

        `without` names codes, or (code, date or time) pairs, whose visible events are left out; `values` gives the last
        visible value of a code another number, in the unit it is in. All edits are made together. Both forecasts go the
        whole way, including who cannot be forecast. Raises ForecastError for what is not there to be edited.
        """
        timelines = as_timelines(timelines)
        mine = timelines.select(timelines.subject_ids([patient]))
        issued = self.forecast(mine, at, horizons=horizons, branch=branch, lab_levels=())
        times = issued.risk["prediction_time"].unique()
        if len(times) != 1 or not (without or values):
            found = f"{len(times)} prediction times" if len(times) != 1 else "no edit"
            raise ForecastError(
                "one prediction time and something to edit", found, "give `at`, and `without` or `values`"
            )
        edited_history = edit_history(mine, times[0], without, values or {})
        at = pl.DataFrame({"subject_id": mine.subjects["subject_id"], "prediction_time": times})
        try:
            edited = self.forecast(edited_history, at, horizons=horizons, branch=branch, lab_levels=())
            risk, skipped = edited.risk, edited.skipped
        except ForecastError:  # nobody is left to be scored: say why
            skipped = self._screen(edited_history, at)[2]
            risk = issued.risk.clear()
        edits = describe_edits(without, values or {}, display_names(mine))
        return WhatIf(what_if_table(issued.risk, risk, skipped, edits))

    def check_faithfulness(
        self, timelines: Any, at: Any = "task", *, horizon: str | None = None, n: int = 200, seed: int = 0
    ) -> dict[str, Any]:
        """Measure whether explanations say what this model does, on people whom it was not fitted on.

        Of `n` prediction times, one a person: deletion and insertion curves beside random orders, and the rank
        correlation with the explanations of the same model with random weights; `horizon` by default the task's longest
        that is not extrapolated. The figures and gates are kept in `faithfulness_`, travel with the model folder, and
        are told with every explanation. Raises ForecastError where nobody is left.
        """
        branch = self._branch(None)
        if branch not in self.fitted_.branches:
            raise ForecastError("a model that reads events", f"the branch '{branch}'", "there is nothing to measure")
        timelines = as_timelines(timelines)
        timelines = self._unseen(timelines)
        fitted, scored, _ = self._screened(timelines, at)
        first = scored.filter(pl.col("prediction_time") == pl.col("prediction_time").min().over("subject_id"))
        drawn = first["subject_id"].unique().sort().sample(min(n, first["subject_id"].n_unique()), seed=seed)
        first = first.filter(pl.col("subject_id").is_in(drawn.implode()))
        spans = self._longest_supported() if horizon is None else (Horizon(horizon),)
        controls = [self._scorer(randomised(fitted, seed + i), branch, spans) for i in range(SHUFFLES)]
        found = measure(
            timelines, first, self._scorer(fitted, branch, spans), controls,
            demographics=self.config.network.demographics, seed=seed,
        )  # fmt: skip
        self.faithfulness_ = {"branch": branch, **found}
        return self.faithfulness_

    def _faithfulness_of(self, branch: str) -> dict[str, Any] | None:
        """What was measured, if it was of this branch."""
        found = self.faithfulness_
        return found if found is not None and found.get("branch", self._branch(None)) == branch else None

    def _longest_supported(self) -> tuple[Horizon]:
        """The task's longest horizon that no outcome is extrapolated at, else the shortest."""
        supported = [h for h in self.task_.horizons if h.days <= min(self.fitted_.supported_days.values())]
        return ((supported or self.task_.horizons[:1])[-1],)

    def _asked(
        self, timelines: Any, at: Any, patient: str | Sequence[str] | None, outcome: str | None
    ) -> tuple[Timelines, Fitted, pl.DataFrame]:
        """The timelines, what answers for their codes, and the rows to be scored, of some patients and an outcome."""
        timelines = as_timelines(timelines)
        if patient is not None:
            timelines = timelines.select(timelines.subject_ids([patient] if isinstance(patient, str) else patient))
        known = self.fitted_.outcomes
        if outcome is not None and outcome not in known:
            raise ForecastError("an outcome that is forecast", f"'{outcome}'", nearest(outcome, known))
        fitted, scored, skipped = self._screened(timelines, at)
        if outcome is not None:
            scored = scored.filter(pl.col("outcome") == outcome)
            if not scored.height:
                raise nobody_scored(skipped.filter(pl.col("outcome").fill_null(outcome) == outcome))
        return timelines, fitted, scored

    def _screen(self, timelines: Timelines, at: Any) -> tuple[Fitted, pl.DataFrame, pl.DataFrame]:
        """What answers for the codes of these timelines, the rows that can be scored, and the `skipped` table."""
        if isinstance(at, str) and at == "task" and self.times_withheld_:
            raise ForecastError(
                "prediction times", "a model whose table of them was withheld (it names patients)", "give them as `at`"
            )
        queries = resolve_prediction_times(timelines, at, self.task_)
        fitted = self._for_codes_of(timelines)
        known = fitted.vocabulary.understands(timelines.events["code"])
        return fitted, *screen(timelines, queries, self.task_, known, fitted.outcomes)

    def _screened(self, timelines: Timelines, at: Any) -> tuple[Fitted, pl.DataFrame, pl.DataFrame]:
        """The same; ForecastError where nobody can be scored."""
        fitted, scored, skipped = self._screen(timelines, at)
        if not scored.height and skipped.height:
            raise nobody_scored(skipped)
        return fitted, scored, skipped

    def _scorer(self, fitted: Fitted, branch: str, spans: Sequence[Horizon]) -> Score:
        """The path of `forecast` from timelines and scored rows to risks, with the horizons' labels."""

        def score(timelines: Timelines, rows: pl.DataFrame) -> pl.DataFrame:
            hazards = outcome_hazards(fitted, timelines, rows, branch, self.config.network.max_events)
            time = pl.col("prediction_time")
            labels = pl.concat(
                rows.select(time.unique()).select(
                    time, horizon_days=h.days_after(time).cast(pl.Float64), horizon=pl.lit(h.label)
                )
                for h in spans
            ).unique(["prediction_time", "horizon_days"], keep="first", maintain_order=True)
            return risk_table(hazards, spans).join(labels, on=["prediction_time", "horizon_days"])

        return score

    def _branch(self, branch: str | None) -> str:
        self._check_fitted()
        return check_branch(self.fitted_, branch)
