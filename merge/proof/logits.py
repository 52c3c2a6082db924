"""Loads a merged checkpoint as its users do, and compares tensors and logits with the recipe.

The other side is the VLM, loaded too, with its decoder set to what the recipe makes of the inputs:
one model in memory at a time. Imports transformers.
"""

import logging
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
import transformers

from configs.errors import CheckpointError, first_line
from merge.proof.recompute import recompute
from merge.reading.inputs import InputReader
from merge.recipe.interface import MergeMethod, Settings
from merge.writing.output import OutputFile, OutputTensor
from train.model.parts import PartName, list_first, map_names
from train.saving.disk import format_bytes
from train.saving.verify_export import SPARE, free_memory, picture_prompt

log = logging.getLogger(__name__)
NUM_TOKENS = 24  # of the text that is read
PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")
LEFT_OVER = "unexpected_keys"


def check_loads(folder: Path, vlm: Path) -> None:
    """Loads the checkpoint onto the meta device: all keys, no memory for weights.

    Raises CheckpointError for missing, unexpected or mismatched keys. (Measured, 5.23:
    `device_map="meta"` reports the same keys as a real load.)
    """
    _load(folder, like=vlm, device_map="meta")


def compare_logits(
    folder: Path,
    vlm: Path,
    files: Sequence[OutputFile],
    method: MergeMethod,
    settings: Mapping[str, Settings],
) -> dict[str, Any]:
    """Compares what is loaded from `folder` with the recipe; returns what was compared.

    Args:
        folder: the merged checkpoint.
        vlm: folder of the VLM.
        files: what was planned to be written.
        method: of the decoder's tensors.
        settings: {canonical name: settings} of them.

    Raises CheckpointError where a tensor or a logit differs.
    """
    num_bytes, free = sum(file.num_bytes for file in files), free_memory()
    if free is not None and free < SPARE * num_bytes:
        log.warning(
            "logits are not compared: the model takes %s, and %s of memory are free; keys, names "
            "and shapes were. Run --verify again where there is more",
            format_bytes(num_bytes), format_bytes(free),
        )  # fmt: skip
        check_loads(folder, vlm)
        return {"logits_compared": "no: too little memory"}
    merged = _load(folder, like=vlm, dtype="auto").eval()
    prompts = _prompts(folder, merged)
    found = {name: _logits(merged, inputs) for name, inputs in prompts.items()}
    num_compared = _set_or_compare(merged, files, method, settings, compare=True)
    dtype = merged.dtype
    del merged
    meant = _load(vlm, like=vlm, dtype=dtype).eval()
    _set_or_compare(meant, files, method, settings, compare=False)
    for name, inputs in prompts.items():
        if not _equal(_logits(meant, inputs), found[name]):
            raise CheckpointError(
                f"verification failed: once loaded, {folder} gives other logits for a {name} "
                "prompt than the recipe, though its tensors are right; is config.json the VLM's?"
            )
    return {
        "logits_compared": ", ".join(prompts),
        "num_tensors_compared_once_loaded": num_compared,
    }


@torch.no_grad()
def _set_or_compare(
    model: Any,
    files: Sequence[OutputFile],
    method: MergeMethod,
    settings: Mapping[str, Settings],
    *,
    compare: bool,
) -> int:
    """Compares a loaded model with the recipe, or sets it to it; returns the number of tensors."""
    live = _live_parameters(model)
    wrong, count = [], 0
    with closing(InputReader()) as reader:
        for tensor in (tensor for file in files for tensor in file.tensors):
            parameter = live.get(PartName(tensor.plan.part, tensor.plan.name))
            if parameter is None:  # a buffer, or a head that is tied in memory
                continue
            count += 1
            if not _apply(parameter, tensor, method, settings, reader, compare):
                wrong.append(tensor.plan.vlm.name)
    if wrong:
        raise CheckpointError(
            f"verification failed: {len(wrong)} of {count} tensors are not what the recipe asks "
            f"for once they are loaded: {list_first(wrong)}"
        )
    return count


