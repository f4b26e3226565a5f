"""A user's own dataset, as a setting names it: "data": {"name": "tests.data.example:squares", "side": 5}."""

import torch

import data


def squares(image_size: int, limit: int | None, train: bool, side: int = 4) -> data.Dataset:
    """Bright squares of `side` pixels in the left or the right half of black images."""

    def draw(count: int) -> data.Images:
        labels = torch.arange(count) % 2
        pixels = torch.zeros(count, image_size, image_size, 3, dtype=torch.uint8)
        for image, label in zip(pixels, labels.tolist(), strict=True):
            left = label * (image_size - side)
            image[:side, left : left + side] = 255
        return data.Images(pixels, labels)

    mean, std = (0.1,) * 3, (0.3,) * 3
    return data.Dataset(draw(limit or 256) if train else None, draw(64), ["left", "right"], mean, std, flip=False)
