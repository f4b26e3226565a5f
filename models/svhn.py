"""The model of DoReFa-Net's SVHN experiments (arXiv 1606.06160, section 3.1, model A), for images of 40 x 40.

    layer   kernel   channels   then                            map
    conv0   5 x 5          48   ReLU, max-pool                  36 -> 18
    conv1   3 x 3          64   BN, ReLU                              18
    conv2   3 x 3          64   BN, ReLU, max-pool               18 -> 9
    conv3   3 x 3, valid  128   BN, ReLU                               7
    conv4   3 x 3         128   BN, ReLU                               7
    conv5   3 x 3, valid  128   BN, ReLU                               5
    conv6   5 x 5, valid  512   dropout 0.5 before; BN, ReLU           1
    fc                 classes

2,083,402 parameters for ten classes. Every convolution has a bias, as in the PyTorch port whose results
setting/tables/dorefa_svhn.json reproduces. Where that port differs from tensorpack's original, this model follows the
original: an activation after conv1, element-wise dropout, and a batch norm momentum of 0.1.
"""

from torch import Tensor, nn


class SvhnNet(nn.Module):
    def __init__(self, num_classes: int):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 48, 5),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            *_unit(48, 64, 3, 1),
            *_unit(64, 64, 3, 1),
            nn.MaxPool2d(2),
            *_unit(64, 128, 3, 0),
            *_unit(128, 128, 3, 1),
            *_unit(128, 128, 3, 0),
            nn.Dropout(0.5),
            *_unit(128, 512, 5, 0),
        )
        self.fc = nn.Linear(512, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x).flatten(1))


def _unit(c_in: int, c_out: int, kernel: int, padding: int) -> list[nn.Module]:
    return [
        nn.Conv2d(c_in, c_out, kernel, padding=padding),
        nn.BatchNorm2d(c_out, eps=1e-4),
        nn.ReLU(inplace=True),
    ]


def svhn_cnn(num_classes: int, form: str) -> nn.Module:
    return SvhnNet(num_classes)
