"""One plot style: colour-blind safe, readable in print."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# Okabe and Ito's palette, which people with any common colour blindness can tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


@contextmanager
def style() -> Iterator[None]:
    """Apply ehrseq's plot style inside the block, and leave the user's own settings alone."""
    import matplotlib as mpl
    from cycler import cycler

    settings: dict[Any, Any] = {
        "axes.prop_cycle": cycler(color=COLOURS),
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.alpha": 0.25,
        "figure.dpi": 120,
        "font.size": 9,
        "legend.frameon": False,
        "savefig.bbox": "tight",
    }
    with mpl.rc_context(settings):
        yield


def plain(text: str, width: int) -> str:
    """Untrusted text as one short line without control characters.

    >>> plain("a  very" + chr(10) + "long name", 12)
    'a very long…'
    """
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= width else line[: width - 1].rstrip() + "…"


def drawable(text: str, width: int) -> str:
    """Untrusted text as one short line that matplotlib draws as it stands, not as a formula.

    >>> print(drawable("$5", 9))
    \\$5
    """
    return plain(text, width).replace("$", r"\$")
