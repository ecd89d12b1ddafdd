"""Named stages of a measure: what a task means by "G3b or worse".

- CKD G categories, by glomerular filtration rate in mL/min/1.73 m2: KDIGO 2024 Clinical Practice Guideline for the
  Evaluation and Management of CKD, Kidney Int 2024;105(4S):S117-S314. That a stage lasts more than three months is part
  of the definition of CKD: `confirm = {times = 2, apart = "90d"}` says so.
- HbA1c bands: American Diabetes Association, Standards of Care in Diabetes 2024, section 2, Diabetes Care
  2024;47(Suppl 1):S20-S42. Prediabetes is 5.7-6.4 % (39-47 mmol/mol), diabetes 6.5 % (48 mmol/mol) or more.

Values are staged as they are, unrounded: 59.6 is below 60.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ehrseq.errors import TaskError, nearest
from ehrseq.timeline.analytes import ANALYTES

REACHES = {" or worse": "worse", " or better": "better", " only": "only"}


@dataclass(frozen=True)
class Stages:
    """The stages of one quantity.

    `names` go from the lowest values to the highest, `cuts` lie between them: a value that equals a cut is in the
    upper stage. `worse` says which end is the bad one. With `needs_unit` a number without a unit has no stage.
    """

    title: str
    unit: str
    names: tuple[str, ...]
    cuts: tuple[float, ...]
    worse: Literal["lower", "higher"]
    needs_unit: bool = False

    def bounds(self, text: str) -> tuple[float | None, float | None]:
        """The lowest value (inclusive) and the first value above (exclusive) of a stage as a task writes it.

        >>> GFR.bounds("G3b"), GFR.bounds("G3b or better"), GFR.bounds("G3b only")
        ((None, 45.0), (30.0, None), (30.0, 45.0))
        """
        name, reach = text, "worse"
        for suffix, meaning in REACHES.items():
            if text.endswith(suffix):
                name, reach = text.removesuffix(suffix), meaning
        if name not in self.names:
            raise TaskError(f"a stage of {self.title}", f"'{name}'", nearest(name, self.names))
        place = self.names.index(name)
        low = self.cuts[place - 1] if place else None
        high = self.cuts[place] if place < len(self.cuts) else None
        if reach != "only":
            low, high = (None, high) if (reach == "worse") == (self.worse == "lower") else (low, None)
        if low is None and high is None:
            raise TaskError(f"a stage that not everyone is in ({self.title})", f"'{text}'", f"write '{name} only'")
        return low, high


GFR = Stages(
    "CKD by glomerular filtration rate", "mL/min/{1.73_m2}",
    ("G5", "G4", "G3b", "G3a", "G2", "G1"), (15.0, 30.0, 45.0, 60.0, 90.0), "lower",
)  # fmt: skip
HBA1C = Stages("HbA1c", "%", ("normal", "prediabetes", "diabetes"), (5.7, 6.5), "higher", needs_unit=True)
_BY_QUANTITY = {
    "egfr_ckdepi2021": GFR,
    "glomerular filtration rate": GFR,
    "hba1c": HBA1C,
    "haemoglobin A1c": HBA1C,
}


def stages_of(measure: str) -> Stages | None:
    """The stages of a derived measure or a lab code; None where there are none.

    >>> stages_of("LOINC//4548-4").names, stages_of("bmi")
    (('normal', 'prediabetes', 'diabetes'), None)
    """
    analyte = ANALYTES.get(measure)
    return _BY_QUANTITY.get(measure if analyte is None else analyte.name)
