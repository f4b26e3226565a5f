"""The contract of a quantizer (core/quantizer.py), over every method, bit-width and granularity."""

import copy

import pytest
import torch

import quant
from quant.core.contract import check_activation_quantizer, check_weight_quantizer
from quant.core.observed import ObservedRange
from quant.core.quantizer import ActivationQuantizer, WeightQuantizer
from quant.methods.midrise import SignWeights, TanhWeights
from tests.conftest import photos, spec
from tests.helpers import float_range
from tests.nets import Meeting
from tests.quant.core.helpers import make, observed, sample

METHODS = {name: method for name, method in quant.METHODS.items() if name != "float"}


VARIANTS = [(name, {}) for name in METHODS] + [
    ("pact", {"weights": "dorefa", "signed_edges": "affine"}),
    ("pact", {"alpha_init": 3.0}),
    ("dorefa", {"signed_edges": "affine"}),
    ("dorefa", {"act_clip": "calibration"}),
    ("lsq", {"step_init": "mse"}),
    ("lsq", {"offset": "learned"}),
    ("ptq", {"rounding": "adaround"}),
]


CASES = [
    pytest.param(method, options, kind, bits, granularity, id="-".join([method, *map(str, options.values()), *rest]))
    for method, options in VARIANTS
    for kind in (
        "weight",
        "unsigned",
        "signed",
        *(["residual"] if METHODS[method].residual is not METHODS[method].activation else []),
    )
    for bits in (METHODS[method].weight_bits if kind == "weight" else METHODS[method].act_bits)
    for granularity in (("per_channel", "per_tensor") if kind == "weight" else ("per_tensor",))
    for rest in [(kind, str(bits), granularity)]
]


@pytest.mark.parametrize(("method", "options", "kind", "bits", "granularity"), CASES)
def test_contract(method, options, kind, bits, granularity):
    x = sample(kind)
    quantizer = observed(make(method, options, kind, bits, granularity), x)
    before = copy.deepcopy(quantizer.state_dict())
    y, q, grid = quantizer(x), quantizer.to_int(x), quantizer.grid()

    shape = (-1, 1, 1, 1) if grid.scale.ndim else ()
    assert torch.equal(y, grid.scale.reshape(shape) * (q - grid.zero_point.reshape(shape))), (
        "x_hat = s (q - z), exactly"
    )
    assert q.min() >= grid.q_min
    assert q.max() <= grid.q_max
    assert torch.equal(q, q.round())
    rows = q if grid.scale.ndim else q.reshape(1, -1)
    assert max(len(row.unique()) for row in rows) <= 2**quantizer.bits
    assert quantizer.bits == bits or quantizer.note, "other bits than asked for are reported"
    if not isinstance(quantizer, TanhWeights):  # which transforms before it rounds
        assert torch.equal(quantizer(y), y), "idempotent"
        assert torch.equal(quantizer.to_int(y), q)
    assert torch.equal(quantizer(x), y), "twice the same in eval"
    assert all(torch.equal(before[k], v) for k, v in quantizer.state_dict().items()), "eval changes nothing"
    assert (grid.scale > 0).all()
    assert torch.equal((q - grid.q_min) % grid.step, torch.zeros_like(q)), "q_min + step k"
    if kind == "weight":
        assert isinstance(quantizer, WeightQuantizer)
        assert (grid.zero_point == 0).all()
        assert max(-grid.q_min, grid.q_max) <= 127
        check_weight_quantizer(quantizer, x)
    else:
        assert isinstance(quantizer, ActivationQuantizer)
        assert grid.step == 1
        assert torch.equal(q, grid.to_int(x)), "an engine, which reads the grid alone, comes to the same integers"
        check_activation_quantizer(quantizer)

    assert torch.equal(quantizer(x.contiguous(memory_format=torch.channels_last)), y)
    assert torch.equal(quantizer(x.transpose(2, 3)), y.transpose(2, 3))

    quantizer.enabled = False
    assert quantizer(x) is x, "disabled is the identity"


@pytest.mark.parametrize(("method", "options", "kind", "bits", "granularity"), CASES)
def test_state_dict_round_trip_is_bit_equal(method, options, kind, bits, granularity):
    x = sample(kind)
    fresh = make(method, options, kind, bits, granularity)
    make(method, options, kind, bits, granularity).load_state_dict(fresh.state_dict())  # also before the first batch
    quantizer = observed(fresh, x)
    twin = make(method, options, kind, bits, granularity).eval()
    twin.load_state_dict(quantizer.state_dict())
    assert torch.equal(twin(x), quantizer(x))


