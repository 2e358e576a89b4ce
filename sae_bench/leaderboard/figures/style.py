"""What all figures share: sizes, axes, how an architecture is drawn, and files with the same bytes every time."""

import io
from collections.abc import Mapping
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter

from sae_bench.errors import one_line
from sae_bench.leaderboard.palette import Look

FORMATS = ("svg", "pdf", "png")
LEGEND_COLUMNS = 4
STYLE = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same letters on every machine
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "lines.linewidth": 1.4,
    "lines.markersize": 5,
    "figure.dpi": 100,
    "savefig.dpi": 300,
    "pdf.fonttype": 42,  # TrueType: publishers refuse the default, Type 3
    "svg.hashsalt": "sae-arch-bench",  # ids in SVG files are random without it
    "svg.fonttype": "path",
    "text.parse_math": False,  # a name with dollars in it is a name
}
METADATA: Mapping[str, dict[str, None]] = {
    "svg": {"Date": None, "Creator": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
    "png": {"Software": None},
}
"""What would differ between two days or two versions is left out."""


def styled() -> Any:
    """A context in which figures are made."""
    settings: Any = dict(mpl.rcParamsDefault)  # and not what the user's own matplotlibrc says
    return mpl.rc_context(settings | {"backend": "agg"} | STYLE)


def rendered(figure: Figure) -> dict[str, bytes]:
    """The figure in every format."""
    found = {}
    for form in FORMATS:
        out = io.BytesIO()
        figure.savefig(out, format=form, metadata=METADATA[form])
        found[form] = out.getvalue()
    return found


def new(columns: int = 1, rows: int = 1, *, width: float = 4.0, height: float = 3.0, **shared: Any) -> tuple[Any, Any]:
    """A figure of some axes, [rows, columns]."""
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **shared)


def line_of(look: Look) -> dict[str, Any]:
    """How an architecture's line and points are drawn. Open markers stay apart where points lie on each other."""
    return {
        "color": look.colour,
        "linestyle": (0, look.dashes) if look.dashes else "-",
        "marker": look.marker,
        "markerfacecolor": "white",
        "markeredgewidth": 1.2,
    }


def l0_axis(axes: Axes, values: list[float]) -> None:
    """A logarithmic axis of L0."""
    axes.set_xscale("log")
    axes.set_xlabel("L0 (mean active latents per token)")
    plain_ticks(axes.xaxis)
    if values:
        axes.set_xlim(min(values) / 1.15, max(values) * 1.15)


def plain_ticks(axis: Axis, *, percent: bool = False) -> None:
    """Ticks of a logarithmic axis at numbers that people read: 1, 2, 5, 10, or 0.1%, 1%, 10%."""
    steps = (1,) if percent else (1, 2, 5)
    axis.set_major_locator(FixedLocator([step * 10.0**power for power in range(-9, 7) for step in steps]))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g}%" if percent else f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def legend_above(figure: Figure, handles: Mapping[str, Any]) -> None:
    """One legend for all axes of a figure."""
    names = [one_line(name) for name in handles]
    figure.legend(
        list(handles.values()), names, loc="outside upper center", ncols=min(LEGEND_COLUMNS, max(1, len(names)))
    )
