"""Draw the whole ensemble: one PNG of about 1600 x 1000 pixels from the results of all sites.

As a Job it reads the results of its parents (one per site, from `analyse.py`). By hand:
`python compare.py --result ensemble.png SITE.npz...`.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

import results
from barotropic import DAY_S
from results import Check, MemberSummary, SiteResult

# Okabe and Ito's palette, which stays distinct for colour-blind readers and in grey.
KINDS = {
    "turbulence, f-plane": "#0072B2",
    "turbulence, β-plane": "#D55E00",
    "inviscid": "#009E73",
    "Rossby wave": "#000000",
}
GOOD, BAD = "#007A59", "#B03A00"
LineStyle = str | tuple[int, tuple[float, ...]]
SITE_LINES: tuple[LineStyle, ...] = ("-", (0, (4, 1.6)), (0, (1, 1)), (0, (5, 1, 1, 1)))
MAP_KINDS = ("turbulence, f-plane", "turbulence, β-plane", "inviscid")
# Columns of the table of checks: heading and right edge (the first: left edge).
CHECK_COLUMNS = (
    ("", 0.0),
    ("measured", 0.60),
    ("theory", 0.73),
    ("difference", 0.85),
    ("tolerance", 0.97),
)

VORTICITY_NORM = Normalize(-6, 6)
VORTICITY_COLOURS = "RdBu_r"
"""Colours of relative vorticity in 1e-5 s-1, the same for all panels."""

STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#555555",
    "axes.linewidth": 0.8,
    "xtick.color": "#333333",
    "ytick.color": "#333333",
    "legend.frameon": False,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw the results that the command line or the environment names."""
    parser = argparse.ArgumentParser(description="Draw the ensemble of all sites.")
    parser.add_argument("results", nargs="*", type=Path, help="results of sites (as a Job: none)")
    parser.add_argument("--result", type=Path, default=os.environ.get("CHAPPE_RESULT"))
    options = parser.parse_args(arguments)
    if options.result is None:
        parser.error("give --result FILE.png, or set CHAPPE_RESULT")
    paths = options.results or [
        parent.result for parent in results.parents_from_environment() if parent.result is not None
    ]
    if not paths:
        print("compare.py: there is no result of any site to draw", file=sys.stderr)
        return 2
    sites = sorted((results.load(path) for path in paths), key=lambda result: result.site)
    with mpl.rc_context(STYLE):
        draw(sites).savefig(options.result, dpi=100, format="png")
    results.require_size(options.result)
    return 0


def kind(member: MemberSummary) -> str:
    """The group under which a member is drawn, a key of KINDS."""
    if member.experiment == "turbulence":
        return "turbulence, β-plane" if member.beta else "turbulence, f-plane"
    return {"inviscid": "inviscid", "rossby": "Rossby wave"}[member.experiment]


def draw(sites: Sequence[SiteResult]) -> Figure:
    """The figure: maps and Hovmöller diagrams on the left, spectra and checks on the right."""
    figure = Figure(figsize=(16, 10), facecolor="white")
    _title(figure, sites)
    panels = figure.add_gridspec(
        3, 3, left=0.03, right=0.555, top=0.865, bottom=0.06, wspace=0.08, hspace=0.2
    )
    # Two sites have room for maps; the spectra and the checks show all.
    for row, site in enumerate(sites[:2]):
        for column, name in enumerate(MAP_KINDS):
            members = [member for member in site.members if kind(member) == name]
            if members:
                axes = figure.add_subplot(panels[row, column])
                _map(axes, members[0])
                if column == 0:
                    axes.set_ylabel(site.site, fontsize=12, weight="bold")
    waves = [m for site in sites for m in site.members if kind(m) == "Rossby wave"]
    for column, member in enumerate(waves[:2]):
        _hovmoller(figure.add_subplot(panels[2, column]), member)
    _decay(figure.add_subplot(panels[2, 2]), sites)
    _colour_bar(figure)

    right = figure.add_gridspec(
        2, 1, left=0.615, right=0.982, top=0.945, bottom=0.03, height_ratios=(1.5, 1), hspace=0.19
    )
    _spectra(figure.add_subplot(right[0]), sites)
    _checks(figure.add_subplot(right[1]), sites)
    return figure


def _title(figure: Figure, sites: Sequence[SiteResult]) -> None:
    figure.text(0.03, 0.945, "Barotropic vorticity on a β-plane", fontsize=19, weight="bold")
    count = sum(len(site.members) for site in sites)
    text = f"{count} members at {' and '.join(site.site for site in sites)}"
    absent = [f"{name} ({site.site})" for site in sites for name in site.absent]
    if absent:
        text += f"; did not finish: {', '.join(absent)}"
    figure.text(0.03, 0.913, text, fontsize=11, color="#444444")


