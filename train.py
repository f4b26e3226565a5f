"""Train an image classifier as one JSON setting says, quantize it, and measure float, simulation and integers.

python train.py                                        setting/train.json: half a minute on two cores
python train.py -c setting/cifar10_jpeg_resnet20.json run.epochs=2 data.limit=5000
python train.py --list models
"""

import functools

from experiment.training import main
from utils import memory
from utils.errors import run

if __name__ == "__main__":
    memory.keep_freed()
    run(functools.partial(main, description=__doc__))
