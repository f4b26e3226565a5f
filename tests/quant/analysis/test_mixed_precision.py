"""Bits by layer, chosen for a size or for agreement with the float net: the target is met by what is then prepared."""

import copy
import json

import pytest
import torch

import quant
from experiment import training
from quant.analysis.compare import megabytes_at_bits
from quant.analysis.mixed_precision import GreedyPath, quantized_after_training, weight_candidates
from quant.graph.views import layers
from tests.conftest import agrees_in_integers, spec
from utils.errors import UserError

AUTO = {"method": "ptq", "layers": "auto", "observer": "mse"}


def without_labels(digits16) -> tuple[list, list]:
    """(sample, held out): training images; a label that anyone looked at would be an error."""
    batches = [(x, None) for x, _ in digits16[0]]
    return batches[:2], batches[2:6]


def chosen(plain_net, digits16, **keys) -> tuple[dict, torch.fx.GraphModule]:
    """The layers that are chosen, and the net that a run prepares with them."""
    settings, (sample, held_out) = spec(**AUTO | keys), without_labels(digits16)
    found = quant.choose_layers(plain_net, settings, sample, held_out)
    prepared = quant.prepare(
        copy.deepcopy(plain_net), spec(**{"method": "ptq", "observer": "mse"} | keys | {"layers": found})
    )
    quant.calibrate(prepared, (x for x, _ in sample))
    return found, prepared


def first_choices_that_change(plain_net, prepared, held_out) -> float:
    with torch.inference_mode():
        changed = [(prepared(x).argmax(1) != plain_net(x).argmax(1)).float() for x, _ in held_out]
    return 100 * float(torch.cat(changed).mean())


@pytest.mark.parametrize("megabytes", [0.014, 0.0075, 0.005])
def test_a_size_is_met_and_not_by_more_than_a_step(plain_net, digits16, megabytes):
    found, prepared = chosen(plain_net, digits16, target_mb=megabytes)
    assert set(found) == {"0", "2", "4", "8"}
    assert megabytes / 2 < megabytes_at_bits(prepared) <= megabytes
    bits = {name: placed.layer.weight_quantizer.bits for name, placed in layers(prepared).items()}
    assert bits == {name: one["weight_bits"] for name, one in found.items()}
    assert len(set(bits.values())) > 1, "one width for all would be no choice"


@pytest.mark.parametrize("percent", [0.5, 3.0])
def test_first_choices_change_on_no_more_images_than_allowed(plain_net, digits16, percent):
    _, prepared = chosen(plain_net, digits16, target_drop=percent)
    _, held_out = without_labels(digits16)
    assert first_choices_that_change(plain_net, prepared, held_out) <= percent
    eight = spec(method="ptq", observer="mse")
    assert megabytes_at_bits(prepared) < 0.75 * megabytes_at_bits(quant.prepare(copy.deepcopy(plain_net), eight))
    agrees_in_integers(prepared, digits16, least=90)


def test_a_looser_target_takes_fewer_bits(plain_net, digits16):
    sizes = [megabytes_at_bits(chosen(plain_net, digits16, target_drop=drop)[1]) for drop in (0.5, 10.0)]
    assert sizes[0] > sizes[1]


def test_no_layer_gets_more_than_it_would_have(plain_net, digits16):
    found, _ = chosen(plain_net, digits16, weight_bits=4, target_mb=0.0075)
    assert max(one["weight_bits"] for name, one in found.items() if name in ("2", "4")) <= 4
    assert {one["weight_bits"] for one in found.values()} <= {2, 3, 4, 6, 8}


def test_harm_and_bytes_are_those_of_a_net_with_these_bits_in_a_single_layer(plain_net, digits16):
    sample, _ = without_labels(digits16)
    settings = spec(**AUTO, target_mb=1)
    prepared = quantized_after_training(plain_net, settings, sample)
    found = weight_candidates(prepared, settings, range(2, 9), sample[:2])
    for bits in (2, 4):
        alone = quant.prepare(
            copy.deepcopy(plain_net),
            spec(method="ptq", observer="mse", weight_bits=bits, act_bits=32, first_last_bits="same"),
        )
        quant.calibrate(alone, (x for x, _ in sample))
        rows = quant.sensitivity(alone, [(x, torch.zeros(len(x), dtype=torch.long)) for x, _ in sample[:2]])["rows"]
        for row in rows:
            rung = next(rung for rung in found[row["layer"]] if rung.bits == bits)
            assert rung.kl_divergence == pytest.approx(row["kl_divergence"], rel=1e-3)
    for ladder in found.values():
        assert [rung.bits for rung in ladder] == [8, 6, 4, 3, 2]
        assert [rung.bytes for rung in ladder] == sorted((rung.bytes for rung in ladder), reverse=True)
        assert ladder[-1].kl_divergence > 10 * ladder[0].kl_divergence


def test_the_first_step_is_the_cheapest_a_byte(plain_net, digits16):
    sample, _ = without_labels(digits16)
    settings = spec(**AUTO, target_mb=1)
    prepared = quantized_after_training(plain_net, settings, sample)
    found = weight_candidates(prepared, settings, range(2, 9), sample[:1])
    for ladder, harm in zip(found.values(), (1.0, 0.1, 0.2, 5.0), strict=True):
        for step, rung in enumerate(ladder):
            rung.kl_divergence = harm * step
    path = GreedyPath(prepared, found)
    cost = {
        name: (one[1].kl_divergence - one[0].kl_divergence) / (one[0].bytes - one[1].bytes)
        for name, one in found.items()
    }
    assert path.steps[0] == min(cost, key=cost.get)
    assert len(path.steps) == 16
    assert set(path.after(16).values()) == {4}


