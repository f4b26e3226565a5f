"""A packed file holds a model's integers at their own bits; what is read from it computes the same logits."""

import contextlib
import copy
import json
import random

import numpy
import pytest
import torch
from torch import nn

import models
import quant
from quant.analysis.compare import megabytes_at_bits
from quant.export.npz.records import pack, packed_bytes, unpack
from tests.conftest import photos, spec, with_real_statistics
from tests.nets import plain
from utils.errors import UserError

INFO = {"classes": ["a", "b"], "mean": [0.5] * 3, "std": [0.25] * 3, "image_size": 32}
EVERY_METHOD = [
    {"method": "ptq", "weight_bits": 5, "act_bits": 3, "granularity": "per_tensor"},
    {"method": "ptq", "weight_bits": 3, "act_bits": 4, "rounding": "adaround", "rounding_steps": 3, "correct": "norm"},
    {"method": "lsq", "weight_bits": 2, "act_bits": 2},
    {"method": "dorefa", "weight_bits": 1, "act_bits": 2},
    {"method": "dorefa", "weight_bits": 3, "act_bits": 4},
    {"method": "pact", "weight_bits": 2, "act_bits": 4},
    {"method": "pact", "weight_bits": 7, "act_bits": 8},
    {"method": "statassist", "weight_bits": 6, "act_bits": 8, "layers": {"layer2.*": {"weight_bits": 3}}},
]


def prepared_net(name: str, options: dict, keys: dict):
    """A net with real statistics and, by a step in train mode where ranges need one, real ranges."""
    torch.manual_seed(0)
    own = {"plain": lambda: plain(10), "everything": Everything}
    net = own[name]() if name in own else models.build(name, 10, 32, options)
    prepared = quant.prepare(with_real_statistics(net, photos(16, 32)), spec(**keys))
    with torch.no_grad():
        prepared.train()(photos(16, 32))
    if keys["method"] == "ptq":
        quant.calibrate(prepared, [photos(16, 32)])
        quant.refine(prepared, [photos(16, 32)], spec(**keys))
    return prepared.eval()


def exported(prepared, file):
    quant.export_packed(prepared, file, 32, INFO)
    return quant.load_packed(str(file))


