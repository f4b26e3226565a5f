"""What the folder of a finished run says: its summary, and which checkpoint that was measured on."""

from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.runs.folder import LAST, SUMMARY, read_summary


def checkpoint_of(run: str) -> str:
    """The checkpoint itself or, for a run's folder, the one that its summary.json was measured on."""
    return run if run.endswith(".pt") else str(Path(run) / summary_of(Path(run))["checkpoint"])


def summary_of(folder: Path) -> dict[str, Any]:
    """summary.json of a run. For an unfinished run, or one older than the key `checkpoint`: its defaults."""
    found = read_summary(folder) if (folder / SUMMARY).is_file() else {}
    if not isinstance(found.get("checkpoint", LAST), str):
        raise UserError(f"{folder / SUMMARY}: not what train.py writes there")
    return {"checkpoint": LAST, "accuracy": {}} | found
