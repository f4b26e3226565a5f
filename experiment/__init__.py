"""What the scripts do: train.py, evaluate.py and latency.py parse a command line and call this package.

It alone knows data, models and quant together.
"""

from utils.threads import wait_briefly

wait_briefly()
