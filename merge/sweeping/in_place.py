"""Moves alpha in a loaded VLM, tensor by tensor, from the originals each time.

What the model holds at an alpha is bit for bit what `python -m merge` writes at that alpha.
"""

from typing import Any

import torch
from safetensors import safe_open

from merge.matching.tensor_table import TensorClass, TensorPlan
from merge.reading.checkpoint import StoredTensor
from merge.writing.writer import merge_values
from train.model.parts import PartName, map_names


class AlphaDial:
    """Holds both decoders and sets the model's decoder to any mix of them."""

    def __init__(self, model: Any, table: list[TensorPlan]) -> None:
        """Pair each merged tensor with the live parameter it belongs to.

        Args:
            model: a vision-language model of transformers, loaded from the VLM folder.
            table: what `build_table` made of the VLM and text folders.
        """
        places = map_names(model.config.model_type, dict(model.named_parameters()))
        live = {place: name for name, place in places.items()}
        parameters = dict(model.named_parameters())
        self._pairs = [
            (parameters[live[PartName(plan.part, plan.name)]], plan, *_load_both(plan))
            for plan in table
            if plan.tensor_class is TensorClass.MERGED
        ]

    @torch.no_grad()
    def set(self, alpha: float) -> None:
        """Set the decoder to `text + alpha * (vlm - text)`, rows that only the VLM has excepted."""
        for parameter, plan, text, vlm in self._pairs:
            mixed = vlm.clone()
            rows = min(len(text), len(vlm))
            mixed[:rows] = merge_values(text[:rows], vlm[:rows], alpha)
            for start, stop in plan.vlm_rows:
                mixed[start:stop] = vlm[start:stop]
            parameter.copy_(mixed)


def _load_both(plan: TensorPlan) -> tuple[torch.Tensor, torch.Tensor]:
    assert plan.text is not None
    return _load(plan.text), _load(plan.vlm)


def _load(tensor: StoredTensor) -> torch.Tensor:
    with safe_open(str(tensor.file), framework="pt") as file:
        loaded: torch.Tensor = file.get_tensor(tensor.name)
        return loaded