@pytest.mark.parametrize("bits", range(1, 9))
def test_codes_take_their_own_bits_and_come_back(bits):
    codes = torch.randint(-(2 ** (bits - 1)), 2 ** (bits - 1), (7, 5, 3)).numpy()
    packed = pack(codes, bits)
    assert packed.dtype == numpy.uint8
    assert len(packed) == packed_bytes(codes.size, bits) == -(-105 * bits // 8)
    assert (unpack(packed, bits, codes.size) == codes.reshape(-1)).all()
    with pytest.raises(ValueError, match="codes of"):
        pack(numpy.array([2 ** (bits - 1)]), bits)


def test_the_stream_is_filled_from_the_lowest_bit_and_eight_bits_are_int8():
    assert pack(numpy.array([1, 2, -1, 0, 3]), 3).tolist() == [0b11010001, 0b00110001]
    codes = numpy.array([-128, -1, 0, 127])
    assert (pack(codes, 8).view(numpy.int8) == codes).all()


@pytest.mark.parametrize("keys", EVERY_METHOD, ids=str)
def test_the_integers_and_the_logits_of_every_method_come_back(keys, tmp_path):
    prepared = prepared_net("resnet20", {}, keys)
    read, reference = exported(prepared, tmp_path / "m.npz"), quant.convert(prepared, "reference")
    assert len(read.layers) == len(reference.layers) == 20
    for name, converted in reference.layers.items():
        for part in ("weight", "scale", "bias"):
            assert torch.equal(getattr(read.layers[name], part), getattr(converted.layer, part)), (name, part)
        assert read.layers[name].weight.unique().numel() > 1
    with torch.inference_mode():
        simulated = prepared(photos(8, 32))
    assert torch.equal(read(photos(8, 32)), simulated)
    assert simulated.std(0).max() > 0, "the logits tell images apart"
    assert read.info == INFO


class Everything(nn.Module):
    """Max-pool, concatenation, channel shuffle, gates, hard-swish, padding, and sizes asked of tensors."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.Hardswish())
        self.pool, self.conv = nn.MaxPool2d(3, 2, 1), nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.gate, self.fc = nn.Conv2d(16, 16, 1), nn.Linear(64, 5)

    def forward(self, x):
        x = self.pool(self.stem(x))
        y = torch.relu(self.conv(x))
        y = y * torch.sigmoid(self.gate(y.mean((2, 3), keepdim=True)))
        left, right = y.chunk(2, dim=1)
        x = nn.functional.pad(torch.cat([x + y, right, left[:, :]], 1), (0, 0, 0, 0, 16, 16))
        return self.fc(nn.functional.adaptive_avg_pool2d(x, 1).view(x.size(0), -1))


@pytest.mark.parametrize("name", ["everything", "shufflenet_v2_x0_5"])
def test_nets_with_all_kinds_of_operators_come_back(name, tmp_path):
    prepared = prepared_net(name, {}, {"method": "ptq", "weight_bits": 4, "act_bits": 5})
    read = exported(prepared, tmp_path / "m.npz")
    for count in (1, 8):
        with torch.inference_mode():
            assert torch.equal(read(photos(count, 32)), prepared(photos(count, 32)))


@pytest.mark.parametrize(
    "keys",
    [
        {"act_bits": 32},
        {"act_bits": 32, "correct": "norm"},
        {"weight_bits": 32},
        {"first_last_bits": 32},
        {"layers": {"fc": "float"}},
    ],
    ids=str,
)
def test_what_stays_float_comes_along(keys, tmp_path):
    prepared = prepared_net("resnet20", {}, {"method": "ptq", "weight_bits": 4, "act_bits": 4} | keys)
    read = exported(prepared, tmp_path / "m.npz")
    with torch.inference_mode():
        ours, theirs = read(photos(8, 32)), quant.convert(prepared, "reference")(photos(8, 32))
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-5 * float(theirs.abs().max()))


def test_channels_that_left_their_grid_come_back(tmp_path):
    """A dead batch norm, and one so small that the integers are rounded anew on a larger scale."""
    prepared = prepared_net("resnet20", {}, EVERY_METHOD[3])
    norm = prepared.get_submodule("bn1")
    with torch.no_grad():
        norm.weight[:3] = torch.tensor([0.0, 1e-12, -0.7])
        norm.bias[:3] = 2.0
    read, layer = exported(prepared, tmp_path / "m.npz"), quant.convert(prepared, "reference").layers["conv1"].layer
    assert not layer.weight[:2].any()
    assert torch.equal(read.layers["conv1"].weight, layer.weight)
    with torch.inference_mode():
        assert torch.equal(read(photos(8, 32)), prepared(photos(8, 32)))


def test_the_size_is_that_of_the_arrays_and_of_the_bits(tmp_path):
    sizes = {}
    for bits in (8, 4, 2):
        prepared = prepared_net("resnet20", {}, {"method": "lsq", "weight_bits": bits, "first_last_bits": "same"})
        exported(prepared, tmp_path / "m.npz")
        with numpy.load(tmp_path / "m.npz", allow_pickle=False) as file:
            assert all(file[name].dtype.kind in "iufU" for name in file.files)
            sizes[bits] = file["weights"].nbytes
            of_layers = sum(file[name].nbytes for name in ("weights", "scales", "biases", "anew", "floats"))
            assert json.loads(str(file["model"]))["format"] == 1
        assert megabytes_at_bits(prepared) == of_layers / 1e6
        weights = sum(p.numel() for name, p in prepared.named_parameters() if p.ndim in (2, 4))
        assert sizes[bits] == weights * bits / 8, "every layer's weights fill whole bytes here"
        assert (tmp_path / "m.npz").stat().st_size < of_layers + 6_000


def test_the_size_counts_what_stays_float(tmp_path):
    """A batch norm behind a pool, and a convolution that has no integer form."""
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.MaxPool2d(2), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1))
    prepared = quant.prepare(net.eval(), spec(method="ptq"))
    quant.calibrate(prepared, [photos(4, 32)])
    exported(prepared, tmp_path / "m.npz")
    with numpy.load(tmp_path / "m.npz", allow_pickle=False) as file:
        arrays = sum(file[name].nbytes for name in ("weights", "scales", "biases", "anew", "floats"))
    assert 1e6 * megabytes_at_bits(prepared) == arrays
    more = nn.Sequential(*copy.deepcopy(net), nn.ConvTranspose2d(4, 2, 5)).eval()
    assert 1e6 * megabytes_at_bits(quant.prepare(more, spec(method="ptq"))) > arrays + 4 * (4 * 2 * 5 * 5 + 2)


@pytest.mark.parametrize(
    ("function", "name"), [(lambda y: torch.softmax(y, 1), "softmax"), (lambda y: torch.add(y, y, alpha=0.5), "add")]
)
def test_an_operator_that_no_file_can_name_is_refused_in_a_line(function, name, tmp_path):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 8, 3), nn.Linear(8, 4)

        def forward(self, x):
            return self.fc(function(self.conv(x)).mean((2, 3)))

    prepared = quant.prepare(Net().eval(), spec(method="ptq"))
    quant.calibrate(prepared, [photos(4, 32)])
    with pytest.raises(UserError, match=rf"export: {name} has no place in a packed file"):
        quant.export_packed(prepared, tmp_path / "m.npz", 32, INFO)
    assert list(tmp_path.iterdir()) == []


def changed(file, change) -> None:
    """Write the file again with its model changed."""
    with numpy.load(file, allow_pickle=False) as read:
        arrays = dict(read)
    model = json.loads(str(arrays.pop("model")))
    change(model, arrays)
    numpy.savez(file, model=numpy.array(json.dumps(model)), **arrays)


MISCHIEF = {
    "'system' is no call that a file may ask for": lambda m, a: m["nodes"][-3].update(
        {"do": "call", "with": [{"call": "system", "args": [], "kwargs": {}}]}
    ),
    "'eval'": lambda m, a: m["nodes"][3].update(do="eval"),
    "format 99": lambda m, a: m.update(format=99),
    "one input, the first": lambda m, a: m["nodes"].pop(),
    "reads": lambda m, a: m["nodes"].pop(2),
    "weights end before": lambda m, a: a.update(weights=a["weights"][:-1]),
    "scales": lambda m, a: a.pop("scales"),
    "bytes for": lambda m, a: m["nodes"][2]["with"][0].update(bits=7),
}


@pytest.mark.parametrize("reason", MISCHIEF)
def test_a_file_that_is_not_what_it_should_be_is_refused_in_a_line(reason, tmp_path):
    file = tmp_path / "m.npz"
    exported(prepared_net("plain", {}, EVERY_METHOD[0]), file)
    changed(file, MISCHIEF[reason])
    with pytest.raises(UserError, match=reason) as caught:
        quant.load_packed(str(file))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("damage", ["a bit", "the end", "a hole"])
def test_a_damaged_file_is_refused_in_a_line(damage, tmp_path):
    file, generator = tmp_path / "m.npz", random.Random(0)
    exported(prepared_net("plain", {}, EVERY_METHOD[0]), file)
    whole = file.read_bytes()
    for _ in range(40):
        at, broken = generator.randrange(len(whole)), bytearray(whole)
        if damage == "a bit":
            broken[at] ^= 1 << generator.randrange(8)
        else:
            broken[at : at + 50] = b"" if damage == "the end" else bytes(50)
        file.write_bytes(broken[:at] if damage == "the end" else broken)
        with contextlib.suppress(UserError):  # a time of day, say, may change unseen
            read = quant.load_packed(str(file))
            assert read(photos(1, 32)).shape == (1, 10)


def test_pickles_and_other_files_are_refused(tmp_path):
    file = tmp_path / "m.npz"
    numpy.savez(file, model=numpy.array([object()]), weights=numpy.zeros(1, numpy.uint8))
    with pytest.raises(UserError, match="not a packed model"):
        quant.load_packed(str(file))
    file.write_text("no archive")
    with pytest.raises(UserError, match="not a packed model"):
        quant.load_packed(str(file))
    with pytest.raises(UserError, match="No such file"):
        quant.load_packed(str(tmp_path / "none.npz"))
