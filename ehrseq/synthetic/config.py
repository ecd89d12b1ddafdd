"""The simulator's frozen parameters: every rate, every code, every trap.

Rates are per year, effects are logarithms of rate ratios unless they are called factors, ages are in years. The
defaults are frozen: a change to one of them is a change of the benchmark, and is written into the manifest of every
simulated export.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ehrseq.errors import UserError

Float = NDArray[np.float64]
Int = NDArray[np.int64]

STEPS_PER_YEAR = 24  # half a calendar month: landmarks and horizons in years fall on the boundary of a step
REFERENCE_AGE = 60.0


@dataclass(frozen=True)
class MarkerConfig:
    """A laboratory value that shows the severity through noise; the treatment is started on its measured value."""

    mean: float  # at severity 0
    per_level: float
    person_sd: float  # a lasting difference between people with the same severity
    noise_sd: float  # from one measurement to the next
    treat_at: float  # a visit with a value at or above it may start the treatment
    prescribing: float  # probability that it does


@dataclass(frozen=True)
class DiseaseConfig:
    """One disease: a hidden severity 0..levels-1 that drifts, the illness it causes, and how that becomes known."""

    outcome: str
    code: str  # SNOMED CT
    display: str
    confirmation: Literal["visit", "discharge"]  # diagnosed at an outpatient visit, or coded when a stay ends
    confirming: float  # probability that a visit confirms; that a stay ends within half a month
    marker: MarkerConfig
    worsening: float  # severity levels a year, untreated
    recovery: float
    treated_worsening: float  # factors under treatment
    treated_recovery: float
    onset: float  # at severity 0, unexposed woman of 60
    onset_per_level: float
    onset_per_decade: float
    onset_male: float
    onset_exposed: float  # the planted cause
    exposed_at_start: float  # probability
    exposure: float  # rate at which others become exposed; nobody stops
    visits: float  # at severity 0
    visits_per_level: float  # the informative part
    visits_uninformative: float  # used instead of both when that trap is off
    death: float  # death rate added at severity 0
    death_per_level: float
    death_known: float  # death rate added once diagnosed
    levels: int = 7
    start_mean: float = 1.5
    start_sd: float = 1.4
    start_per_decade: float = 0.25


DIABETES = DiseaseConfig(
    outcome="diabetes",
    code="44054006",
    display="Diabetes mellitus type 2",
    confirmation="visit",
    confirming=0.6,
    marker=MarkerConfig(5.0, 0.25, 0.15, 0.3, treat_at=6.2, prescribing=0.3),
    worsening=0.40,
    recovery=0.20,
    treated_worsening=0.4,
    treated_recovery=1.8,
    onset=0.0075,
    onset_per_level=0.62,
    onset_per_decade=0.10,
    onset_male=0.15,
    onset_exposed=1.1,
    exposed_at_start=0.05,
    exposure=0.025,
    visits=0.9,
    visits_per_level=0.25,
    visits_uninformative=1.6,
    death=0.0008,
    death_per_level=0.40,
    death_known=0.005,
)

HEART_FAILURE = DiseaseConfig(
    outcome="heart_failure",
    code="84114007",
    display="Heart failure",
    confirmation="discharge",
    confirming=0.8,
    marker=MarkerConfig(114.0, 7.0, 4.0, 9.0, treat_at=145.0, prescribing=0.3),
    worsening=0.40,
    recovery=0.20,
    treated_worsening=0.5,
    treated_recovery=1.5,
    onset=0.0032,
    onset_per_level=0.72,
    onset_per_decade=0.40,
    onset_male=0.2,
    onset_exposed=1.0,
    exposed_at_start=0.25,
    exposure=0.0,
    visits=0.8,
    visits_per_level=0.25,
    visits_uninformative=1.5,
    death=0.0004,
    death_per_level=0.95,
    death_known=0.03,
)


@dataclass(frozen=True)
class SimulationConfig:
    """Everything that shapes a simulated export. The switches come first; each removes one trap.

    >>> SimulationConfig(back_dated_diagnoses=False).censoring
    True
    """

    noisy_labs: bool = True  # off: a laboratory value gives the severity exactly
    treatment: bool = True  # off: nobody is treated
    informative_visits: bool = True  # off: everybody comes equally often
    competing_death: bool = True  # off: nobody dies
    censoring: bool = True  # off: everybody is followed for `years`
    covariate_censoring: bool = True  # off: dropping out is as likely for everybody
    back_dated_diagnoses: bool = True  # off: diabetes is recorded on the day it begins
    discharge_diagnoses: bool = True  # off: diagnoses of a stay are recorded on the day of admission
    planted_causes: bool = True  # off: steroids and smoking are recorded but change no outcome's onset
    decoy: bool = True  # off: no unrelated diagnosis
    staggered_entry: bool = True  # off: everybody enters on the first day

    diabetes: DiseaseConfig = DIABETES
    heart_failure: DiseaseConfig = HEART_FAILURE

    years: int = 10  # longest follow-up
    first_entry: str = "2008-01-01"
    entry_months: int = 60
    data_cut: str = "2022-06-30"
    landmarks: tuple[int, ...] = (2, 4)  # years after the start of follow-up
    horizons: tuple[int, ...] = (1, 3, 5)  # years

    age_mean: float = 60.0
    age_sd: float = 12.0
    age_low: float = 35.0
    age_high: float = 88.0
    male: float = 0.5
    former_smoker: float = 0.25  # among those who do not smoke now; without effect
    start_correlation: float = 0.35  # of the two severities, at the start only

    death: float = 0.0014  # non-smoking woman of 60, before the diseases add theirs
    death_per_decade: float = 1.4
    death_male: float = 0.4
    death_smoker: float = 0.8

    dropout: float = 0.038  # non-smoker of 60 whose last HbA1c was low
    dropout_per_decade: float = 0.30
    dropout_smoker: float = 0.6
    dropout_high_marker: float = 0.6  # last measured HbA1c at or above `high_marker`
    high_marker: float = 6.0
    dropout_uninformative: float = 0.055

    decoy_at_start: float = 0.2
    decoy_rate: float = 0.05
    other_stays: float = 0.08  # hospital stays for another reason, at the reference age
    other_stays_per_decade: float = 0.3
    longest_other_stay: int = 35  # days

    def to_dict(self) -> dict[str, Any]:
        """Every setting, written out."""
        return asdict(self)

    @property
    def diseases(self) -> tuple[DiseaseConfig, DiseaseConfig]:
        """The two diseases, with the switched-off traps taken out of their parameters."""
        return self._switched(self.diabetes), self._switched(self.heart_failure)

    def immediate(self, disease: DiseaseConfig) -> bool:
        """Whether a disease is known on the day it begins."""
        by_visit = disease.confirmation == "visit"
        return not (self.back_dated_diagnoses if by_visit else self.discharge_diagnoses)

    def _switched(self, disease: DiseaseConfig) -> DiseaseConfig:
        marker = disease.marker
        if not self.noisy_labs:
            marker = replace(marker, person_sd=0.0, noise_sd=0.0)
        if not self.treatment:
            marker = replace(marker, prescribing=0.0)
        disease = replace(disease, marker=marker)
        if not self.informative_visits:
            disease = replace(disease, visits=disease.visits_uninformative, visits_per_level=0.0)
        if not self.planted_causes:
            disease = replace(disease, onset_exposed=0.0)
        if not self.competing_death:
            disease = replace(disease, death=0.0, death_known=0.0)
        return disease


def validate(config: SimulationConfig, n_subjects: int, seed: int) -> None:
    """Raise UserError where a simulation cannot be run; changes nothing."""
    if n_subjects < 1:
        raise UserError("at least one subject", str(n_subjects), "ask for more subjects")
    if seed < 0:
        raise UserError("a seed from 0", str(seed), "choose another seed")
    if not config.landmarks or not config.horizons or min(*config.landmarks, *config.horizons) < 1:
        raise UserError("landmarks and horizons of whole years from 1", "others", "change the configuration")
    if max(config.landmarks) >= config.years:
        raise UserError(
            f"landmarks before the longest follow-up of {config.years} years",
            f"a landmark at {max(config.landmarks)} years",
            "set a higher `years` or earlier landmarks",
        )
