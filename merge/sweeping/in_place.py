"""Moves alpha in a loaded VLM, tensor by tensor, from the originals each time.

What the model holds of a recipe is bit for bit what `python -m merge` writes of it.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import safe_open

from configs.signals import held_back
from merge.matching.tensor_table import TensorClass, TensorPlan
from merge.proof.recompute import recompute
from merge.reading.checkpoint import StoredTensor
from merge.reading.inputs import InputReader
from merge.recipe.apply import merge_whole
from merge.recipe.interface import MergeMethod, Settings
from merge.recipe.linear import LINEAR
from merge.recipe.recipe import Recipe
from merge.recipe.torch_dtypes import TORCH_DTYPES, one_thread
from merge.writing.output import OutputTensor
from train.model.parts import PartName, map_names


@dataclass(frozen=True)
class _Place:
    """A merged tensor: the live parameter it belongs to and its originals, mapped from the files.

    Nobody writes into the originals, so that their memory is the page cache's, which the processes
    of a machine share. With a low-rank change there is no original in any file: it is worked out
    each time, stretch by stretch.
    """

    parameter: torch.nn.Parameter
    plan: TensorPlan
    text: torch.Tensor
    vlm: torch.Tensor
    base: torch.Tensor | None


class AlphaDial:
    """Holds the decoders on the CPU and sets the model's decoder, wherever it is, to any mix."""

    def __init__(
        self, model: Any, table: Sequence[TensorPlan], *, num_threads: int | None = None
    ) -> None:
        """Pair each merged tensor with the live parameter it belongs to.

        Args:
            model: a vision-language model of transformers, loaded from the VLM folder.
            table: what `build_table` made of the VLM and text folders.
            num_threads: that mix; None: as many as torch has. One mixes 0.16 billion elements a
                second in bfloat16 (measured), so an 8B decoder would take it 50 s.
        """
        places = map_names(model.config.model_type, dict(model.named_parameters()))
        live = {place: name for name, place in places.items()}
        parameters = dict(model.named_parameters())
        self._table = list(table)
        self._num_threads = num_threads or torch.get_num_threads()
        merged = [plan for plan in table if plan.tensor_class is TensorClass.MERGED]
        # The largest first: the one thread that mixes an embedding does not begin when others end.
        merged.sort(key=lambda plan: -plan.vlm.num_elements)
        self._places = [_load(parameters[live[PartName(p.part, p.name)]], p) for p in merged]
        for plan in table:
            if plan.tensor_class is TensorClass.ADAPTED:  # the same at every alpha
                _work_out(parameters[live[PartName(plan.part, plan.name)]], plan, LINEAR, None)

    def set(self, recipe: Recipe) -> None:
        """Set the decoder to what a recipe makes of the originals, with their stored dtype.

        A signal takes effect after the tensors that are at work; the decoder is then between two.
        """
        settings = recipe.for_tensors(self._table)

        @torch.no_grad()
        def mix(place: _Place) -> None:
            if has_come():
                return
            plan, chosen = place.plan, settings[place.plan.name]
            if plan.low_rank is not None:
                _work_out(place.parameter, plan, recipe.method, chosen)
                return
            mixed = merge_whole(
                plan,
                recipe.method,
                chosen,
                text=place.text,
                vlm=place.vlm,
                base=place.base,
                dtype=TORCH_DTYPES[plan.vlm.dtype],
            )
            place.parameter.copy_(mixed)

        with (
            held_back() as has_come,
            one_thread(),
            ThreadPoolExecutor(self._num_threads) as threads,
        ):
            for _ in threads.map(mix, self._places):  # raises what a thread has raised
                pass


def _load(parameter: torch.nn.Parameter, plan: TensorPlan) -> _Place:
    assert plan.text is not None
    base = None if plan.base is None else _map(plan.base)
    return _Place(parameter, plan, _map(plan.text), _map(plan.source), base)


@torch.no_grad()
def _work_out(
    parameter: torch.nn.Parameter, plan: TensorPlan, method: MergeMethod, settings: Settings | None
) -> None:
    """Sets a parameter to what is written of a tensor that an adapter changes."""
    mixed = torch.empty(plan.vlm.num_elements, dtype=TORCH_DTYPES[plan.vlm.dtype])
    with closing(InputReader()) as reader:
        tensor = OutputTensor(plan, plan.vlm.dtype, 0)
        for start, stop, values in recompute(tensor, method, settings, reader):
            mixed[start:stop] = values
    parameter.copy_(mixed.view(plan.vlm.shape))


def _map(tensor: StoredTensor) -> torch.Tensor:
    with safe_open(str(tensor.file), framework="pt") as file:
        loaded: torch.Tensor = file.get_tensor(tensor.name)
        return loaded
