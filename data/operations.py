"""The operations of random augmentation, each with its own strength for every image of a batch.

    operation(images uint8 [B, C, H, W], strength fp64 [B]) -> uint8 [B, C, H, W]        C: 1 or 3

Images are on any device, strengths on the CPU.

They compute what torchvision.transforms.v2 does with one image and one strength, whose names they have. An image's
result does not depend on the others in its batch.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

GREY = (0.2989, 0.587, 0.114)


def _per_image(images: Tensor, strength: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """A strength for each image, on their device: [B, 1, 1, 1]."""
    return strength.to(dtype)[:, None, None, None].to(images.device)


def warped(images: Tensor, matrix: Tensor) -> Tensor:
    """Each pixel (x, y), measured from the middle, takes the nearest of its image at matrix @ (x, y, 1), else black.

    matrix: fp64 [B, 2, 3], on the CPU.
    """
    high, wide = images.shape[-2:]
    y, x = (torch.arange(size, dtype=torch.float32, device=images.device) - (size - 1) / 2 for size in (high, wide))
    scaled = (matrix / torch.tensor([wide / 2, high / 2], dtype=matrix.dtype)[:, None]).float().to(images.device)
    across, down, shift = (scaled[:, None, None, :, i] for i in range(3))
    grid = across * x[:, None] + down * y[:, None, None] + shift
    return F.grid_sample(images.float(), grid, mode="nearest", align_corners=False).to(torch.uint8)


def _matrix(strength: Tensor, **elements: Tensor) -> Tensor:
    """[[xx, xy, x1], [yx, yy, y1]] of each image, the identity but for the elements that are given: fp64 [B, 2, 3]."""
    zero, one = torch.zeros_like(strength), torch.ones_like(strength)
    values = {"xx": one, "xy": zero, "x1": zero, "yx": zero, "yy": one, "y1": zero} | elements
    return torch.stack([*values.values()], 1).view(-1, 2, 3)


def shear_x(images: Tensor, strength: Tensor) -> Tensor:
    return warped(images, _matrix(strength, xy=strength, x1=strength * images.shape[-2] / 2))


def shear_y(images: Tensor, strength: Tensor) -> Tensor:
    return warped(images, _matrix(strength, yx=strength, y1=strength * images.shape[-1] / 2))


def translate_x(images: Tensor, strength: Tensor) -> Tensor:
    return warped(images, _matrix(strength, x1=-strength.trunc()))


def translate_y(images: Tensor, strength: Tensor) -> Tensor:
    return warped(images, _matrix(strength, y1=-strength.trunc()))


def rotate(images: Tensor, strength: Tensor) -> Tensor:
    """Counterclockwise by `strength` degrees."""
    cos, sin = strength.deg2rad().cos(), strength.deg2rad().sin()
    return warped(images, _matrix(strength, xx=cos, xy=-sin, yx=sin, yy=cos))


def blended(images: Tensor, others: Tensor, strength: Tensor) -> Tensor:
    """images + strength (images - others), within 0..255: images where they are the same."""
    found = images.float()
    return (found + _per_image(images, strength) * (found - others)).clamp_(0, 255).to(torch.uint8)


def grey(images: Tensor) -> Tensor:
    """The brightness of each pixel, whole numbers: fp32 [B, 1, H, W]."""
    if images.shape[1] == 1:
        return images.float()
    red, green, blue = (images[:, i, None] for i in range(3))
    return red.mul(GREY[0]).add_(green, alpha=GREY[1]).add_(blue, alpha=GREY[2]).floor_()


def brightness(images: Tensor, strength: Tensor) -> Tensor:
    return (images * _per_image(images, 1 + strength)).clamp_(0, 255).to(torch.uint8)


def color(images: Tensor, strength: Tensor) -> Tensor:
    return images if images.shape[1] == 1 else blended(images, grey(images), strength)


def contrast(images: Tensor, strength: Tensor) -> Tensor:
    pixels = images.shape[-2] * images.shape[-1]
    total = grey(images).to(torch.int64).sum(dim=(1, 2, 3), keepdim=True)  # integers: exact in any order
    return blended(images, (total / pixels).float(), strength)


def sharpness(images: Tensor, strength: Tensor) -> Tensor:
    """Against the average of 3 x 3 pixels, that in the middle counted five times. Edges stay."""
    if min(images.shape[-2:]) <= 2:
        return images
    values = images.float()
    columns = values[..., :-2, :] + values[..., 1:-1, :] + values[..., 2:, :]
    around = columns[..., :-2] + columns[..., 1:-1] + columns[..., 2:]
    middle = values[..., 1:-1, 1:-1]
    sharpened = images.clone()
    sharpened[..., 1:-1, 1:-1] = blended(middle, around.add_(middle, alpha=4).div_(13).round_(), strength)
    return sharpened


def posterize(images: Tensor, strength: Tensor) -> Tensor:
    """Only the `strength` highest of 8 bits are kept."""
    return images & _per_image(images, 256 - 2 ** (8 - strength), torch.uint8)


def solarize(images: Tensor, strength: Tensor) -> Tensor:
    """What is as bright as `strength`, of 1, or brighter is inverted."""
    return torch.where(images >= _per_image(images, 255 * strength), ~images, images)


def autocontrast(images: Tensor, strength: Tensor) -> Tensor:
    from torchvision.transforms.v2 import functional  # here: seconds to import, which a run without it does not need

    return functional.autocontrast(images)


def equalize(images: Tensor, strength: Tensor) -> Tensor:
    from torchvision.transforms.v2 import functional  # as above

    return functional.equalize(images)


OPERATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "Identity": lambda images, strength: images,
    "ShearX": shear_x,
    "ShearY": shear_y,
    "TranslateX": translate_x,
    "TranslateY": translate_y,
    "Rotate": rotate,
    "Brightness": brightness,
    "Color": color,
    "Contrast": contrast,
    "Sharpness": sharpness,
    "Posterize": posterize,
    "Solarize": solarize,
    "AutoContrast": autocontrast,
    "Equalize": equalize,
    "Invert": lambda images, strength: ~images,
}
"""By the names of torchvision's tables, which say how strong they may be."""
