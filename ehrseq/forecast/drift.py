"""Whether a population that was scored is one like that which the model was fitted on.

Each warning needs two things: a difference that matters, by the thresholds below, and one that chance makes in a run of
the same population with a probability below `BY_CHANCE`, all comparisons of the run together (Bonferroni). Nothing is
told of what fewer than `NAMED` people of the run have.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import betainc, betaln

from ehrseq.model.profile import Observed, Profile, Rate, Spread
from ehrseq.timeline.units import common_unit

BY_CHANCE = 0.01  # of the runs of the same population, at most, have a false warning
UNSEEN = 0.05  # of the events, more than in training, that mean nothing to the model
SYSTEM_RATE = 1.5  # times as many, or as few, events of a code system as such records had in training
CODE_RATE = 2.0  # the same of a single code: practice differs more in one test than in all together
EXPECTED = 10  # events, below which nothing can be missing
SHIFT = 0.25  # population stability index, above which a distribution counts as another one
TAIL = 0.04  # more of the values in the tails (those of training's profile) than there were
OTHER_UNIT = 0.10  # more of a code's numbers in units that the model does not read
SEX = 0.10  # difference of a share
NAMED = 10  # people who must have a code that is named, and codes that are named
MOST = 1000  # people whom a tail is reckoned of; the thresholds decide where there are more
NO_PROFILE = "the model has no training profile: fit it again to have scored populations compared"
TOO_FEW = f"fewer than {NAMED} people were asked about"


@dataclass
class _Found:
    """Warnings that chance has to be weighed for: how many comparisons there were, and those that matter."""

    comparisons: int = 0
    warnings: list[tuple[float, dict[str, Any]]] = field(default_factory=list)

    def add(self, chance: float, matters: bool, warning: dict[str, Any]) -> None:
        """One comparison more."""
        self.comparisons += 1
        if matters:
            self.warnings.append((chance, warning))

    def sure(self) -> list[dict[str, Any]]:
        """The warnings that chance does not make."""
        return [warning for chance, warning in self.warnings if chance * self.comparisons < BY_CHANCE]


def drift_of(profile: Profile | None, seen: Observed) -> dict[str, Any]:
    """What `drift.json` holds: `warnings` (each with `kind`, `name`, `detail` in words and figures), the figures of all
    codes and values compared, and the thresholds. Too few people are not compared: the figures would be theirs."""
    if profile is None or seen.subjects < NAMED:
        return {"compared": False, "note": NO_PROFILE if profile is None else TOO_FEW, "warnings": []}
    found = _Found()
    _unseen(profile, seen, found)
    rates = _rates(profile, seen, found)
    values = _values(profile, seen, found)
    _units(profile, seen, found)
    age_shift = _ages(profile, seen, found)
    sexes = _sexes(profile, seen, found)
    unknown = sum(seen.unknown.values())
    return {
        "compared": True, "warnings": found.sure(), "training_subjects": profile.subjects, "subjects": seen.subjects,
        "unseen_events": _ratio(unknown, unknown + seen.known) if seen.unknown_people >= NAMED else None,
        "unseen_events_in_training": profile.unknown, "age_shift": age_shift, "sex": sexes,
        "unseen_codes": _unseen_codes(seen), "rates": rates, "values": values, "comparisons": found.comparisons,
        "thresholds": {
            "by_chance": BY_CHANCE, "unseen_events": UNSEEN, "system_rate": SYSTEM_RATE, "code_rate": CODE_RATE,
            "expected_events": EXPECTED, "stability_index": SHIFT, "tails": TAIL, "other_unit": OTHER_UNIT, "sex": SEX,
            "people": NAMED,
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


def _unseen(profile: Profile, seen: Observed, found: _Found) -> None:
    unknown = sum(seen.unknown.values())
    share = _ratio(unknown, unknown + seen.known)
    named = ", ".join(row["code"] for row in _unseen_codes(seen)[:3]) or f"each of fewer than {NAMED} people"
    detail = f"{share:.0%} of the events have codes that the model does not know ({profile.unknown:.0%} in training)"
    # as many observations as people: one person's hundred visits are one
    chance = _more_by_chance(share, seen.subjects, profile.unknown, profile.subjects)
    matters = share - profile.unknown > UNSEEN and seen.unknown_people >= NAMED
    figures = {"share": share, "training": profile.unknown}
    found.add(chance, matters, _warning("unseen_codes", "unseen codes", f"{detail}: {named}", **figures))


def _rates(profile: Profile, seen: Observed, found: _Found) -> list[dict[str, Any]]:
    """Events observed, and expected of records as long as these were by the rates of training."""
    rows = []
    for key, rate in profile.rates.items():
        pairs = zip(rate.events, profile.years, seen.years, strict=True)
        expected = sum(events / years * mine for events, years, mine in pairs if years > 0)
        if not expected:  # no record has lasted yet: there is nothing to compare with
            continue
        observed, enough = seen.events[key], seen.people[key] >= NAMED
        ratio = _ratio(observed, expected)
        figures = {"expected": expected, "observed": observed if enough else None, "ratio": ratio if enough else None}
        rows.append({"code": key, **figures})
        if not ((enough and observed > expected) or expected >= EXPECTED):
            continue
        system = key.endswith("//*")
        limit = SYSTEM_RATE if system else CODE_RATE
        kind = "event_rate" if system else "code_rate" if enough else "missing_code"
        how = f"{observed:,} events" if enough else f"fewer than {NAMED} people have it"
        warning = _warning(
            kind, key, f"{key}: {how}, {expected:,.0f} {'' if enough else 'events '}expected of records like those of "
            "training", **(figures if enough else {"expected": expected}),
        )  # fmt: skip
        chance = _rate_by_chance(rate, observed, seen.squares[key], expected)
        found.add(chance, (enough and ratio > limit) or ratio < 1 / limit, warning)
    return rows


def _rate_by_chance(rate: Rate, observed: int, squares: int, expected: float) -> float:
    """How likely counts at least as far on their side of the expectation are, twice over: both sides count.

    Counts are negative binomial. Their variance allows for subjects who differ more than chance has it (as in training,
    or for a rise as here, where a few may have many), and for the training events that the expectation rests on.

    >>> round(_rate_by_chance(Rate((1e9, 0, 0), 1.0), 5, 5, 15.0), 5)  # twice a Poisson tail
    0.00558
    """
    spread = max(rate.dispersion, squares / observed if observed > expected else 1.0)
    variance = spread * (1 + expected / sum(rate.events))
    size, p = expected / (variance - 1), 1 / variance
    below = float(betainc(size, observed + 1, p))
    above = float(betainc(observed, size, 1 - p)) if observed else 1.0
    return min(1.0, 2 * min(below, above))


# -- values


def _values(profile: Profile, seen: Observed, found: _Found) -> list[dict[str, Any]]:
    """How the last values are spread, those that enough people have."""
    rows = []
    for (code, unit), training in profile.values.items():
        bins = seen.values.get((code, unit), [])
        n, usual = sum(bins), training.outside
        if n < NAMED:
            continue
        index = _stability(training.spread.shares, bins)
        outside = _ratio(seen.outside[code, unit], n)
        tails = _in_tens(seen.outside[code, unit], n)
        figures = {"stability_index": round(index, 2), "tails": tails}
        rows.append({"code": code, "unit": unit or None, "subjects": n, **figures, "tails_in_training": usual})
        words = f"{code} ({unit or 'no unit'}): values unlike those of training"
        outer = "" if training.low is None else f"; {tails:.0%} in their outer {usual:.0%}"
        detail = f"{words} (stability index {index:.2f}{outer}): look at its units"
        tailed = outside - usual > TAIL and seen.outside[code, unit] >= NAMED
        chances = [
            *([_shift_by_chance(training.spread, bins)] if index > SHIFT else []),
            *([_more_by_chance(outside, n, usual, training.spread.subjects)] if tailed else []),
        ]
        # two comparisons of one code
        found.add(1.0, False, {})
        found.add(min(chances, default=1.0), index > SHIFT or tailed, _warning("values", code, detail, **figures))
    return rows


def _stability(shares: tuple[float, ...], counts: list[int]) -> float:
    """Population stability index of counts against shares of training: 0 for the same, above .25 for another one.

    >>> round(_stability((0.5, 0.5), [50, 50]), 3), round(_stability((0.5, 0.5), [90, 10]), 2)
    (0.0, 0.85)
    """
    n = sum(counts)
    if not n:
        return 0.0
    expected = (np.array(shares) + 0.5 / n) / (1 + 0.5 / n * len(shares))
    observed = (np.array(counts) + 0.5) / (n + 0.5 * len(shares))
    return float(((observed - expected) * np.log(observed / expected)).sum())


def _units(profile: Profile, seen: Observed, found: _Found) -> None:
    for code, usual in profile.other_units.items():
        if seen.measured[code] < NAMED:
            continue
        units = {unit: n for (c, unit), n in seen.numbers.items() if c == code}
        other = {unit: n for unit, n in units.items() if (code, unit) not in profile.values}
        share = _ratio(sum(other.values()), sum(units.values()))
        training = max((v.spread.subjects for (c, _), v in profile.values.items() if c == code), default=0)
        chance = _more_by_chance(share, seen.measured[code], usual, training)
        matters = share - usual > OTHER_UNIT and seen.other_unit_people[code] >= NAMED
        detail = f"{code}: {share:.0%} of the numbers in units that the model does not read"
        worst = max(other, key=lambda unit: (other[unit], unit), default="")
        # what stands as a unit may be any text, of one record
        named = (common_unit(worst) if worst else "none") if seen.unit_people[code, worst] >= NAMED else None
        warning = _warning("unit", code, f"{detail} ({named or 'another unit'})", share=share, training=usual)
        found.add(chance, matters, warning)


# -- people


def _in_tens(count: int, of: int) -> float:
    """A share of people whose number is told in tens: one person more or less does not show.

    >>> _in_tens(19, 20), _in_tens(1, 20)
    (1.0, 0.0)
    """
    return min(1.0, _ratio(NAMED * round(count / NAMED), of))


def _sexes(profile: Profile, seen: Observed, found: _Found) -> dict[str, list[float]]:
    """Share among those scored, and in training, of the sexes that enough people have."""
    told = {}
    for name in sorted({*profile.sex, *(name for name, n in seen.sex.items() if n >= NAMED)}):
        usual, count = profile.sex.get(name, 0.0), seen.sex[name]
        share, shown = _ratio(count, seen.subjects), _in_tens(count, seen.subjects)
        told[name] = [shown, usual]
        less = share < usual
        sides = (1 - share, 1 - usual) if less else (share, usual)
        chance = 2 * _more_by_chance(sides[0], seen.subjects, sides[1], profile.subjects)
        detail = f"sex {name}: {shown:.0%} of the subjects, {usual:.0%} in training"
        found.add(chance, abs(share - usual) > SEX, _warning("sex", name, detail, share=shown))
    return told


def _ages(profile: Profile, seen: Observed, found: _Found) -> float | None:
    """How far ages are from those of training, both at the start of follow-up and at its end, whichever is nearer.

    Whoever asks about an earlier date finds people younger than at the end of their follow-up, but they began it at the
    same age; records that reach less far back begin later, but end at the same age: neither makes another population.
    """
    bins = {"start": seen.start_ages, "end": seen.end_ages}
    if sum(seen.end_ages) < NAMED:
        return None
    index = min(_stability(profile.ages[name].shares, n) for name, n in bins.items())
    chance = max(_shift_by_chance(profile.ages[name], n) for name, n in bins.items())
    detail = f"ages unlike those of training (stability index {index:.2f})"
    found.add(chance, index > SHIFT, _warning("age", "age", detail, stability_index=round(index, 2)))
    return round(index, 2)


# -- chance


def _shift_by_chance(training: Spread, bins: list[int]) -> float:
    """How likely people of the same population differ as much in how many are below some edge, all edges together."""
    below, usual = np.cumsum(bins)[:-1], np.cumsum(training.shares)[:-1]
    n, least = sum(bins), 1.0
    for k, share in zip(below, usual, strict=True):
        low = _more_by_chance(1 - k / n, n, 1 - share, training.subjects)
        least = min(least, low, _more_by_chance(k / n, n, share, training.subjects))
    return min(1.0, 2 * len(usual) * least)


def _more_by_chance(share: float, n: int, usual: float, trained: int) -> float:
    """How likely `n` people of the same population have at least this share, where `trained` had the usual one.

    A beta-binomial tail: binomial, the share in the population itself being known from the training people alone.

    >>> round(_more_by_chance(0.6, 10, 0.5, 10**9), 4)  # a coin: 386 / 1024
    0.377
    """
    n = min(n, MOST)
    k = int(np.ceil(share * n - 1e-9))
    a, b = usual * trained + 0.5, (1 - usual) * trained + 0.5
    x: NDArray[np.float64] = np.arange(k, n + 1, dtype=np.float64)
    logs = betaln(x + a, n - x + b) - betaln(a, b) - betaln(n - x + 1, x + 1) - np.log(n + 1)
    return float(min(1.0, np.exp(logs).sum()))
