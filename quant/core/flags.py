"""Flags of modules: Python values, so that a training step never waits for a device to read one."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn


class Flagged(nn.Module):
    """A module with flags: attributes that are True or False, which its state dict holds as tensors of that name.

    flags: the names of those that the class adds to its base classes'.
    """

    flags: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def all_flags(cls) -> list[str]:
        return [name for base in reversed(cls.__mro__) for name in base.__dict__.get("flags", ())]

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination.update({prefix + name: torch.tensor(getattr(self, name)) for name in self.all_flags()})

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: dict,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        ours = {prefix + name for name in self.all_flags()}
        rest = {key: value for key, value in state_dict.items() if key not in ours}
        super()._load_from_state_dict(rest, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs)
        for name in self.all_flags():
            found = state_dict.get(prefix + name)
            if not isinstance(found, Tensor):
                missing_keys.append(prefix + name)
            elif found.ndim:
                error_msgs.append(f"{prefix}{name} has shape {list(found.shape)}; a flag has []")
            else:
                setattr(self, name, bool(found))
