"""The tables whose names a setting can use. --list prints them, and the JSON Schemas offer them in an editor."""

import inspect
from collections.abc import Mapping

import data
import models
import quant
from utils.training import optim

TABLES: dict[str, Mapping[str, object]] = {
    "models": models.MODELS,
    "datasets": data.DATASETS,
    "methods": quant.METHODS,
    "engines": quant.ENGINES,
    "optimizers": optim.OPTIMIZERS,
}
ABOUT = {
    "resnet": "residual blocks (He et al., 2015); resnet20 to 56 are for images of 32 x 32",
    "resnext": "residual blocks in 32 groups (Xie et al., 2016)",
    "fast_cnn": "wide convolutions that train fast on CPUs, for 32 x 32",
    "mobilenet_v2": "inverted residuals (Sandler et al., 2018); activation: relu6 or relu",
    "mobilenet_v2_projected": "the MobileNetV2 of many CIFAR-10 repositories",
    "mobilenet_v3": "with squeeze-and-excitation and hard swish (Howard et al., 2019); _relu: with ReLU alone",
    "shufflenet": "grouped convolutions and a shuffle of channels (Ma et al., 2018)",
    "alexnet": "five convolutions, three linear layers (Krizhevsky, 2014)",
    "vgg": "3 x 3 convolutions in rows (Simonyan, Zisserman, 2014); _bn: with batch norm",
    "svhn_cnn": "DoReFa-Net's model for house numbers of 40 x 40",
    "float": "no quantization",
    "ptq": "after training: ranges from calibration images; recipe=best also learns the rounding",
    "dorefa": "weights by tanh, activations in [0, 1], gradients, too (Zhou et al., 2016)",
    "pact": "activations clipped at a learned value (Choi et al., 2018)",
    "lsq": "step sizes are learned (Esser et al., 2019)",
    "statassist": "float epochs, then fake-quantized ones, from scratch (Park et al., 2020)",
    "reference": "integers in plain PyTorch operators: what the others are compared with",
    "fbgemm": "PyTorch's, on x86",
    "qnnpack": "PyTorch's, for Arm; slow on x86",
    "x86": "PyTorch's, of fbgemm and oneDNN",
    "onednn": "PyTorch's, of oneDNN alone, on plain uint8",
    "onnxruntime": "ONNX Runtime, from an ONNX file (requirements-deploy.txt)",
    "openvino": "OpenVINO, from an ONNX file (requirements-deploy.txt)",
    "executorch": "ExecuTorch with XNNPACK, for phones (requirements-executorch.txt)",
    "litert": "LiteRT (TensorFlow Lite) with XNNPACK, for phones (requirements-litert.txt)",
    "sgd": "with momentum",
    "rmsprop": "divided by a mean of squares",
    "adam": "Kingma, Ba, 2014",
    "adamw": "Adam with decoupled weight decay (Loshchilov, Hutter, 2017)",
    "q": "with GradBoost's noise on the gradients, for statassist",
}
"""A line about a name, or about all that begin so."""


def listing(table: str) -> str:
    """The names of a table, each with a line about it."""
    width = max(map(len, TABLES[table]))
    return "\n".join(f"{name:{width}}  {about(table, name)}".rstrip() for name in TABLES[table])


def about(table: str, name: str) -> str:
    """What a name of a table is: of a dataset, the first line of its loader's docstring; of others, of ABOUT."""
    if table == "datasets":
        return (inspect.getdoc(data.DATASETS[name].load) or "").partition("\n")[0]
    beginnings = [beginning for beginning in ABOUT if name.startswith(beginning)]
    return ABOUT[max(beginnings, key=len)] if beginnings else ""
