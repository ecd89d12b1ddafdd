"""Codes and their ancestors."""

from __future__ import annotations

from collections.abc import Iterable, Set
from dataclasses import dataclass

import polars as pl


@dataclass(frozen=True)
class Family:
    """The parents of each code. Circles do no harm: no code is its own ancestor."""

    parents: dict[str, tuple[str, ...]]

    @classmethod
    def of(cls, pairs: Iterable[tuple[str, str]]) -> Family:
        """From (code, parent) pairs in any order."""
        found: dict[str, set[str]] = {}
        for code, parent in pairs:
            if code != parent:
                found.setdefault(code, set()).add(parent)
        return cls({code: tuple(sorted(above)) for code, above in sorted(found.items())})

    def ancestors(self, code: str) -> list[str]:
        """All that are above a code, the nearest first, those as near in alphabetical order.

        >>> Family.of([("E11.9", "E11"), ("E11", "E08-E13"), ("E11.9", "T2D")]).ancestors("E11.9")
        ['E11', 'T2D', 'E08-E13']
        """
        found: list[str] = []
        seen, level = {code}, [code]
        while level:
            level = sorted({p for c in level for p in self.parents.get(c, ())} - seen)
            seen.update(level)
            found += level
        return found

    def ancestor_events(self, events: pl.DataFrame) -> pl.DataFrame:
        """`subject_id` and, as `code`, each ancestor of each event's code."""
        rows = [(code, above) for code in events["code"].unique().to_list() for above in self.ancestors(code)]
        table = pl.DataFrame(rows, {"code": pl.String, "ancestor": pl.String}, orient="row")
        return events.join(table, on="code").select("subject_id", code="ancestor")

    def leading_to(self, codes: Set[str]) -> tuple[tuple[str, str], ...]:
        """The pairs on a way from some code to one of these."""
        children: dict[str, list[str]] = {}
        for code, above in self.parents.items():
            for parent in above:
                children.setdefault(parent, []).append(code)
        reached: set[tuple[str, str]] = set()
        waiting = sorted(codes)
        while waiting:
            parent = waiting.pop()
            for code in children.get(parent, ()):
                if (code, parent) not in reached:
                    reached.add((code, parent))
                    waiting.append(code)
        return tuple(sorted(reached))
