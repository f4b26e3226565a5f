"""The command line that all scripts share: parse, --list, load the settings, check them, --print-config, run."""

import functools
from argparse import ArgumentParser
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from experiment.registries import TABLES, listing
from utils import config, help, memory, utf8
from utils.errors import UserError, choose, run
from utils.importing import ROOT
from utils.sections import Section

S = TypeVar("S", bound=Section)


def start(command: Callable[..., None], description: str | None) -> None:
    """Run a script: command(arguments, description) with the process's arguments, its errors as one-line messages."""
    utf8.ensure()
    memory.keep_freed()
    run(functools.partial(command, description=description))


@dataclass(frozen=True)
class Job:
    """settings: the resolved settings, which --print-config prints. run: carries them out."""

    settings: Section
    run: Callable[[], None]


def main(
    arguments: list[str],
    description: str | None,
    default_file: str,
    settings_type: type[S],
    plan: Callable[[S, str], Job],
    find_conflict: Callable[[S, list[str]], str | None] = lambda settings, keys: None,
) -> None:
    """Run the script with this command line.

    description: what --help prints. default_file: the setting file that is read without -c.
    plan(settings, path of the setting file): refuses what cannot work and returns the job.
    find_conflict(settings, keys given on the command line): why such an override would have no effect, or None.

    Raises UserError. Errors of the two functions are reported as errors of the setting file.
    """
    parser = config.parser(description, _found(default_file), TABLES)
    options = parser.parse_intermixed_args(arguments)
    if options.help is not None:
        print(help.explain(settings_type, options.help) if options.help else usage(parser, settings_type))
        return
    if options.list is not None:
        if options.list:
            choose(TABLES, options.list, "command line: --list")
        print(listing(options.list) if options.list else f"--list {' | '.join(TABLES)}")
        return
    settings = config.load(settings_type, options.config, options.overrides)
    given = config.overrides(settings_type, options.overrides)
    with config.blame(options.config):
        conflict = find_conflict(settings, list(given))
    if conflict:
        raise UserError(f"command line: {conflict}")
    with config.blame(options.config, given):
        job = plan(settings, options.config)
    if options.print_config:
        print(job.settings.model_dump_json(indent=2))
        return
    with memory.explain_out_of_memory("fewer images, smaller ones (image_size) or a smaller model take less"):
        job.run()


def _found(default_file: str) -> str:
    """The file in the working directory or, from elsewhere, in this program's own folder."""
    return default_file if Path(default_file).is_file() else str(ROOT / default_file)


def usage(parser: ArgumentParser, kind: type[Section]) -> str:
    """What --help prints: the options, and what else it can be asked for."""
    return f"{parser.format_help()}\n--help KEY, for one of: {', '.join(help.sections(kind))}; or any key in them\n"
