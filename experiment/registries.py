"""The tables whose names a setting can use. --list prints them, and the JSON Schemas offer them in an editor."""

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
