"""The common keys of the quant section: their defaults, and what the resolved section derives from them."""

import quant
from tests.conftest import spec


def test_all_is_quantized_to_eight_bits_unless_asked_otherwise():
    settings = spec()
    bits = (settings.weight_bits, settings.act_bits, settings.first_last_bits, settings.residual_bits)
    assert bits == (8, 8, 8, 8)
    assert settings.method == "statassist"
    assert settings.layers == {}
    assert not settings.chooses_layers
    assert settings.bn_reestimation_images == 0
    assert settings.calibration_images == 1024
    assert (settings.teacher, settings.teacher_share, settings.temperature) == (None, 0.5, 1.0)


def test_the_largest_weight_and_the_scales():
    assert spec(reduce_range=False).weight_limit == 127
    assert spec(reduce_range=True).weight_limit == 63
    assert spec().per_channel
    assert not spec(granularity="per_tensor").per_channel


def test_a_resolved_section_is_a_section_again():
    for keys in ({}, {"method": "lsq", "weight_bits": 3}, {"layers": {"fc": "float"}}):
        settings = spec(**keys)
        assert quant.resolve(quant.parse(**settings.flat())) == settings
        assert settings.flat()["layers"] == keys.get("layers", {})
    chosen = spec(layers="auto", target_drop=1.0)
    assert chosen.chooses_layers
    assert chosen.layers == {}
    assert chosen.flat()["layers"] == "auto"
