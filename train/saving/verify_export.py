"""Proves an export: what plain transformers loads from the folder is the model that was meant.

Every tensor of the files is compared with the live one, bit for bit. The folder is then loaded by
the classes a user has, and answers the same logits, with and without a picture. Where memory does
not hold a second model, its names and shapes are checked instead of its logits.
"""

import copy
import logging
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image
from safetensors import safe_open
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from configs.errors import CheckpointError, first_line
from train.model.parts import find_part, list_first
from train.saving.disk import format_bytes

log = logging.getLogger(__name__)
NUM_TOKENS = 24  # of the text that is read
# Largest difference of logits as a share of the largest logit. The weights are equal to the bit;
# what is left is the order of sums, in our attention and in the user's.
WORST = {torch.float32: 1e-4, torch.bfloat16: 0.1, torch.float16: 0.02}
SPARE = 1.3  # times the weights that must be free: the weights, and what a short prompt takes
MEMINFO = Path("/proc/meminfo")
CGROUP, OWN_CGROUP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")  # of version 2


def verify_export(folder: Path, model: Any, processing_class: Any) -> str:
    """Compare a written folder with the model it was written of.

    Args:
        folder: to be loaded.
        model: folded, in the dtype that was written.
        processing_class: tokenizer or processor that was written.

    Returns:
        what was compared, in a line.

    Raises:
        CheckpointError: with what differs.
    """
    unset_hf_deepspeed_config()  # else transformers loads in shares, on all ranks together
    num_tensors, num_bytes = compare_files(folder, model)
    told = f"{num_tensors} tensors equal to the bit"
    auto_class = _auto_class(model, processing_class)
    free = free_memory()
    if free is not None and free < SPARE * num_bytes:
        _load(folder, auto_class, device_map="meta")
        log.warning(
            "the export's logits are not compared: a second model takes %s, and %s of memory are "
            "free; its tensors, names and shapes were", format_bytes(num_bytes), format_bytes(free),
        )  # fmt: skip
        return f"{told}; all names and shapes load in {auto_class.__name__}; no logits compared"
    again = _load(folder, auto_class, dtype="auto").eval()
    _compare_states(again, model)
    meant = bare_copy(model)
    apart = {
        name: _logits_apart(again, meant, inputs, name)
        for name, inputs in _prompts(folder, model, processing_class).items()
    }
    listed = ", ".join(f"{name} {share:.1e}" for name, share in apart.items())
    version = transformers.__version__
    return (
        f"{told}; largest difference of logits in transformers {version}, of the largest: {listed}"
    )