def _colour_bar(figure: Figure) -> None:
    colours = ScalarMappable(VORTICITY_NORM, VORTICITY_COLOURS)
    axes = figure.add_axes((0.395, 0.937, 0.155, 0.013))
    figure.colorbar(colours, cax=axes, orientation="horizontal", extend="both")
    axes.set_title("relative vorticity, 10⁻⁵ s⁻¹", fontsize=9, loc="center", pad=3)
    axes.tick_params(labelsize=8, length=2)


def _map(axes: Axes, member: MemberSummary) -> None:
    axes.imshow(
        member.vorticity * 1e5,
        norm=VORTICITY_NORM,
        cmap=VORTICITY_COLOURS,
        origin="lower",
        # Grid-scale noise is not to be smoothed, nor would it compress.
        interpolation="nearest" if member.experiment == "inviscid" else "bicubic",
    )
    plane = "β-plane" if member.beta else "f-plane"
    axes.set_title(member.name, color=KINDS[kind(member)], weight="bold")
    axes.set_title(f"{plane}, day {member.time_days[-1]:.0f}", loc="right", fontsize=9)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(True)


def _hovmoller(axes: Axes, member: MemberSummary) -> None:
    """Vorticity along one latitude in time, and the path of a crest according to theory."""
    side, days = member.length_m / 1e6, float(member.time_days[-1])
    axes.imshow(
        member.hovmoller * 1e5,
        norm=VORTICITY_NORM,
        cmap=VORTICITY_COLOURS,
        origin="lower",
        interpolation="bicubic",
        extent=(0, side, 0, days),
        aspect="auto",
    )
    points = member.hovmoller.shape[1]
    start = (int(np.argmax(member.hovmoller[0])) + 0.5) / points * side
    path = (start + member.phase_speed * DAY_S / 1e6 * member.time_days) % side
    # The domain is periodic: break the line where it leaves on one side.
    path[1:][np.abs(np.diff(path)) > side / 2] = np.nan
    axes.plot(path, member.time_days, color="black", lw=1.5, ls=(0, (4, 2)))
    axes.set(
        xlim=(0, side),
        ylim=(0, days),
        xlabel="x, 1000 km (dashed: theory)",
        ylabel="day",
        box_aspect=1,
    )
    axes.set_title(member.name, weight="bold")
    speed = _number(member.phase_speed, "+.2f")
    axes.set_title(f"c = {speed} m s⁻¹", loc="right", fontsize=9)
    axes.spines[:].set_visible(True)


def _decay(axes: Axes, sites: Sequence[SiteResult]) -> None:
    """Energy and enstrophy over their initial values: the one stays, the other cascades away."""
    for member, line in _all(sites):
        if kind(member) == "Rossby wave":
            continue
        for series in (member.energy, member.enstrophy):
            axes.plot(
                member.time_days, series / series[0], color=KINDS[kind(member)], ls=line, lw=1.4
            )
    axes.set(xlabel="day", xlim=(0, None), ylim=(0, 1.08), box_aspect=1)
    axes.set_title("energy, enstrophy", weight="bold")
    axes.set_title("over day 0", loc="right", fontsize=9)
    axes.annotate("energy", (0.97, 0.79), xycoords="axes fraction", ha="right")
    axes.annotate("enstrophy", (0.97, 0.21), xycoords="axes fraction", ha="right")


def _spectra(axes: Axes, sites: Sequence[SiteResult]) -> None:
    """Kinetic energy by total mode number, at the end of each run."""
    label_side = 1
    for member, line in _all(sites):
        mode, energy, colour = np.arange(member.spectrum.size), member.spectrum, KINDS[kind(member)]
        if kind(member) == "Rossby wave":
            peak = int(np.argmax(energy))
            axes.plot(peak, energy[peak], marker="*", ms=14, color=colour, mec="white")
            # Stars stand close to each other: label them on alternate sides.
            label_side = -label_side
            axes.annotate(
                member.name,
                (peak, energy[peak]),
                (9 * label_side, 0),
                textcoords="offset points",
                ha="left" if label_side > 0 else "right",
                va="center",
            )
        else:
            kept = energy > 1e-7  # less is rounding, beyond the truncation
            axes.plot(mode[kept], energy[kept], color=colour, ls=line, lw=1.6, alpha=0.9)
    _slope(axes, -3, first=11, last=30, level=0.42)
    _slope(axes, -1, first=12, last=40, level=1.1)
    axes.set(xscale="log", yscale="log", xlim=(0.9, 70), ylim=(1e-5, 200))
    axes.set_xticks([1, 2, 5, 10, 20, 50], labels=["1", "2", "5", "10", "20", "50"], minor=False)
    axes.tick_params(axis="x", which="minor", labelbottom=False)
    axes.set_xlabel("total mode number m (wavenumber 2πm/L)", labelpad=2)
    axes.set_title("kinetic-energy spectra", weight="bold")
    axes.set_title("end of each run, m² s⁻² per mode", loc="right", fontsize=9)
    axes.grid(which="major", color="#e6e6e6", lw=0.7)
    axes.set_axisbelow(True)
    axes.legend(handles=_legend(sites), loc="lower left", handlelength=2.6)


