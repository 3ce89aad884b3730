"""Draws one broker's ratios, as PNG and SVG."""

from __future__ import annotations

from pathlib import Path

from tests.bench.suite.cases import CASES
from tests.bench.suite.report import ours_of, ratio
from tests.bench.suite.results import BrokerResults

__all__ = ["draw"]


def draw(found: BrokerResults, path: Path) -> bool:
    """Draw to *path* with ``.svg`` and ``.png``; return False, and draw nothing, without anything to compare."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams.update({"svg.hashsalt": "msgbus", "font.size": 9})
    from matplotlib import pyplot as plt
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    rows: dict[str, dict[str, float]] = {}
    for case in CASES:
        if not (case.headline or case.needs & {"requests", "batches"}):
            continue  # the table has them all
        result = found.cases.get(case.name)
        for entry in result.entries if result else ():
            against = ratio(case, ours_of(result.entries), entry) if result else None
            if against is not None:
                rows.setdefault(case.title, {})[entry.name] = against
    names = list(dict.fromkeys(name for row in rows.values() for name in row))
    if not rows:
        return False
    figure, axes = plt.subplots(figsize=(9, 1.2 + 0.16 * (len(names) + 1) * len(rows)), layout="constrained")
    height = 0.8 / len(names)
    for index, name in enumerate(names):
        places = [(n + index * height, row[name]) for n, row in enumerate(rows.values()) if name in row]
        # Bars begin at 1, where both are equal: to the right msgbus is ahead.
        axes.barh([y for y, _ in places], [x - 1 for _, x in places], height, left=1, label=name)
    axes.set_yticks([n + 0.4 - height / 2 for n in range(len(rows))], list(rows))
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}x"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.axvline(1, color="black", linewidth=1)
    axes.grid(axis="x", alpha=0.3)
    axes.set_xlabel(f"{found.broker}: msgbus, times as good as … (right of the line it is ahead; at least once, all)")
    axes.legend(loc="best")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})
    figure.savefig(path.with_suffix(".png"), dpi=110, metadata={"Software": None})
    plt.close(figure)
    return True