@pytest.mark.parametrize(("method", "options", "kind", "bits", "granularity"), CASES)
@pytest.mark.parametrize("value", [0.0, 1.5, -1.5])
def test_constant_inputs_give_no_nan(method, options, kind, bits, granularity, value):
    x = torch.full((6, 5, 4, 4), abs(value) if kind == "unsigned" else value)
    quantizer = observed(make(method, options, kind, bits, granularity), x)
    y = quantizer(x)
    assert torch.isfinite(y).all()
    if isinstance(quantizer, ObservedRange):
        assert torch.allclose(y, x, rtol=1e-6), "the ends of an observed range are on the grid"


@pytest.mark.parametrize(("method", "options", "kind", "bits", "granularity"), CASES)
def test_gradient_is_one_inside_the_range_and_zero_outside(method, options, kind, bits, granularity):
    x = sample(kind)
    quantizer = observed(make(method, options, kind, bits, granularity), x)
    if isinstance(quantizer, TanhWeights | SignWeights):
        pytest.skip("gradients of their own: tests/quant/methods/test_midrise.py")
    wide = (x * 8).requires_grad_()
    quantizer(wide).sum().backward()
    grid = quantizer.grid()
    scale, zero = (t.reshape((-1, 1, 1, 1) if grid.scale.ndim else ()) for t in (grid.scale, grid.zero_point))
    low, high = scale * (grid.q_min - zero), scale * (grid.q_max - zero)
    inside = (wide > low) & (wide < high)  # the half steps at the ends are each method's own
    outside = (wide < low - scale) | (wide > high + scale)
    assert (wide.grad[inside] == 1).all()
    assert (wide.grad[outside] == 0).all()
    assert set(wide.grad.unique().tolist()) <= {0.0, 1.0}
    if isinstance(quantizer, ObservedRange):
        unclamped = torch.round(wide.detach() * (1 / scale)) + zero
        assert torch.equal(wide.grad, ((unclamped >= grid.q_min) & (unclamped <= grid.q_max)).float())
    assert outside.any()


@pytest.mark.parametrize("method", METHODS)
def test_what_meets_starts_on_the_range_of_all(method):
    images = photos(4, 16)
    net = Meeting({"dim": 1})
    prepared = quant.prepare(net, spec(method=method, weight_bits=4, act_bits=4)).train()
    prepared(images)
    shared = prepared.get_submodule("quantizers.cat")
    assert shared.is_calibrated()
    if method in ("ptq", "statassist"):  # which start on the smallest and the largest
        with torch.no_grad():
            every = torch.cat([net.a(images), 10 * net.b(images)], 1)
        assert torch.allclose(float_range(shared), torch.stack(every.aminmax()), rtol=0.3)
    assert shared._gathered == [], "nothing is kept between batches"


@pytest.mark.parametrize("method", METHODS)
def test_the_step_of_a_grid_is_that_of_its_integers(method):
    """Mid-rise weights reach every second integer, the others every one."""
    w = torch.linspace(-3, 3, 6 * 5 * 4 * 4)[torch.randperm(480)].view(6, 5, 4, 4)
    for bits in METHODS[method].weight_bits:
        quantizer = observed(make(method, {}, "weight", bits, "per_tensor"), w)
        found = quantizer.to_int(w).unique()
        if len(found) > 1:
            assert (found[1:] - found[:-1]).min() == quantizer.grid().step


@pytest.mark.parametrize("kind", ["weight", "signed"])
def test_rounding_is_left_alone_by_autocast(kind, monkeypatch):
    """In bf16, integers above 256 would be lost: they are computed in fp32 whatever the training's precision."""
    x = sample(kind)
    quantizer = observed(make("statassist", {}, kind, 8, "per_tensor"), x)
    rounding, seen = quantizer.rounding, []

    def spy(x):
        seen.append(torch.is_autocast_enabled("cpu"))
        return rounding(x)

    monkeypatch.setattr(quantizer, "rounding", spy)
    expected = quantizer(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(quantizer(x), expected)
        assert torch.is_autocast_enabled("cpu")
    assert seen == [False, False]
