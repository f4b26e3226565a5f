"""UTF-8 whatever the locale: names of files, arguments, texts that are read and written, and what is printed."""

import io
import os
import sys


def ensure() -> None:
    """Start this process again in Python's UTF-8 mode where the locale is another; print escapes for what cannot be
    printed. To be called before anything else: nothing of the process so far is kept."""
    if sys.getfilesystemencoding() != "utf-8" and not sys.flags.utf8_mode:
        os.environ["PYTHONUTF8"] = "1"  # for the processes that it starts
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
