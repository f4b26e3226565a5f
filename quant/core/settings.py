"""The keys of the quant section that every method reads, and what the section is once it is resolved.

A method adds Options of its own, in its own file. The section of a method is flat: the common keys and its options.
"""

from typing import Any, Generic, Literal, TypeVar

from pydantic import ConfigDict, Field

from utils.sections import FLOAT_BITS, Bits, PathText, Section


class LayerBits(Section):
    """Bits of one layer; null: as the rest of the section says."""

    weight_bits: Bits | None = None
    """Bits of its weights; 32 leaves them float."""
    act_bits: Bits | None = None
    """Bits of its input; 32 for float, unless another layer reads the same in integers."""


Layers = dict[str, LayerBits | Literal["float"]]


class CommonSettings(Section):
    """The common keys whose values need no filling in."""

    method: str = "statassist"
    """How low precision is reached: a row of quant.METHODS."""
    weight_bits: Bits = 8
    """Bits of the weights; 32 leaves them float."""
    act_bits: Bits = 8
    """Bits of the inputs of convolutions and linear layers; 32 leaves all activations float."""
    first_last_bits: Bits | Literal["same"] = 8
    """Bits of the first and last layer's weights and of the last layer's input. The image always has 8."""
    residual_bits: Bits = 8
    """Bits of the inputs of additions, pools and other element-wise operators."""
    target_drop: float | None = Field(None, ge=0, lt=100)
    """layers auto: percent of the held-out training images whose predicted class may change: the most that the float
    model's top-1 on them can fall. With layers by name: what they were chosen for."""
    target_mb: float | None = Field(None, gt=0)
    """layers auto: the most MB of weights, scales and biases at their own bits. With layers by name: as above."""
    granularity: Literal["per_channel", "per_tensor"] = "per_channel"
    """Weight scales: one an output channel, or one a layer."""
    symmetric_activations: bool = False
    """All activations have zero point 0 and fit int8, as TensorRT needs them. Values that cannot be negative then have
    7 bits at most, and an ONNX file has int8 in the place of uint8."""
    engine: str = "fbgemm"
    """The integer engine that the run is meant for; evaluate.py measures any of them. auto: the fastest one that is
    exact for the trained net, on this machine."""
    min_integer_share: float = Field(0.5, ge=0, le=1)
    """The least share of the model's multiply-accumulates that must run in integers; where fewer do, the run stops
    before it reads an image, and names what stays in float."""
    calibration_images: int = Field(1024, ge=1)
    """Training images, without augmentation, that post-training ranges, roundings and corrections are found on, layers
    auto is chosen on, and batch norm statistics of averaged weights are estimated on."""
    bn_reestimation_images: int = Field(0, ge=0)
    """Training images on which batch norm statistics are estimated again when quantized training ends; 0: they stay as
    training left them."""
    teacher: PathText | None = None
    """A checkpoint of train.py, of the float model, say, whose outputs are learned in addition to the labels; null:
    none."""
    teacher_share: float = Field(0.5, gt=0, le=1)
    """Teacher: its share of the loss; the labels have the rest."""
    temperature: float = Field(1.0, gt=0)
    """Teacher: what both models' logits are divided by before they are compared."""


class QuantSettings(CommonSettings):
    """The quant section of a setting, without a method's own options. Its kinds are built in quant/registry.py."""

    layers: Layers | Literal["auto"] = Field({})
    """Bits of layers by name, before all else: {"layer4.*": {"weight_bits": 4}, "fc": "float"}; * and ? match. auto:
    weight bits of each layer, up to what it would have, are chosen for a target; config.json has them by name."""
    reduce_range: bool | Literal["auto"] = "auto"
    """Keep integer weights within +-63, which int8 kernels without VNNI need to be exact. auto: as this CPU needs."""


Options = TypeVar("Options", bound=Section)


class ResolvedQuant(CommonSettings, Generic[Options]):
    """A quant section with nothing left to decide: what prepare and a method's functions take."""

    model_config = ConfigDict(use_attribute_docstrings=False)  # its kinds have no source, see NO_SOURCE

    layers: Layers
    """Bits of layers by name; none while they are yet to be chosen."""
    chooses_layers: bool
    """Whether a target decides on the layers' bits, once there is a trained float model (layers: auto)."""
    reduce_range: bool
    options: Options
    """The method's own options, its defaults filled in."""

    @property
    def quantizes_weights(self) -> bool:
        """Whether any layer has integer weights: by the common bits, or by name."""
        return self.chooses_layers or self._any_bits("weight_bits")

    @property
    def least_weight_bits(self) -> int:
        """The fewest bits of any layer's weights: by the common bits, those of its place, or by name; auto: 2."""
        ends = self.weight_bits if self.first_last_bits == "same" else self.first_last_bits
        of_ends = [] if self.weight_bits == FLOAT_BITS else [ends]
        return min([*self._all_bits("weight_bits"), *of_ends, *([2] if self.chooses_layers else [])])

    @property
    def quantizes_activations(self) -> bool:
        """Whether any layer has integer inputs: by the common bits, or by name."""
        return self._any_bits("act_bits")

    @property
    def quantizes(self) -> bool:
        """Whether any layer has integer weights or inputs."""
        return self.quantizes_weights or self.quantizes_activations

    def _any_bits(self, key: str) -> bool:
        return any(bits != FLOAT_BITS for bits in self._all_bits(key))

    def _all_bits(self, key: str) -> list[int]:
        """The common bits and those that layers have by name."""
        by_name = [getattr(bits, key) for bits in self.layers.values() if bits != "float"]
        return [bits for bits in (getattr(self, key), *by_name) if bits is not None]

    @property
    def weight_limit(self) -> int:
        """The largest integer weight: int8's, or what kernels without VNNI multiply exactly."""
        return 63 if self.reduce_range else 127

    @property
    def per_channel(self) -> bool:
        """Whether each output channel of a weight has its own scale."""
        return self.granularity == "per_channel"

    def flat(self) -> dict[str, Any]:
        """The section of a setting that resolves to this."""
        common = self.model_dump(exclude={"options", "chooses_layers"})
        return common | ({"layers": "auto"} if self.chooses_layers else {}) | self.options.model_dump()