def compare_files(folder: Path, model: Any) -> tuple[int, int]:
    """Compare the tensors of the files with the live ones; return their number and bytes.

    Raises:
        CheckpointError: a tensor is missing, is of no part of the model, or has other bits.
    """
    kind = model.config.model_type
    live = {find_part(kind, name): value for name, value in model.state_dict().items()}
    found, wrong, num_tensors, num_bytes = set(), [], 0, 0
    for path in sorted(folder.glob("model*.safetensors")):
        with safe_open(str(path), framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (not a dict)
                stored, wanted = file.get_tensor(name), live.get(find_part(kind, name))
                if wanted is None or not same_bits(stored, wanted):
                    wrong.append(name)
                else:
                    found.add(wanted.data_ptr())  # tied weights are one
                num_tensors, num_bytes = num_tensors + 1, num_bytes + stored.nbytes
    if wrong:
        raise CheckpointError(
            f"{len(wrong)} of {num_tensors} tensors in its files differ: {list_first(wrong)}"
        )
    missing = [name for name, value in model.state_dict().items() if value.data_ptr() not in found]
    if missing:
        raise CheckpointError(f"its files lack {len(missing)} tensors: {list_first(missing)}")
    return num_tensors, num_bytes


def same_bits(one: torch.Tensor, two: torch.Tensor) -> bool:
    """Whether two tensors have one dtype, one shape and the same bits, NaN and -0.0 included."""
    if one.dtype != two.dtype or one.shape != two.shape:
        return False
    one, two = (value.detach().cpu().contiguous() for value in (one, two))
    return torch.equal(one.reshape(-1).view(torch.uint8), two.reshape(-1).view(torch.uint8))


def free_memory() -> int | None:
    """Return the bytes of memory that are free, or None where the system does not say.

    Of the machine, or what its control group (SLURM's, a container's) leaves this process.
    """
    found = []
    if MEMINFO.is_file():
        lines = MEMINFO.read_text(encoding="ascii").splitlines()
        found += [int(x.split()[1]) * 1024 for x in lines if x.startswith("MemAvailable:")]
    for group in _control_groups():
        limit, used = group / "memory.max", group / "memory.current"
        if limit.is_file() and used.is_file():
            most = limit.read_text(encoding="ascii").strip()
            if most != "max":
                found.append(int(most) - int(used.read_text(encoding="ascii")))
    return min(found, default=None)


def _control_groups() -> list[Path]:
    """Return the folders of the control groups that this process is in."""
    own = ""
    if OWN_CGROUP.is_file():
        lines = OWN_CGROUP.read_text(encoding="utf-8").splitlines()
        own = next((line[3:].lstrip("/") for line in lines if line.startswith("0::")), "")
    return [CGROUP / own, *(CGROUP / above for above in Path(own).parents)]


def _auto_class(model: Any, processing_class: Any) -> Any:
    with_pictures = hasattr(processing_class, "image_processor")
    if with_pictures:
        return transformers.AutoModelForImageTextToText
    return transformers.AutoModelForCausalLM


def _load(folder: Path, auto_class: Any, **options: Any) -> Any:
    """Load as a user does; every weight comes from the files.

    Raises:
        CheckpointError: it does not load, or weights would be random, or are left over.
    """
    try:
        model, info = auto_class.from_pretrained(
            folder, output_loading_info=True, local_files_only=True, **options
        )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise CheckpointError(f"transformers does not load it: {first_line(error)}") from error
    problems = {key: sorted(map(str, names)) for key, names in info.items() if names}
    if problems:
        told = "; ".join(f"{key}: {list_first(names)}" for key, names in problems.items())
        raise CheckpointError(f"transformers loads it with {told}")
    return model


def _compare_states(again: Any, model: Any) -> None:
    loaded, meant = again.state_dict(), model.state_dict()
    wrong = [name for name in {**loaded, **meant}
             if name not in loaded or name not in meant
             or not same_bits(loaded[name], meant[name])]  # fmt: skip
    if wrong:
        raise CheckpointError(
            f"{len(wrong)} of {len(meant)} tensors are others once loaded: {list_first(wrong)}"
        )


def bare_copy(model: Any) -> Any:
    """Return a model of the same class, config and tensors, in evaluation; no memory is taken.

    The live one may have been patched, or hooked by an engine that is no longer to be called. Its
    attention is sdpa: the one it was trained with may be of GPUs alone, or of half precision.
    """
    config = copy.deepcopy(model.config)
    config._attn_implementation = "sdpa"  # also of the configs inside it
    with torch.device("meta"):
        bare = type(model)._from_config(config, dtype=model.dtype)
    bare.load_state_dict(model.state_dict(), assign=True)
    for name, buffer in model.named_buffers():  # those that no file holds, such as frequencies
        owner, _, leaf = name.rpartition(".")
        bare.get_submodule(owner)._buffers[leaf] = buffer
    return bare.eval()


def _prompts(folder: Path, model: Any, processing_class: Any) -> dict[str, dict[str, Any]]:
    """Return what both models read: a text, and a picture with a question where it sees.

    The second comes from the folder's own processor, which is so proven to load.
    """
    size = model.config.get_text_config().vocab_size
    ids = torch.arange(1, NUM_TOKENS + 1)[None] % size
    prompts: dict[str, dict[str, Any]] = {"text": {"input_ids": ids}}
    if not hasattr(processing_class, "image_processor"):
        transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        return prompts
    prompts["picture"] = picture_prompt(folder)
    return prompts


def picture_prompt(folder: Path) -> dict[str, Any]:
    """Return a picture with a question, as the folder's own processor makes it for the model."""
    processor = transformers.AutoProcessor.from_pretrained(folder, local_files_only=True)
    picture = Image.linear_gradient("L").convert("RGB").resize((48, 32))
    content = [{"type": "image", "image": picture}, {"type": "text", "text": "?"}]
    return dict(
        processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
    )


@torch.no_grad()
def _logits_apart(again: Any, model: Any, inputs: dict[str, Any], name: str) -> float:
    """Return the largest difference of logits, as a share of the largest.

    Raises:
        CheckpointError: it is more than rounding.
    """
    ours, theirs = (_logits(one, inputs) for one in (model, again))
    apart = float((ours - theirs).abs().max() / ours.abs().max().clamp(min=1e-30))
    if not apart <= WORST[model.dtype]:
        raise CheckpointError(
            f"once loaded its logits of a {name} prompt differ by {apart:.1e} of the largest, more "
            f"than rounding ({WORST[model.dtype]:.0e} in {model.dtype}), though the weights are "
            "the same: its config says something else than the model does"
        )
    return apart


def _logits(model: Any, inputs: dict[str, Any]) -> torch.Tensor:
    given = {
        key: value.to(model.device, model.dtype if value.is_floating_point() else None)
        for key, value in inputs.items()
        if isinstance(value, torch.Tensor)
    }
    logits: torch.Tensor = model(**given, use_cache=False).logits
    return logits.float().cpu()
