"""How long a thread that waits for the others keeps a core busy.

OpenMP's threads wait in a loop before they sleep: libgomp's, in torch, for about 300,000 turns, which is milliseconds.
Where other programs want the cores, or an engine has threads of its own, they wait for these loops.
"""

import os

SPINS = 10_000
"""Turns of the loop. Fewer cost time on a quiet machine, because most operators of a small net are shorter."""


def wait_briefly() -> None:
    """Let waiting threads sleep sooner. Call it before torch is imported, which reads the variable once.

    Does nothing if the environment says how threads wait.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", str(SPINS))
