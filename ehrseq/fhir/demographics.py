"""Race and ethnicity, as US Core writes them."""

from __future__ import annotations

from ehrseq.fhir.datatypes import Coding, Extension

US_CORE = "http://hl7.org/fhir/us/core/structuredefinition/us-core-"
RACES = {
    "1002-5": "american_indian_or_alaska_native",
    "2028-9": "asian",
    "2054-5": "black",
    "2076-8": "pacific_islander",
    "2106-3": "white",
    "2131-1": "other",
}
ETHNICITIES = {"2135-2": "hispanic", "2186-5": "not_hispanic"}


def us_core(extensions: list[Extension]) -> tuple[list[str], list[str]]:
    """Names of the race and ethnicity categories in US Core extensions, sorted.

    >>> black = Extension(url="ombCategory", value_coding=Coding(code="2054-5"))
    >>> us_core([Extension(url=US_CORE + "race", extension=[black])])
    (['black'], [])
    """
    race: set[str] = set()
    ethnicity: set[str] = set()
    for extension in extensions:
        url = (extension.url or "").lower()
        if not url.startswith(US_CORE):
            continue
        for coding in _codings(extension):
            if coding.code in RACES and url.endswith("race"):
                race.add(RACES[coding.code])
            elif coding.code in ETHNICITIES and url.endswith("ethnicity"):
                ethnicity.add(ETHNICITIES[coding.code])
    return sorted(race), sorted(ethnicity)


def _codings(extension: Extension) -> list[Coding]:
    inner = [part for part in extension.extension or () if part.url == "ombCategory"]
    codings = [part.value_coding for part in [extension, *inner] if part.value_coding is not None]
    if extension.value_codeable_concept is not None:
        codings += extension.value_codeable_concept.coding or []
    return codings
