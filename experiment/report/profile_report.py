"""Which operators take the time of INT8 models: the worst of each printed, all in a table, and a picture."""

from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path

from experiment.report.plot import save
from quant import Profile
from utils import files
from utils.console import say
from utils.table import text_table

WORST = 10
"""Operators of each model that are printed."""
HEADER = ["operator", "kernel", "M MACs", "float ms", "INT8 ms", "lost ms", "GOP/s", "% peak", "why"]
CAPTION = (
    "GOP/s: 10^9 operations a second, two for each multiply-accumulate; peak: the most that the engine reached here on "
    "any of three large layers. Lost: the milliseconds beyond what the multiply-accumulates take at that peak. Float: "
    "the operator in fp32, batch norm folded. Each was timed in a program of its own, less what such calls cost."
)


@dataclass(frozen=True)
class Profiled:
    """A profile, and of what."""

    model: str
    engine: str
    image_size: int
    batch_size: int
    threads: int
    found: Profile

    @property
    def title(self) -> str:
        threads = f"{self.threads} thread{'s'[: self.threads > 1]}"
        return f"{self.model} @{self.image_size}, {self.engine}, batch {self.batch_size}, {threads}"


def report(profiles: list[Profiled], folder: Path) -> None:
    """Print the worst operators of each; write latency-profile.csv and .png to a folder."""
    for one in profiles:
        say(f"\n{text(one)}")
    if profiles:
        say(f"\n{CAPTION}")
        files.write_csv(folder / "latency-profile.csv", [row for one in profiles for row in rows(one)])
        picture(profiles, folder / "latency-profile.png")
        say(f"latency-profile.csv and .png in {folder}")


def text(one: Profiled) -> str:
    """What is printed of a model on an engine."""
    found = one.found
    head = (
        f"{one.title}: {len(found.operators)} operators, INT8 {found.int8_ms:.2f} ms, float {found.float_ms:.2f} ms, "
        f"peak {found.peak:.0f} GOP/s"
    )
    worst = sorted(found.operators, key=lambda timed: -timed.lost_ms)[:WORST]
    cells = [
        [
            timed.name,
            timed.kernel,
            f"{timed.macs / 1e6:.2f}" if timed.macs else "",
            "" if timed.float_ms is None else f"{timed.float_ms:.3f}",
            f"{timed.int8_ms:.3f}",
            f"{timed.lost_ms:.3f}",
            f"{timed.gops:.0f}" if timed.macs else "",
            f"{timed.peak_percent:.0f}" if timed.macs else "",
            timed.reason,
        ]
        for timed in worst
    ]
    return f"{head}\n\n{text_table(HEADER, cells)}\n\nlost, of all operators: {lost(found)}"


def lost(found: Profile) -> str:
    """The milliseconds that are lost for each reason, the most first, in one line."""
    by_reason = lost_by_reason(found)
    return "; ".join(f"{reason} {ms:.2f} ms" for reason, ms in by_reason.items() if ms >= 0.005)


def lost_by_reason(found: Profile) -> dict[str, float]:
    sums: dict[str, float] = defaultdict(float)
    for timed in found.operators:
        sums[timed.reason] += timed.lost_ms
    return dict(sorted(sums.items(), key=lambda pair: -pair[1]))


def rows(one: Profiled) -> list[dict]:
    """The rows of latency-profile.csv."""
    common = {key: getattr(one, key) for key in ("model", "engine", "image_size", "batch_size", "threads")}
    shown = [asdict(timed) for timed in one.found.operators]
    return [common | row | {"output": "x".join(map(str, row["output"]))} for row in shown]


def picture(profiles: list[Profiled], path: Path) -> None:
    """A bar for each operator in the order in which they run: INT8 coloured by its reason, behind it float."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    totals: dict[str, float] = defaultdict(float)
    for one in profiles:
        for reason, ms in lost_by_reason(one.found).items():
            totals[reason] += ms
    reasons = sorted(totals, key=lambda reason: -totals[reason])
    colours = dict(zip(reasons, [colormaps["tab10"](i) for i in range(10)], strict=False))
    figure = Figure(figsize=(11, 1.2 + 2.6 * len(profiles)), layout="constrained")
    for axis, one in zip(figure.subplots(len(profiles), 1, squeeze=False)[:, 0], profiles, strict=True):
        timed, places = one.found.operators, range(len(one.found.operators))
        axis.bar(places, [op.float_ms or 0.0 for op in timed], 0.9, color="0.85")
        axis.bar(places, [op.int8_ms for op in timed], 0.6, color=[colours.get(op.reason, "0.4") for op in timed])
        axis.set_title(f"{one.title}: INT8 {one.found.int8_ms:.2f} ms, float {one.found.float_ms:.2f} ms", fontsize=9)
        axis.set_ylabel("milliseconds", fontsize=8)
        axis.set_xlim(-0.7, len(timed) - 0.3)
        axis.tick_params(labelsize=8)
        axis.grid(axis="y", alpha=0.3)
        axis.set_axisbelow(True)
    figure.axes[-1].set_xlabel("operators, in the order in which they run", fontsize=8)
    keys = [Patch(color="0.85", label="float"), *(Patch(color=colours.get(r, "0.4"), label=r) for r in reasons)]
    figure.legend(handles=keys, loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    save(figure, path)
