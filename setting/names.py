"""The tables whose names a setting can use. --list prints them, and the JSON Schemas offer them in an editor."""

import data
import models
import quant
from utils.training import optim

TABLES = {
    "models": models.MODELS,
    "datasets": data.DATASETS,
    "methods": quant.METHODS,
    "engines": quant.ENGINES,
    "optimizers": optim.OPTIMIZERS,
}
