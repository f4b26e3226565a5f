"""The folder of a run: its path from the settings, and preparing it."""

from pathlib import Path

from experiment.settings import TrainSettings, stored_values
from utils import files
from utils.environment import environment
from utils.runs import folder as run_files
from utils.runs.folder import RunFolder, Start, effective_resume


def run_folder(settings: TrainSettings, inputs: dict | None = None) -> RunFolder:
    """The folder of a run with these checked settings. inputs: what it reads (experiment/inputs.py)."""
    return RunFolder(
        path=settings.run.folder,
        settings=settings.model_dump(mode="json"),
        epochs=settings.run.epochs,
        resume=effective_resume(settings.run.resume),
        inputs=inputs,
        filled_in=("quant.layers",) if settings.quant.layers == "auto" else (),
        migrate=stored_values,
    )


def open_folder(folder: RunFolder, settings: TrainSettings) -> Start:
    """Find out where the run starts, and prepare its folder. A finished run's folder is left as it is."""
    start = folder.find_start()
    if start.finished:
        return start
    if start.state is None or folder.resumes_from_elsewhere:
        run_files.check_no_sweep(folder.path)
        folder.move_aside()
    files.make_folder(folder.path, "run.dir")
    files.remove_temporary_files(folder.path)
    folder.copy_checkpoint()
    (folder.path / run_files.SUMMARY).unlink(missing_ok=True)  # this run is not finished
    write_settings(folder.path, settings)
    files.write_json(folder.path / run_files.INPUTS, folder.inputs)
    files.write_json(folder.path / "environment.json", environment() | {"engine": settings.quant.engine})
    return start


def write_settings(folder: Path, settings: TrainSettings) -> None:
    """config.json: the resolved settings of the run."""
    files.write_json(folder / run_files.SETTING, settings.model_dump())