def _slope(axes: Axes, power: int, *, first: float, last: float, level: float) -> None:
    """A reference line proportional to m to a power, which is `level` at mode `first`."""
    end = level * (last / first) ** power
    axes.plot([first, last], [level, end], color="#666666", lw=1.2)
    axes.annotate(f"$m^{{{power}}}$", (last, end), (4, 0), textcoords="offset points", va="center")


def _legend(sites: Sequence[SiteResult]) -> list[Line2D]:
    present = {kind(member) for member, _ in _all(sites)}
    handles = [
        Line2D([], [], color=colour, marker="*", ms=11, ls="", label=name)
        if name == "Rossby wave"
        else Line2D([], [], color=colour, lw=2.4, label=name)
        for name, colour in KINDS.items()
        if name in present
    ]
    return handles + [
        Line2D([], [], color="#555555", lw=1.6, ls=line, label=site.site)
        for site, line in zip(sites, cycle(SITE_LINES), strict=False)
    ]


def _all(sites: Sequence[SiteResult]) -> Iterator[tuple[MemberSummary, LineStyle]]:
    """Every member with the line style of its site."""
    for site, line in zip(sites, cycle(SITE_LINES), strict=False):
        for member in site.members:
            yield member, line


def _checks(axes: Axes, sites: Sequence[SiteResult]) -> None:
    """The checks as a table: of members checked alike, the one that comes closest to failing."""
    axes.axis("off")
    axes.set(xlim=(0, 1), ylim=(0, 1))
    checks = [check for site in sites for check in site.checks]
    failed = sum(not check.ok for check in checks)
    verdict = f"{failed} of {len(checks)} failed" if failed else f"all {len(checks)} hold"
    axes.set_title("checks against theory", weight="bold")
    axes.set_title(verdict, loc="right", color=BAD if failed else GOOD, weight="bold")
    for heading, x in CHECK_COLUMNS:
        axes.text(x, 0.95, heading, color="#666666", fontsize=8.5, ha="right")

    lines = sum(1 + len(_worst(site.checks)) for site in sites)
    step = 0.93 / max(lines, 14)
    y = 0.95
    for site in sites:
        y -= step
        axes.text(0, y, site.site, fontsize=9, weight="bold")
        for check, count in _worst(site.checks):
            y -= step
            _check_line(axes, y, check, count)


def _check_line(axes: Axes, y: float, check: Check, count: int) -> None:
    who = check.member if count == 1 else f"worst of {count}"
    cells = (
        f"{check.quantity}, {check.unit} ({who})",
        _number(check.measured, ".6g"),
        _number(check.expected, ".6g"),
        _number(abs(check.measured - check.expected), ".1e"),
        _number(check.tolerance, ".1e"),
    )
    for (_, x), cell in zip(CHECK_COLUMNS, cells, strict=True):
        axes.text(x, y, cell, fontsize=8.8, ha="right" if x else "left")
    axes.text(
        1, y, "✓" if check.ok else "✗", ha="right", color=GOOD if check.ok else BAD, weight="bold"
    )


def _number(value: float, form: str) -> str:
    return format(value, form).replace("-", "\N{MINUS SIGN}") if value else "0"


def _worst(checks: Sequence[Check]) -> list[tuple[Check, int]]:
    """For each checked quantity the check closest to failing, and how many there are."""
    groups: dict[str, list[Check]] = {}
    for check in checks:
        groups.setdefault(check.quantity, []).append(check)
    return [(max(group, key=_share_of_tolerance), len(group)) for group in groups.values()]


def _share_of_tolerance(check: Check) -> float:
    return abs(check.measured - check.expected) / check.tolerance


if __name__ == "__main__":
    sys.exit(main())
