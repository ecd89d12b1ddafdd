"""Calibration and decision curves as SVG text that stands inside a page."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ehrseq.figures import COLOURS, style

Row = Mapping[str, Any]
SIZE = (4.0, 3.3)
MARKS = ("o", "s", "^", "D", "v", "P", "X")
LINES = ("-", "--", "-.", ":")


def calibration_figure(groups: Sequence[Row], curves: Sequence[Row], models: Sequence[str], name: str) -> str:
    """Observed incidence by forecast: groups with intervals, the smooth curve, and the diagonal of a perfect forecast.

    Only the first model's smooth curve is drawn, so that the picture stays readable.
    """
    largest = max((max(r["mean_predicted"], r["upper"] or r["observed"] or 0) for r in groups), default=0.1)

    def draw(axes: Any) -> None:
        axes.plot([0, 100 * largest], [0, 100 * largest], color="0.6", linewidth=1, label="perfect")
        first = [r for r in curves if r["model"] == models[0] and r["observed"] is not None]
        if first:
            x = [100 * r["probability"] for r in first]
            axes.plot(x, [100 * r["observed"] for r in first], color=COLOURS[0], linewidth=1)
            if all(r["lower"] is not None for r in first):
                low, high = ([100 * r[end] for r in first] for end in ("lower", "upper"))
                axes.fill_between(x, low, high, color=COLOURS[0], alpha=0.15, linewidth=0)
        for i, model in enumerate(models):
            rows = [r for r in groups if r["model"] == model and r["observed"] is not None]
            if len(rows) < 2:
                continue
            x, y = [100 * r["mean_predicted"] for r in rows], [100 * r["observed"] for r in rows]
            colour, mark = COLOURS[i % len(COLOURS)], MARKS[i % len(MARKS)]
            axes.plot(x, y, mark, color=colour, markersize=4, label=_plain(model), linestyle="none")
            if i == 0 and all(r["lower"] is not None for r in rows):
                axes.vlines(x, [100 * r["lower"] for r in rows], [100 * r["upper"] for r in rows], color=colour, lw=1)
        axes.set_xlabel("forecast (%)")
        axes.set_ylabel("observed (%)")
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
        axes.legend(fontsize=8)

    return _svg(draw, name)


def decision_figure(rows: Sequence[Row], models: Sequence[str], everyone: str, name: str) -> str:
    """Net benefit by threshold, of each model, of acting on everyone and on no one."""

    def draw(axes: Any) -> None:
        axes.axhline(0, color="0.4", linewidth=1, label="act on no one")
        for i, model in enumerate([*models, everyone]):
            mine = [r for r in rows if r["model"] == model and r["net_benefit"] is not None]
            if not mine:
                continue
            colour = "0.6" if model == everyone else COLOURS[i % len(COLOURS)]
            x, y = [100 * r["threshold"] for r in mine], [1000 * r["net_benefit"] for r in mine]
            axes.plot(x, y, color=colour, linestyle=LINES[i % len(LINES)], label=_plain(model), linewidth=1.4)
        best = max((r["net_benefit"] for r in rows if r["net_benefit"] is not None), default=0.01)
        axes.set_ylim(-250 * max(best, 1e-4), 1100 * max(best, 1e-4))
        axes.set_xlabel("threshold (%)")
        axes.set_ylabel("net benefit per 1,000")
        axes.set_xlim(left=0)
        axes.legend(fontsize=8)

    return _svg(draw, name)


def _svg(draw: Any, name: str) -> str:
    """A figure as an `<svg>` element without fixed size, whose ids begin with `name`."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with style(), mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": name, "font.family": "sans-serif"}):
        figure = Figure(figsize=SIZE, layout="constrained")
        draw(figure.subplots())
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    # several figures share a page: ids must differ; the size is the page's to choose
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'(url\(|href=")#', rf"\1#{name}-", text)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    text = text.replace("<svg", '<svg aria-hidden="true" focusable="false"', 1)
    return text.replace("sans-serif", "system-ui, sans-serif") if "system-ui" not in text else text


def _plain(text: str) -> str:
    """Names come from users: no part of one is a formula."""
    return text.replace("$", r"\$")
