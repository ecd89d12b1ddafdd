"""An evaluation as text tables for the terminal."""

from __future__ import annotations

import polars as pl

MEASURES = ("observed", "mean_predicted", "observed_expected")


def summary(table: pl.DataFrame, differences: pl.DataFrame) -> str:
    """One line a row of `table`, then the gain in AUC over the next model, where it is defined, and remarks."""
    head = ["model", "outcome", "landmark", "horizon", "n", "events", "observed", "predicted", "O/E"]
    lines = [[*head, "AUC (95%)", "Brier", "scaled"]]
    for row in table.iter_rows(named=True):
        names = [row["model"], row["outcome"], row["landmark"] or "-", row["horizon"]]
        numbers = [number(row[m], d) for m, d in zip(MEASURES, (4, 4, 2), strict=True)]
        spread = with_interval(row["auc"], row["auc_lower"], row["auc_upper"], 3)
        scores = [number(row["brier"], 4), number(row["scaled_brier"], 3)]
        lines.append([*names, str(row["n"]), str(row["events"]), *numbers, spread, *scores])
    tables = [_columns(lines), *_gains(differences)]
    unscored = table.group_by("model", maintain_order=True).agg(pl.col("unscored").max())
    notes = [f"{m}: up to {u} rows at risk unscored" for m, u in unscored.iter_rows() if u]
    # the count in a reason such as "fewer than 5 events (3)" differs from row to row
    reasons = table["reason"].drop_nulls().str.replace(r" \(\d+\)", "").unique(maintain_order=True)
    notes += [f"not defined: {reason}" for reason in reasons]
    return "\n".join(["\n\n".join(tables), *notes])


def number(value: float | None, digits: int) -> str:
    """A number with so many decimals, or a dash.

    >>> number(0.12345, 3), number(None, 3)
    ('0.123', '-')
    """
    return "-" if value is None else f"{value:.{digits}f}"


def with_interval(value: float | None, lower: float | None, upper: float | None, digits: int) -> str:
    """A number with its interval, where there is one.

    >>> with_interval(0.5, 0.25, 0.75, 2)
    '0.50 (0.25 to 0.75)'
    """
    if value is None or lower is None or upper is None:
        return number(value, digits)
    return f"{value:.{digits}f} ({lower:.{digits}f} to {upper:.{digits}f})"


def _gains(differences: pl.DataFrame) -> list[str]:
    """The table of the first model's gain in AUC over the second, where there is one."""
    shown = differences.filter(pl.col("difference").is_not_null(), measure="auc")
    shown = shown.filter(pl.col("against") == pl.col("against").first())
    if shown.is_empty():
        return []
    model, against = shown.row(0, named=True)["model"], shown.row(0, named=True)["against"]
    lines = [["outcome", "landmark", "horizon", f"AUC of {model} minus {against} (95%)"]]
    for row in shown.iter_rows(named=True):
        gain = with_interval(row["difference"], row["lower"], row["upper"], 3)
        lines.append([row["outcome"], row["landmark"] or "-", row["horizon"], gain])
    return [_columns(lines)]


def _columns(lines: list[list[str]]) -> str:
    """Lines of cells as text, each column as wide as its widest cell."""
    widths = [max(len(cell) for cell in column) for column in zip(*lines, strict=True)]
    padded = ("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)
    return "\n".join(line.rstrip() for line in padded)
