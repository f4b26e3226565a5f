"""Try many checkpoints, packed files and image folders in which anything may be: each is read, or refused in one line.

    python -m benchmarks.faults --count 500

The tests of tests/test_strangers.py and tests/data/test_image_trees.py, with so many examples of each kind, each time
others. Ends with the exit code of pytest: 0 if there was no traceback, no code was run, and nothing was overwritten.
"""

import argparse
import os
import subprocess
import sys


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=500, help="of each kind")
    options = parser.parse_args()
    command = [sys.executable, "-m", "pytest", "-n", "0", "tests/test_strangers.py", "tests/data/test_image_trees.py"]
    sys.exit(subprocess.run(command, env=os.environ | {"FAULTS": str(options.count)}).returncode)


if __name__ == "__main__":
    main()
