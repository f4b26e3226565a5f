"""How far SAWB's ranges are from those of least squared error, on the weights of trained nets.

    python -m benchmarks.sawb_error runs/a/last.pt weights.pth ...

For each file, granularity and bit-width: the squared error of all layers but the first and last, as a multiple of the
least that any of 60 ranges up to max |w| gives (mean over layers), for the range that quant/methods/sawb.py takes and
for max |w|.
"""

import sys

import torch
from torch import Tensor

from quant.methods.sawb import Sawb, sawb_alpha
from utils.runs import checkpoint, tensor_file
from utils.table import text_table

RANGES = torch.linspace(0.15, 1, 60).tolist()
FEWEST = 16
"""Rows of fewer weights are left out."""


def layers(path: str) -> list[Tensor]:
    """The weights of the layers of a checkpoint or a state dict, each [O, ...], without the first and the last."""
    found = tensor_file.load(path)
    state = found["model"] if checkpoint.is_ours(found) else found
    weights = [value.float() for name, value in state.items() if name.endswith("weight") and value.ndim in (2, 4)]
    return weights[1:-1]


def errors(rows: Tensor, alpha: Tensor, bits: int) -> Tensor:
    """Squared error of each row [N, values] that SAWB's levels of this range [N] leave."""
    quantizer = Sawb(bits, len(rows), 127)
    quantizer.alpha_w.copy_(alpha)
    return (quantizer.grid().value(quantizer.to_int(rows)) - rows).square().sum(1)


def excess(rows: Tensor, bits: int) -> tuple[float, float]:
    """The error of SAWB's range, and of max |w|, as multiples of the least."""
    most = rows.abs().amax(1)
    least = torch.stack([errors(rows, share * most, bits) for share in RANGES]).amin(0).sum()
    ours, whole = (errors(rows, alpha, bits).sum() / least for alpha in (sawb_alpha(rows, bits), most))
    return float(ours), float(whole)


def main(paths: list[str]) -> None:
    table = []
    for path in paths:
        for granularity in ("channel", "tensor"):
            rows = [w.flatten(1) if granularity == "channel" else w.flatten()[None] for w in layers(path)]
            for bits in range(2, 9):
                found = [excess(one, bits) for one in rows if one.shape[1] >= FEWEST]
                means = [f"{sum(values) / len(values):.3f}" for values in zip(*found, strict=True)]
                table.append([path, granularity, str(bits), *means])
    print(text_table(["weights", "a range for each", "bits", "sawb", "max |w|"], table))


if __name__ == "__main__":
    main(sys.argv[1:])