def _apply(
    parameter: torch.Tensor,
    tensor: OutputTensor,
    method: MergeMethod,
    settings: Mapping[str, Settings],
    reader: InputReader,
    compare: bool,
) -> bool:
    """Whether a parameter is what the recipe asks for; or sets it so."""
    flat = parameter.detach().view(-1)
    is_decoder = tensor.plan.text is not None
    chosen = settings[tensor.plan.name] if is_decoder else None
    for start, stop, values in recompute(tensor, method, chosen, reader):
        if not compare:
            flat[start:stop].copy_(values)
        elif not _equal(flat[start:stop], values.to(flat.dtype)):
            return False
    return True


def _equal(one: torch.Tensor, two: torch.Tensor) -> bool:
    """Equal values; NaN, where it is allowed, is equal to NaN."""
    return torch.equal(one, two) or torch.allclose(one, two, rtol=0, atol=0, equal_nan=True)


def _live_parameters(model: Any) -> dict[PartName, torch.Tensor]:
    parameters = dict(model.named_parameters())
    places = map_names(model.config.model_type, parameters)
    return {place: parameters[name] for name, place in places.items()}


def _load(folder: Path, *, like: Path, **options: Any) -> Any:
    """Loads as a user does; every weight comes from the files.

    What the VLM's own files hold beyond its model (the unused head of a tower, tables of old files)
    may be left over here too.

    Args:
        folder: to load.
        like: folder of the VLM.
        options: for `from_pretrained`.
    """
    model, problems = _load_and_look(folder, **options)
    if problems and folder != like:
        left_over = _load_and_look(like, device_map="meta")[1].get(LEFT_OVER, set())
        problems[LEFT_OVER] = problems.get(LEFT_OVER, set()) - left_over
    told = [f"{key}: {list_first(sorted(names))}" for key, names in problems.items() if names]
    if told and folder != like:
        raise CheckpointError(f"verification failed: {folder} loads with {'; '.join(told)}")
    return model


def _load_and_look(folder: Path, **options: Any) -> tuple[Any, dict[str, set[str]]]:
    """A model, and what did not fit: {kind of problem: names}."""
    transformers.utils.logging.disable_progress_bar()  # the merge shows its own
    try:
        loaded: Any = transformers.AutoModelForImageTextToText.from_pretrained(
            folder, output_loading_info=True, local_files_only=True, **options
        )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise CheckpointError(
            f"verification failed: {folder} does not load in transformers: {first_line(error)}"
        ) from error
    return loaded[0], {key: set(map(str, names)) for key, names in loaded[1].items() if names}


def _prompts(folder: Path, model: Any) -> dict[str, dict[str, Any]]:
    """A text, and a picture with a question where the folder holds a processor."""
    size = model.config.get_text_config().vocab_size
    ids = torch.arange(8, 8 + NUM_TOKENS)[None] % size
    special = _special_ids(model.config)
    ids = ids[:, ~torch.isin(ids, special)[0]]
    prompts: dict[str, dict[str, Any]] = {"text": {"input_ids": ids}}
    if not any((folder / name).is_file() for name in PROCESSOR_FILES):
        return prompts
    try:
        prompts["picture"] = picture_prompt(folder)
    except Exception as error:  # templates and processors raise what they like: jinja2's errors too
        log.warning(
            "no picture prompt is compared: the processor in %s makes none: %s",
            folder, first_line(error),
        )  # fmt: skip
    return prompts


def _special_ids(config: Any) -> torch.Tensor:
    """Ids that stand for pictures: a text prompt holds none."""
    ids = [value for key, value in vars(config).items()
           if isinstance(value, int) and ("token_id" in key or "token_index" in key)]  # fmt: skip
    return torch.tensor(ids or [-1])


@torch.no_grad()
def _logits(model: Any, inputs: Mapping[str, Any]) -> torch.Tensor:
    given = {
        key: value.to(model.dtype) if value.is_floating_point() else value
        for key, value in inputs.items()
        if isinstance(value, torch.Tensor)
    }
    logits: torch.Tensor = model(**given, use_cache=False).logits
    return logits
