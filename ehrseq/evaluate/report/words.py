"""Plain sentences about an evaluation, from its rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]
NAMES = {"auc": "AUC", "brier": "Brier score"}
DIGITS = {"auc": 3, "brier": 5}
MODELS = {
    "hybrid": "a blend of the transformer and boosted hazards",
    "transformer": "a neural network that reads the events one by one",
    "boosted": "boosted trees on a summary of the record",
    "cox": "a linear hazard model on a summary of the record",
    "age_sex": "age and sex alone: what any model must beat",
    "null": "the same forecast for everybody",
}


def findings(report: Mapping[str, Any]) -> list[str]:
    """What a reader should take away: who wins, whether the level fits, what was flagged, which audits failed."""
    main = report["main_horizon"]
    first = _first(report["table"])
    if first is None or main is None:
        return ["Nobody at risk could be judged."]
    rows = [r for r in report["table"] if r["model"] == first and r["horizon"] == main]
    gaps = [g for g in report["differences"] if g["horizon"] == main]
    others = dict.fromkeys(g["against"] for g in gaps)
    lines = [compared(first, other, main, report["macro"], gaps) for other in others]
    lines.append(_levels(first, main, rows))
    flagged = [t for t in report["group_tests"] if t["flagged"]]
    made = [t for t in report["group_tests"] if t["p"] is not None]
    if flagged:
        lines += [flag(t) for t in flagged]
    elif made:
        lines.append(f"No group differs from everybody else beyond chance ({len(made)} tests, adjusted together).")
    else:
        lines.append("Groups were not tested: too few events, people or bootstrap replicates.")
    lines += _audits(report["study"].get("audits") or [])
    told = explanation(report)
    return [*lines, f"Flag: explanations. {told}"] if told.startswith("Below") else lines


def explanation(report: Mapping[str, Any]) -> str:
    """Whether explanations can be relied on, as far as `facts` says what was measured.

    >>> explanation({"facts": {"faithfulness": {"gates": {"deletion": "passed", "insertion": "failed"}}}})
    'Below the faithfulness gate (insertion): do not rely on explanations of these forecasts.'
    """
    measured = report["facts"].get("faithfulness")
    if measured is None:
        return (
            "Not measured. For a model of ehrseq: model.check_faithfulness(timelines), then save and evaluate it again;"
            " forecasts that come as a table cannot be explained here."
        )
    failed = [name for name, result in measured["gates"].items() if result != "passed"]
    if failed:
        return f"Below the faithfulness gate ({', '.join(failed)}): do not rely on explanations of these forecasts."
    return f"The faithfulness gate was passed ({', '.join(measured['gates'])})."


def verdicts(report: Mapping[str, Any], cell: Row) -> list[str]:
    """For one outcome and landmark, at the main horizon: the judged model against each other one, and its level."""
    main = report["main_horizon"]
    row = next((r for r in report["table"] if _same(r, cell) and r["horizon"] == main), None)
    if row is None:
        return []
    gaps = [g for g in report["differences"] if _same(g, row) and g["horizon"] == main]
    return [*_wins(row, gaps), f"{row['model']}: {_level(row)}."]


def flag(test: Row) -> str:
    """One flagged test as a sentence.

    >>> flag({"outcome": "t2d", "landmark": None, "horizon": "5y", "attribute": "sex", "group": "female", "p_adjusted":
    ...       0.001, "question": "discrimination", "difference": -0.05, "lower": -0.08, "upper": -0.02})
    'Flag: t2d, by 5y, sex female: AUC -0.050 (-0.080 to -0.020) from everybody else; adjusted p 0.001.'
    """
    where = f"{_place(test)}, {test['attribute']} {test['group']}"
    spread = f"({signed(test['lower'])} to {signed(test['upper'])})"
    if test["question"] == "calibration":
        what = f"log of observed over expected {signed(test['difference'])} {spread} from everybody else"
    elif test["question"] == "discrimination":
        what = f"AUC {signed(test['difference'])} {spread} from everybody else"
    else:
        what = f"net benefit {signed(test['difference'])} {spread} from that of the best strategy without a forecast"
    p = "below 0.001" if test["p_adjusted"] < 0.001 else f"{test['p_adjusted']:.3f}"
    return f"Flag: {where}: {what}; adjusted p {p}."


def signed(value: float | None, digits: int = 3) -> str:
    """A difference with its sign, or a dash.

    >>> signed(0.0123), signed(None)
    ('+0.012', '-')
    """
    return "-" if value is None else f"{value:+.{digits}f}"


def limits(report: Mapping[str, Any]) -> list[str]:
    """What the figures cannot tell, as far as the content itself shows it."""
    study = report.get("study", {})
    lines = [
        "The figures hold for people like those judged here, recorded as they were here. Another site needs its own.",
        "A forecast says what happened to people with such records, not what a treatment would change.",
        "Intervals come from drawing these subjects again; they do not cover what fitting the model anew would change.",
    ]
    if any(row["weights"] == "conditional" for row in report["table"]):
        lines.append(
            "Censoring is weighted by a model of who is still observed, given what was known at the prediction time; "
            "what follow-up depends on beyond that stays in the figures. The intervals take these weights as given."
        )
    if any(row["unscored"] for row in report["table"]):
        lines.append("Some people at risk have no forecast of some model, and no model is judged on them.")
    empty = [row for row in report["table"] if row["reason"]]
    if empty:
        lines.append(f"{len(empty)} cells of the main table have a measure that cannot be given; each says why.")
    rules = study.get("records", {}).get("follow_up_rules", {})
    if any(rule.startswith("last_contact") for rule in rules):
        lines.append(
            "For some subjects follow-up ends with the last record, for want of a data cut: whoever is at risk has a "
            "later record, so that the risk of anything that is itself a record comes out too high."
        )
    return lines


def _first(table: Sequence[Row]) -> str | None:
    return table[0]["model"] if table else None


def _same(a: Row, b: Row) -> bool:
    return (a["outcome"], a["landmark"]) == (b["outcome"], b["landmark"])


def _place(row: Row) -> str:
    landmark = f"from {row['landmark']}, " if row["landmark"] else ""
    return f"{row['outcome']}, {landmark}by {row['horizon']}"


def _verdict(gap: Row) -> str | None:
    """Whether the first model is better, worse or neither by one measure; None where that is not known."""
    if gap["difference"] is None or gap["lower"] is None:
        return None
    if gap["lower"] <= 0 <= gap["upper"]:
        return "not told apart"
    higher_is_better = gap["measure"] in ("auc", "concordance", "ibs_skill")
    return "better" if (gap["difference"] > 0) == higher_is_better else "worse"


def compared(first: str, other: str, main: str, macro: Sequence[Row], gaps: Sequence[Row]) -> str:
    """Whether the first model does better than another: over all outcomes and landmarks, and place by place.

    >>> row = {"against": "age_sex", "measure": "auc", "places": 1, "difference": 0.1, "lower": 0.05, "upper": 0.15}
    >>> compared("hybrid", "age_sex", "5y", [row], [row])
    'hybrid does better than age_sex at 5y: AUC +0.100 (+0.050 to +0.150).'
    """
    means = [r for r in macro if r["against"] == other and _verdict(r) is not None]
    said = {_verdict(r) for r in means} - {"not told apart"}
    if not means:
        return f"{first} was not compared with {other}, for want of events or intervals."
    places = max(r["places"] for r in means)
    where = f", over all {places} places" if places > 1 else ""
    apart = [NAMES[r["measure"]] for r in means if _verdict(r) != "not told apart"]
    verdict = f"cannot be told apart from {other}"
    if len(said) > 1:
        verdict = f"is better by one measure and worse by another than {other}"
    elif said:
        verdict = f"does {said.pop()} than {other}" + (f" by {apart[0]} alone," if len(apart) < len(means) else "")
    shown = "; ".join(_spread(r) for r in means)
    text = f"{first} {verdict} at {main}{where}: {shown}."
    return text if places == 1 else f"{text} {_tally([g for g in gaps if g['against'] == other])}"


def _spread(gap: Row) -> str:
    digits = DIGITS[gap["measure"]]
    ends = f"{signed(gap['lower'], digits)} to {signed(gap['upper'], digits)}"
    return f"{NAMES[gap['measure']]} {signed(gap['difference'], digits)} ({ends})"


def _tally(gaps: Sequence[Row]) -> str:
    """In how many places the first model wins."""
    parts = []
    for measure, word in NAMES.items():
        said = [_verdict(g) for g in gaps if g["measure"] == measure]
        known = [v for v in said if v is not None]
        if known:
            counts = ", ".join(f"{v} in {known.count(v)}" for v in ("better", "worse", "not told apart") if v in known)
            parts.append(f"{word} {counts} of {len(said)}")
    return f"Place by place: {'; '.join(parts)}." if parts else ""


def _audits(audits: Sequence[Row]) -> list[str]:
    """Which checks failed, and how many held."""
    checks = [a for a in audits if a["passed"] is not None]
    failed = [f"Flag: the audit '{a['name']}' failed. {a['statement']}" for a in checks if not a["passed"]]
    if not checks:
        return []
    names = ", ".join(a["name"].lower() for a in checks if a["passed"])
    return [*failed, *([f"Audits that held: {names}."] if names else [])]


def _levels(first: str, main: str, rows: Sequence[Row]) -> str:
    known = [r for r in rows if r["observed_expected"] is not None and r["observed_expected_lower"] is not None]
    off = [r for r in known if not r["observed_expected_lower"] <= 1 <= r["observed_expected_upper"]]
    if not known:
        return f"Whether {first} forecasts as many events as happen cannot be said, for want of events or intervals."
    text = f"On average as many events happened as {first} forecast by {main} in {len(known) - len(off)} of"
    text += f" {len(rows)} places"
    places = "; ".join(f"{_place(r)}, where {_level(r)}" for r in off)
    return f"{text}; not for {places}." if off else f"{text}, as far as the intervals tell."


def _wins(row: Row, gaps: Sequence[Row]) -> list[str]:
    """How the first model fares against each other one, by AUC and Brier score."""
    lines = []
    for other in dict.fromkeys(g["against"] for g in gaps):
        said = []
        for measure, word in NAMES.items():
            gap = next((g for g in gaps if g["against"] == other and g["measure"] == measure), None)
            verdict = None if gap is None else _verdict(gap)
            if gap is not None and verdict is not None:
                digits = DIGITS[measure]
                spread = f"{signed(gap['lower'], digits)} to {signed(gap['upper'], digits)}"
                said.append(f"{word} {verdict} ({signed(gap['difference'], digits)}, {spread})")
        lines.append(f"{row['model']} against {other}: {'; '.join(said) or 'not compared'}.")
    return lines


def _level(row: Row) -> str:
    """Whether the mean forecast fits what was observed."""
    ratio, low, high = (row[f"observed_expected{end}"] for end in ("", "_lower", "_upper"))
    if ratio is None:
        return "how its forecasts fit on average cannot be judged"
    shown = f"observed over expected {ratio:.2f}"
    if low is None:
        return shown
    shown += f" ({low:.2f} to {high:.2f})"
    if low <= 1 <= high:
        return f"it forecasts as many events as happened, as far as the interval tells, {shown}"
    return f"it forecasts too {'few' if low > 1 else 'many'} events, {shown}"