def test_a_target_that_cannot_be_met_is_a_line(plain_net, digits16):
    with pytest.raises(
        UserError,
        match=r"quant.target_mb: 0.001 MB cannot be reached; with the fewest bits the model takes 0.00\d\d MB",
    ):
        chosen(plain_net, digits16, target_mb=0.001)
    with pytest.raises(
        UserError,
        match=r"quant.target_drop: 0.0 % cannot be reached: with the most bits, the predicted class changes for \d",
    ):
        chosen(plain_net, digits16, target_drop=0.0, act_bits=1)


def test_dorefa_keeps_its_linear_eight_bits_and_takes_no_other_that_it_cannot(plain_net, digits16):
    settings = spec(method="dorefa", weight_bits=6, reduce_range=True, layers="auto", target_mb=0.01)
    found = quant.choose_layers(plain_net, settings, *without_labels(digits16))
    assert found
    assert all(one["weight_bits"] in (2, 3, 4, 6) for one in found.values())
    prepared = quant.prepare(copy.deepcopy(plain_net), spec(**settings.flat() | {"layers": found}))
    assert megabytes_at_bits(prepared) <= 0.01


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["quant.layers=auto"], "quant.layers: auto needs a target: quant.target_drop or quant.target_mb"),
        (["quant.layers=auto", "quant.target_mb=1", "quant.target_drop=1"], "and not both"),
        (["quant.target_mb=1"], "quant.target_mb: nothing is chosen for it; quant.layers=auto does"),
        (
            ["quant.layers=auto", "quant.target_mb=1", "quant.method=lsq"],
            "quant.layers: auto chooses by a trained float model: lsq needs model.weights",
        ),
        (["quant.layers=aut"], 'quant.layers: input should be an object, not "aut"'),
        (["quant.layers=auto", "quant.target_mb=0"], "quant.target_mb: input should be greater than 0"),
    ],
)
def test_settings_that_cannot_work_are_refused_in_the_first_second(keys, message, tmp_path):
    with pytest.raises(UserError, match=message):
        training.main([*keys, f"run.dir={tmp_path}"])
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def weights(plain_net, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "plain.pt"
    torch.save(plain_net.state_dict(), path)
    return path


RUN = ["model.name=tests.nets:plain", "data.image_size=16", 'run.engines=["reference","fbgemm"]']


def of(folder) -> tuple[dict, dict, dict]:
    """A run's setting, summary and tensors."""
    config, summary = (json.loads((folder / name).read_text()) for name in ("config.json", "summary.json"))
    return config, summary, torch.load(folder / "last.pt", weights_only=True)["model"]


def test_a_run_has_its_choice_by_name_and_its_setting_gives_the_same_again(weights, tmp_path, capsys):
    auto = [*RUN, f"run.dir={tmp_path}", f"model.weights={weights}", "quant.method=ptq", "run.epochs=0"]
    auto += ["quant.layers=auto", "quant.target_mb=0.0075", "quant.calibration_images=512"]
    training.main([*auto, "run.name=auto"])
    config, summary, state = of(tmp_path / "auto")
    assert {name: one["act_bits"] for name, one in config["quant"]["layers"].items()} == dict.fromkeys("0248")
    assert summary["size_mb_at_bits"] <= 0.0075
    assert summary["bit_equal"] == {"reference": 100.0, "fbgemm": 100.0}
    assert f": {summary['size_mb_at_bits']:.4f} MB" in capsys.readouterr().out
    training.main(["-c", str(tmp_path / "auto" / "config.json"), "run.name=again"])
    again, summary_again, state_again = of(tmp_path / "again")
    assert again["quant"] == config["quant"]
    assert summary_again["accuracy"] == summary["accuracy"]
    assert all(torch.equal(state[name], state_again[name]) for name in state)
    training.main([*auto, "run.name=auto"])
    assert "is finished" in capsys.readouterr().out
    training.main([*auto, "run.name=auto", "quant.target_mb=0.014"])
    assert of(tmp_path / "auto")[1]["size_mb_at_bits"] > 0.0075, "another target is another run"


def test_a_method_that_trains_starts_on_the_chosen_bits(weights, tmp_path):
    auto = [
        *RUN,
        f"run.dir={tmp_path}",
        f"model.weights={weights}",
        "quant.method=lsq",
        "run.epochs=1",
        "optim.lr=0.005",
        "data.augment=none",
        "quant.step_init=mse",
        "quant.layers=auto",
        "quant.target_drop=3",
        "quant.calibration_images=512",
        "run.name=lsq",
    ]
    training.main(auto)
    config, summary, state = of(tmp_path / "lsq")
    bits = {one["weight_bits"] for one in config["quant"]["layers"].values()}
    assert min(bits) < 8
    assert summary["agreement"] == {"reference": 100.0, "fbgemm": 100.0}
    assert summary["accuracy"]["simulated"]["top1"] > 80
    (tmp_path / "lsq" / "summary.json").unlink()  # as if killed just before
    training.main(auto)
    config_again, summary_again, state_again = of(tmp_path / "lsq")
    assert config_again == config
    assert summary_again["accuracy"] == summary["accuracy"]
    assert all(torch.equal(state[name], state_again[name]) for name in state)


def test_target_drop_needs_images_that_the_ranges_do_not_see(weights, tmp_path):
    auto = [
        *RUN,
        f"run.dir={tmp_path}",
        f"model.weights={weights}",
        "quant.method=ptq",
        "run.epochs=0",
        "data.limit=200",
    ]
    auto += ["quant.layers=auto", "quant.target_drop=3"]
    with pytest.raises(UserError, match=r"quant.calibration_images: 1024 leave no training images"):
        training.main(auto)
    training.main([*auto, "quant.calibration_images=100"])
    assert min(one["weight_bits"] for one in of(tmp_path / "train")[0]["quant"]["layers"].values()) < 8
