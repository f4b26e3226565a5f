"""The file of published weights that `model.weights="pretrained"` stands for, downloaded into its library's own cache.

torchvision publishes weights for its own models and, by the same names, for the ImageNet forms of the table's; timm for
its models. Both libraries' caches are looked into first, and what is downloaded is checked by its checksum.
"""

import importlib.util
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import torch

from models.published import HASH
from utils.console import say
from utils.errors import UserError, first_line
from utils.importing import is_external

PRETRAINED = "pretrained"
KEY = "model.weights=pretrained"


def file_of(name: str) -> str:
    """The path of the published weights of a model.

    Raises UserError if there are none, or if they cannot be downloaded: which file goes where.
    """
    if name.startswith("timm:"):
        return _timms(name.removeprefix("timm:"))
    member = name.removeprefix("torchvision:")
    if is_external(member):
        raise UserError(f"{KEY}: only torchvision and timm publish weights, not {name}; name a file")
    return _downloaded(_torchvisions(member).url)


def _torchvisions(member: str) -> Any:
    from torchvision import models  # here: seconds to import

    if member not in models.list_models(module=models):
        raise UserError(f"{KEY}: torchvision has no {member}, whose weights they would be; name a file, or null")
    return models.get_model_weights(member).DEFAULT


def _downloaded(url: str) -> str:
    """The file of a URL of torchvision, in torch's cache. The name of the file tells its checksum."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if path.is_file():
        return str(path)
    known = HASH.search(url)
    say(f"{KEY}: downloading {url}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), known[1] if known else None)
    except (OSError, RuntimeError) as error:  # no network; another checksum
        raise UserError(
            f"{KEY}: {url} cannot be downloaded ({first_line(error)}); put it into {path.parent}, "
            "or name a copy, or null to start from scratch: model.weights=FILE"
        ) from None
    return str(path)


def _timms(member: str) -> str:
    """A file that timm publishes, in the cache of the Hugging Face Hub."""
    if importlib.util.find_spec("timm") is None:
        raise UserError(f"{KEY}: timm is not installed; pip install timm")
    from huggingface_hub import hf_hub_download, try_to_load_from_cache  # timm needs it
    from timm.models import get_pretrained_cfg

    found = get_pretrained_cfg(member, allow_unregistered=True)
    if found is None or not found.hf_hub_id:
        raise UserError(f"{KEY}: timm publishes no weights of {member}; name a file, or null")
    file = found.hf_hub_filename or "model.safetensors"
    repository = found.hf_hub_id
    cached = try_to_load_from_cache(repository, file)
    if isinstance(cached, str):
        return cached
    where = f"https://huggingface.co/{repository}/resolve/main/{file}"
    say(f"{KEY}: downloading {where}")
    try:
        with urlopen(Request(where, method="HEAD"), timeout=10):  # fails at once, where the Hub tries for half a minute
            return hf_hub_download(repository, file)
    except Exception as error:  # of the network, of the Hub, of the system
        reason = first_line(error, 100)
        raise UserError(f"{KEY}: {where} cannot be downloaded ({reason}); name a copy: model.weights=FILE") from None
