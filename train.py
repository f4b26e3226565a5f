"""Train an image classifier as one JSON setting says, quantize it, and measure float, simulation and integers.

python train.py                                        setting/train.json: under a minute on two idle cores
python train.py -c setting/cifar10_jpeg_resnet20.json run.epochs=2 data.limit=5000
python train.py --list models
"""

from experiment import training
from experiment.cli import start

if __name__ == "__main__":
    start(training.main, __doc__)
