"""The tables whose names a setting may use: what --list prints, and what the JSON Schemas offer."""

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
