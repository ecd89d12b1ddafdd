"""Whether a population that was scored is one like that which the model was fitted on.

Each warning needs two things: a difference that matters, by the thresholds below, and one that chance does not make
(`SURE` standard errors, as some hundred comparisons are made of every run).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from ehrseq.model.profile import Observed, Profile

SURE = 4.0  # standard errors: one false warning in 16,000 comparisons
UNSEEN = 0.05  # of the events, more than in training, that mean nothing to the model
SYSTEM_RATE = 1.5  # times as many, or as few, events of a code system as such records had in training
CODE_RATE = 2.0  # the same of a single code: practice differs more in one test than in all together
SHIFT = 0.25  # population stability index, above which a distribution counts as another one
TAIL = 0.04  # more of the values in the tails (beyond the 1% and 99% quantiles of training) than there were
OTHER_UNIT = 0.10  # more of a code's numbers in units that the model does not read
SEX = 0.10  # difference of a share
NAMED = 10  # people who must have a code that is named, and codes that are named
NO_PROFILE = "the model has no training profile: fit it again to have scored populations compared"


def drift_of(profile: Profile | None, seen: Observed) -> dict[str, Any]:
    """What `drift.json` holds: `warnings` (each with `kind`, `name`, `detail` in words and figures), the figures of all
    codes and values compared, and the thresholds."""
    if profile is None:
        return {"compared": False, "note": NO_PROFILE, "warnings": []}
    rates = list(_rates(profile, seen))
    values = list(_values(profile, seen))
    unknown = sum(seen.unknown.values())
    facts = {
        "training_subjects": profile.subjects, "subjects": seen.subjects,
        "unseen_events": _ratio(unknown, unknown + seen.known), "unseen_events_in_training": profile.unknown,
        "age_shift": _stability(profile.age_shares, seen.ages), "sex": _sexes(profile, seen),
    }  # fmt: skip
    warnings = [
        *_unseen_warnings(profile, seen), *_rate_warnings(rates), *_value_warnings(values),
        *_unit_warnings(profile, seen), *_people_warnings(profile, seen),
    ]  # fmt: skip
    return {
        "compared": True, "warnings": warnings, **facts, "unseen_codes": _unseen_codes(seen), "rates": rates,
        "values": values,
        "thresholds": {
            "standard_errors": SURE, "unseen_events": UNSEEN, "system_rate": SYSTEM_RATE, "code_rate": CODE_RATE,
            "stability_index": SHIFT, "tails": TAIL, "other_unit": OTHER_UNIT, "sex": SEX,
        },
    }  # fmt: skip


def summary_lines(drift: dict[str, Any], at_most: int = 8) -> list[str]:
    """A few lines for people: what is warned of, or that nothing is.

    >>> summary_lines({"compared": True, "warnings": [], "subjects": 1200, "training_subjects": 9000})
    ['no drift: these 1,200 subjects look like the 9,000 that the model was fitted on']
    """
    if not drift["compared"]:
        return [f"drift: not looked for, as {drift['note']}"]
    found = drift["warnings"]
    if not found:
        return [
            f"no drift: these {drift['subjects']:,} subjects look like the {drift['training_subjects']:,} that the "
            "model was fitted on"
        ]
    lines = [f"DRIFT: {len(found)} warnings; the forecasts may mislead (all figures: drift.json)"]
    lines += [f"  {warning['detail']}" for warning in found[:at_most]]
    return lines + ([f"  and {len(found) - at_most} more"] if len(found) > at_most else [])


def _warning(kind: str, name: str, detail: str, **figures: float) -> dict[str, Any]:
    return {"kind": kind, "name": name, "detail": detail, **figures}


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


# -- codes


def _unseen_codes(seen: Observed) -> list[dict[str, Any]]:
    """The most frequent codes that mean nothing to the model, among those that enough people have."""
    counts = {code: n for code, n in seen.unknown.items() if seen.unknown_subjects[code] >= NAMED}
    codes = sorted(counts, key=lambda code: (-counts[code], code))[:NAMED]
    return [{"code": c, "events": counts[c], "subjects": seen.unknown_subjects[c]} for c in codes]


def _unseen_warnings(profile: Profile, seen: Observed) -> Iterator[dict[str, Any]]:
    unknown = sum(seen.unknown.values())
    share = _ratio(unknown, unknown + seen.known)
    # of as many people as have it, not events: one person's hundred visits are one observation
    people = max(seen.unknown_subjects.values(), default=0)
    error = np.sqrt(max(profile.unknown, 1 / profile.subjects) / max(seen.subjects, 1))
    if share - profile.unknown > UNSEEN and people >= NAMED and share - profile.unknown > SURE * error:
        named = ", ".join(row["code"] for row in _unseen_codes(seen)[:3])
        detail = (
            f"{share:.0%} of the events have codes that the model does not know ({profile.unknown:.0%} in training): "
        )
        yield _warning("unseen_codes", "unseen codes", detail + named, share=share, training=profile.unknown)


def _rates(profile: Profile, seen: Observed) -> Iterator[dict[str, Any]]:
    """Events observed, and expected of records as long as these were by the rates of training."""
    for key, rate in profile.rates.items():
        n = sum(rate.events)
        pairs = zip(rate.events, profile.years, seen.years, strict=True)
        expected = sum(events / years * mine for events, years, mine in pairs if years > 0)
        observed = seen.events[key]
        # the expectation is uncertain too, by the training events that it rests on
        error = np.sqrt(rate.dispersion * expected * (1 + _ratio(expected, n)))
        yield {
            "code": key, "observed": observed, "expected": expected, "ratio": _ratio(observed, expected),
            "standard_errors": _ratio(observed - expected, float(error)),
        }  # fmt: skip


def _rate_warnings(rates: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for system in (True, False):
        worth = [row for row in rates if row["code"].endswith("//*") == system]
        for row in sorted(worth, key=lambda row: -abs(row["standard_errors"])):
            limit = SYSTEM_RATE if system else CODE_RATE
            if abs(row["standard_errors"]) < SURE or 1 / limit <= row["ratio"] <= limit:
                continue
            kind = "event_rate" if system else "code_rate" if row["observed"] else "missing_code"
            how = f"{row['observed']:,} events, {row['expected']:,.0f} expected of records like those of training"
            name = row["code"]
            yield _warning(kind, name, f"{name}: {how}", **{k: row[k] for k in ("observed", "expected", "ratio")})


# -- values


def _values(profile: Profile, seen: Observed) -> Iterator[dict[str, Any]]:
    for (code, unit), training in profile.values.items():
        bins = seen.values.get((code, unit), [0] * len(training.shares))
        n = sum(bins)
        outside = _ratio(seen.outside[code, unit], n)
        yield {
            "code": code, "unit": unit or None, "subjects": n, "stability_index": _stability(training.shares, bins),
            "stability_index_by_chance": _by_chance(len(training.shares), n, training.subjects), "tails": outside,
            "tails_in_training": training.outside,
        }  # fmt: skip


def _stability(shares: tuple[float, ...], counts: list[int]) -> float:
    """Population stability index of counts against shares of training: 0 for the same, above .25 for another one.

    >>> round(_stability((0.5, 0.5), [50, 50]), 3), round(_stability((0.5, 0.5), [90, 10]), 2)
    (0.0, 0.87)
    """
    n = sum(counts)
    if not n:
        return 0.0
    expected = (np.array(shares) + 0.5 / n) / (1 + 0.5 / n * len(shares))
    observed = (np.array(counts) + 0.5) / (n + 0.5 * len(shares))
    return float(((observed - expected) * np.log(observed / expected)).sum())


def _by_chance(bins: int, n: int, training: int) -> float:
    """The index that people of the same population stay below: its mean and SURE standard deviations (chi-squared)."""
    free = bins - 1
    return float((free + SURE * np.sqrt(2 * free)) * (1 / max(n, 1) + 1 / max(training, 1)))


def _value_warnings(values: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for row in sorted(values, key=lambda row: -row["stability_index"]):
        index, tails, usual = row["stability_index"], row["tails"], row["tails_in_training"]
        error = np.sqrt(max(usual, 0.01) / max(row["subjects"], 1))
        shifted = index > max(SHIFT, row["stability_index_by_chance"])
        tailed = tails - usual > max(TAIL, SURE * error)
        if shifted or tailed:
            name = row["code"]
            words = f"{name} ({row['unit'] or 'no unit'}): values unlike those of training"
            detail = f"{words} (stability index {index:.2f}; {tails:.0%} in their outer 2%): look at its units"
            yield _warning("values", name, detail, stability_index=index, tails=tails)


def _unit_warnings(profile: Profile, seen: Observed) -> Iterator[dict[str, Any]]:
    for code, usual in profile.other_units.items():
        units = {unit: n for (c, unit), n in seen.numbers.items() if c == code}
        other = {unit: n for unit, n in units.items() if (code, unit) not in profile.values}
        share = _ratio(sum(other.values()), sum(units.values()))
        if share - usual > OTHER_UNIT and sum(other.values()) >= NAMED:
            # a unit as written may be any text: only what looks like one is repeated
            worst = max(other, key=lambda unit: (other[unit], unit))
            shown = worst if re.fullmatch(r"[\w%/.\[\]{}*^-]{1,20}", worst) else "another unit"
            detail = f"{code}: {share:.0%} of the numbers in units that the model does not read ({shown or 'none'})"
            yield _warning("unit", code, detail, share=share, training=usual)


# -- people


def _sexes(profile: Profile, seen: Observed) -> dict[str, list[float]]:
    """Share among those scored, and in training."""
    names = sorted({*profile.sex, *seen.sex})
    return {name: [_ratio(seen.sex[name], seen.subjects), profile.sex.get(name, 0.0)] for name in names}


def _people_warnings(profile: Profile, seen: Observed) -> Iterator[dict[str, Any]]:
    index = _stability(profile.age_shares, seen.ages)
    if index > max(SHIFT, _by_chance(len(profile.age_shares), sum(seen.ages), profile.subjects)):
        yield _warning(
            "age", "age", f"ages unlike those of training (stability index {index:.2f})", stability_index=index
        )
    for name, (share, usual) in _sexes(profile, seen).items():
        error = np.sqrt(max(usual * (1 - usual), 0.01) * (1 / max(seen.subjects, 1) + 1 / profile.subjects))
        if abs(share - usual) > max(SEX, SURE * float(error)):
            yield _warning(
                "sex", name, f"sex {name}: {share:.0%} of the subjects, {usual:.0%} in training", share=share
            )
