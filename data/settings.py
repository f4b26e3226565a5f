"""The keys of the data section that every dataset reads. A dataset's own options are declared next to its loader."""

from typing import Literal

from pydantic import Field, FiniteFloat, PositiveFloat

from utils.sections import Section


class DataSettings(Section):
    """The data section of a setting, without a dataset's own options. Its kinds are built in data/registry.py."""

    name: str = "digits"
    """The dataset: a row of data.DATASETS, or package.module:function, whose arguments further keys are."""
    image_size: int = Field(32, ge=8, le=1024)
    """Side of the square images that the model sees, in pixels. Its default is that of the dataset."""
    channels: int = Field(3, ge=1, le=64)
    """Channels of an image: 3, RGB; 1, grey. A function of your own may return images of any number."""
    mean: list[FiniteFloat] | None = None
    """Mean of each channel, on the scale from 0 (black) to 1, which is subtracted from it. null: as for model.weights;
    else the dataset's own, and ImageNet's for folders of images."""
    std: list[PositiveFloat] | None = None
    """Standard deviation of each channel, by which it is divided. null: as for mean."""
    batch_size: int = Field(128, ge=1, le=2**20)
    """Images a training step, of all processes together. Evaluation takes its own batches."""
    augment: Literal["none", "crop", "trivial", "rand", "auto"] = "crop"
    """What is done to training images. crop: a random part, mirrored at random where the dataset allows it. trivial,
    rand, auto: then random changes of colour and shape, too (TrivialAugment, RandAugment, AutoAugment)."""
    random_erasing: float = Field(0.0, ge=0.0, le=1.0)
    """Share of the training images in which a random rectangle is erased."""
    mixup: float = Field(0.0, ge=0.0, le=100.0)
    """Alpha, 0.2, say: training images and labels are blended in pairs, by shares of Beta(alpha, alpha); 0: never."""
    cutmix: float = Field(0.0, ge=0.0, le=100.0)
    """Alpha, 1, say: a rectangle of another image is put into each training image; 0: never. With mixup, too, each
    batch gets one of them."""
    sampling: Literal["once", "balanced"] = "once"
    """once: an epoch has each training image once. balanced: it has as many, drawn so that all classes are equally
    frequent."""
    limit: int | None = Field(None, ge=1)
    """Take only this many images (of a fixed shuffle) of each part, training, validation and test, for trials."""
    val_fraction: float | None = Field(None, ge=0.0, lt=1.0)
    """Share of the training images that become validation images, which choose best.pt, for datasets without any.
    0: none, and no best.pt; the test set never chooses. null: 0.1 for imagefolder, else 0."""
