"""What is measured, by LOINC code: one unit for each analyte, and what it takes to convert others into it.

Sources: LOINC (https://loinc.org) for codes and their properties. Molar masses are those of the molecular formulas by
the standard atomic weights (IUPAC 2021, abridged); a test computes them and compares the factors that they give with
the published ones of the AMA Manual of Style (11th edition, 17.5, conversion to SI units). Where a unit counts
something else than a whole molecule, the remark says what.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Analyte:
    """One thing that is measured.

    `unit` is a UCUM code. `molar_mass` (g/mol) turns amounts of substance into mass and back, `valence` equivalents
    into moles.
    """

    name: str
    unit: str
    codes: tuple[str, ...]
    molar_mass: float | None = None
    valence: int | None = None


_ANALYTES = (
    # chemistry
    Analyte(
        "glucose",
        "mg/dL",
        ("2345-7", "2339-0", "2341-6", "41653-7", "1558-6", "14749-6", "15074-8", "14771-0"),
        molar_mass=180.156,
    ),
    Analyte("creatinine", "mg/dL", ("2160-0", "38483-4", "14682-9", "59826-8"), molar_mass=113.12),
    Analyte("haemoglobin A1c", "%", ("4548-4", "17856-6", "4549-2", "59261-8")),
    Analyte("cholesterol", "mg/dL", ("2093-3", "14647-2"), molar_mass=386.664),
    Analyte("HDL cholesterol", "mg/dL", ("2085-9", "14646-4"), molar_mass=386.664),
    Analyte("LDL cholesterol", "mg/dL", ("2089-1", "13457-7", "18262-6", "22748-8", "39469-2"), molar_mass=386.664),
    Analyte("triglycerides", "mg/dL", ("2571-8", "14927-8"), molar_mass=885.453),  # as triolein
    Analyte("bilirubin", "mg/dL", ("1975-2", "14631-6"), molar_mass=584.673),
    Analyte("direct bilirubin", "mg/dL", ("1968-7", "14629-0"), molar_mass=584.673),
    Analyte("urea nitrogen", "mg/dL", ("3094-0", "6299-2", "14937-7"), molar_mass=28.014),  # two atoms
    Analyte("urea", "mg/dL", ("3091-6", "22664-7"), molar_mass=60.056),
    Analyte("urate", "mg/dL", ("3084-1", "14933-6"), molar_mass=168.112),
    Analyte("calcium", "mg/dL", ("17861-6", "2000-8"), molar_mass=40.078, valence=2),
    Analyte("ionised calcium", "mmol/L", ("1994-3", "1995-0", "17863-2"), molar_mass=40.078, valence=2),
    Analyte("magnesium", "mg/dL", ("19123-9", "2601-3"), molar_mass=24.305, valence=2),
    Analyte("phosphate", "mg/dL", ("2777-1", "14879-1"), molar_mass=30.974),  # as phosphorus
    Analyte("sodium", "mmol/L", ("2951-2", "2947-0"), molar_mass=22.990, valence=1),
    Analyte("potassium", "mmol/L", ("2823-3", "6298-4"), molar_mass=39.098, valence=1),
    Analyte("chloride", "mmol/L", ("2075-0", "2069-3"), molar_mass=35.45, valence=1),
    Analyte("bicarbonate", "mmol/L", ("1963-8", "1959-6"), valence=1),
    Analyte("carbon dioxide", "mmol/L", ("2028-9", "20565-8"), valence=1),
    Analyte("lactate", "mmol/L", ("2524-7", "32693-4"), molar_mass=90.078),
    Analyte("iron", "ug/dL", ("2498-4", "14798-3"), molar_mass=55.845),
    Analyte("ferritin", "ng/mL", ("2276-4",)),
    Analyte("25-hydroxyvitamin D", "ng/mL", ("1989-3", "62292-8"), molar_mass=400.647),
    Analyte("vitamin B12", "pg/mL", ("2132-9",), molar_mass=1355.388),
    Analyte("folate", "ng/mL", ("2284-8",), molar_mass=441.404),
    Analyte("free thyroxine", "ng/dL", ("3024-7", "14920-3"), molar_mass=776.874),
    Analyte("thyrotropin", "m[IU]/L", ("3016-3",)),
    Analyte("C reactive protein", "mg/L", ("1988-5", "30522-7")),
    Analyte("albumin", "g/dL", ("1751-7",)),
    Analyte("protein", "g/dL", ("2885-2",)),
    Analyte("globulin", "g/dL", ("10834-0",)),
    Analyte("urine albumin/creatinine", "mg/g", ("9318-7", "14959-1", "32294-1"), molar_mass=113.12),  # of creatinine
    Analyte("alanine aminotransferase", "U/L", ("1742-6",)),
    Analyte("aspartate aminotransferase", "U/L", ("1920-8",)),
    Analyte("alkaline phosphatase", "U/L", ("6768-6",)),
    Analyte("gamma glutamyl transferase", "U/L", ("2324-2",)),
    Analyte("lactate dehydrogenase", "U/L", ("2532-0", "14804-9")),
    Analyte("creatine kinase", "U/L", ("2157-6",)),
    Analyte("lipase", "U/L", ("3040-3",)),
    Analyte("amylase", "U/L", ("1798-8",)),
    # blood count
    Analyte("haemoglobin", "g/dL", ("718-7", "59260-0"), molar_mass=16114.5),  # of one of its four subunits
    Analyte("haematocrit", "%", ("4544-3", "20570-8", "4545-0")),
    Analyte("mean corpuscular haemoglobin concentration", "g/dL", ("786-4",)),
    Analyte("leukocytes", "10*3/uL", ("6690-2", "26464-8")),
    Analyte("erythrocytes", "10*6/uL", ("789-8", "26453-1")),
    Analyte("platelets", "10*3/uL", ("777-3", "26515-7")),
    # kidney function and blood gases
    Analyte(
        "glomerular filtration rate",
        "mL/min/{1.73_m2}",
        ("33914-3", "48642-3", "48643-1", "62238-1", "77147-7", "98979-8"),
    ),
    Analyte("oxygen pressure", "mm[Hg]", ("2703-7", "11556-8")),
    Analyte("carbon dioxide pressure", "mm[Hg]", ("2019-8", "11557-6")),
    Analyte("oxygen saturation", "%", ("2708-6", "59408-5")),
    # vital signs and body measurements
    Analyte("body weight", "kg", ("29463-7", "3141-9", "3142-7")),
    Analyte("body height", "cm", ("8302-2", "8301-4", "3137-7", "3138-5", "8306-3", "8308-9")),
    Analyte("head circumference", "cm", ("9843-4", "8287-5")),
    Analyte("waist circumference", "cm", ("8280-0", "56086-2")),
    Analyte("body mass index", "kg/m2", ("39156-5",)),
    Analyte("body temperature", "Cel", ("8310-5", "8331-1", "8332-9", "8328-7", "8333-7")),
    Analyte("systolic blood pressure", "mm[Hg]", ("8480-6", "8459-0", "8460-8", "8461-6")),
    Analyte("diastolic blood pressure", "mm[Hg]", ("8462-4", "8453-3", "8454-1", "8455-8")),
    Analyte("mean blood pressure", "mm[Hg]", ("8478-0",)),
    Analyte("heart rate", "/min", ("8867-4",)),
    Analyte("respiratory rate", "/min", ("9279-1",)),
)

ANALYTES: dict[str, Analyte] = {f"LOINC//{code}": analyte for analyte in _ANALYTES for code in analyte.codes}
"""Analyte of each event code."""
