"""Pictures of a run."""

from pathlib import Path

from utils.files import write_whole


def curves(rows: list[dict], title: str, path: Path) -> None:
    """Loss and top-1 accuracy by epoch, training and (where held out) validation; float epochs shaded."""
    if not rows:
        return
    from matplotlib.figure import Figure  # here: a second to import, and only the end of a run needs it

    epochs, float_epochs = [row["epoch"] for row in rows], sum(row["stage"] == "float" for row in rows)
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    axes = figure.subplots(1, 2)
    for axis, what, label in zip(axes, ("loss", "top1"), ("cross-entropy", "top-1 accuracy, %"), strict=True):
        axis.plot(epochs, [row[f"train_{what}"] for row in rows], marker="o", markersize=3, label="training")
        if rows[0].get(f"val_{what}") is not None:
            axis.plot(epochs, [row[f"val_{what}"] for row in rows], marker="s", markersize=3, label="validation")
        if 0 < float_epochs < len(rows):
            axis.axvspan(0.5, float_epochs + 0.5, color="0.9", label="float epochs")
        axis.set(xlabel="epoch", ylabel=label)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3)
    axes[0].legend()
    figure.suptitle(title)
    write_whole(path, lambda part: figure.savefig(part, dpi=110, format="png"))
