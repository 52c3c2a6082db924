"""From the model config to a tokenizer (text LM) or a processor (vision-language model)."""

import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers import (
    AutoConfig,
    AutoProcessor,
    AutoTokenizer,
    AyaVisionProcessor,
)
from transformers.utils import is_torchvision_available

from configs.errors import CheckpointError, first_line
from configs.schema import ModelConfig, ModelKind
from data.fetch import local_folder
from data.instructions import DESCRIBE, TRANSLATE, WRITE_NUMBER
from data.rows import Row
from data.tokenizer import prepare_for_images, processor_tokens, train_tokenizer

log = logging.getLogger(__name__)
SIGLIP_MEAN = SIGLIP_STD = [0.5, 0.5, 0.5]  # what SigLIP was trained with
# Model types of towers. SigLIP2 of a fixed resolution calls itself siglip, the other is NaFlex.
SIGLIP = ("siglip", "siglip_vision_model", "siglip2", "siglip2_vision_model")
FRESH_IMAGE_SIZE = 64  # pixels a tile side of a tower that is made anew


def build_processing_class(config: ModelConfig, texts: Iterable[str]) -> Any:
    """Return the tokenizer of a text LM or the processor of a vision-language model.

    Args:
        config: which model.
        texts: what a fresh tokenizer is trained on, where there is no LM yet.
    """
    if config.kind is ModelKind.vlm:
        assert config.path is not None
        processor = load_processor(config.path)
        if not hasattr(processor, "image_processor"):
            raise CheckpointError(
                f"model.path={config.path!r} holds no processor for pictures; "
                "a text LM is grafted with model=compose model.decoder.path=..."
            )
        return processor
    composed = config.kind is ModelKind.compose
    tokenizer = build_tokenizer(
        decoder_path=config.decoder.path,
        vocab_size=config.decoder.vocab_size,
        texts=texts,
        for_images=composed,
    )
    if not composed:
        return tokenizer
    image_size, patch_size = tile_shape(config)
    return compose_processor(
        tokenizer,
        image_size=image_size,
        patch_size=patch_size,
        downsample_factor=config.downsample_factor,
        crop_to_patches=config.crop_to_patches,
        max_patches=config.max_patches,
    )


def build_tokenizer(
    *, decoder_path: str | None, vocab_size: int, texts: Iterable[str], for_images: bool
) -> Any:
    """Return a text LM's tokenizer, or train one from `texts` where there is no LM yet."""
    if decoder_path is None:
        return train_tokenizer(texts, vocab_size=vocab_size)
    tokenizer = load("tokenizer", AutoTokenizer, decoder_path)
    return prepare_for_images(tokenizer) if for_images else tokenizer


def compose_processor(
    tokenizer: Any,
    *,
    image_size: int,
    patch_size: int,
    downsample_factor: int,
    crop_to_patches: bool,
    max_patches: int,
) -> AyaVisionProcessor:
    """Return a processor for a composed model.

    Args:
        tokenizer: with the image tokens, see `prepare_for_images`.
        image_size: pixels a tile side.
        patch_size: pixels a patch side, of the vision tower.
        downsample_factor: patches a side that become one image token.
        crop_to_patches: whether pictures are cut into several tiles and a thumbnail.
        max_patches: most tiles a picture, without the thumbnail.
    """
    image_processor = _image_processor_class()(
        size={"height": image_size, "width": image_size},
        crop_to_patches=True,
        min_patches=1,
        # AyaVisionProcessor asks for crops whatever its image processor was told (see below), so
        # "no crops" is written as one tile at most, which gives the same pixels.
        max_patches=max_patches if crop_to_patches else 1,
        image_mean=SIGLIP_MEAN,
        image_std=SIGLIP_STD,
    )
    return AyaVisionProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        patch_size=patch_size,
        img_size=image_size,
        downsample_factor=downsample_factor,
        chat_template=tokenizer.chat_template,
        **processor_tokens(tokenizer),
    )


def _image_processor_class() -> Any:
    """Return the class of Aya Vision's image processor that this machine can run."""
    # The fast class needs torchvision, which CPU machines may lack; both write the same file.
    if is_torchvision_available():
        from transformers import GotOcr2ImageProcessor

        return GotOcr2ImageProcessor
    from transformers import GotOcr2ImageProcessorPil

    return GotOcr2ImageProcessorPil


def load_processor(path: str) -> Any:
    """Return the processor saved with a vision-language model, or a text LM's tokenizer."""
    processor = load("processor", AutoProcessor, path)
    _cut_as_called(processor)
    return processor


def _cut_as_called(processor: Any) -> None:
    """Give the image processor what the whole processor asks of it when it is called.

    AyaVisionProcessor asks for `crop_to_patches=True` against the settings saved with its image
    processor; we call that one alone, and must see the tiles that users of the model will see.
    """
    kwargs_class = getattr(processor, "valid_processor_kwargs", None)
    older = getattr(kwargs_class, "_defaults", {}).get("images_kwargs", {})  # before 5.23
    for name, value in {**older, **getattr(processor, "images_kwargs", {})}.items():
        setattr(processor.image_processor, name, value)


def _parent_is_here(path: str) -> bool:
    parent = Path(path).parent
    return parent != Path() and parent.is_dir()


def load(what: str, auto_class: Any, path: str, *, weights: bool = False, **kwargs: Any) -> Any:
    """Return `auto_class.from_pretrained(path)`, with one clear message where that fails.

    Of the processes of a run one fetches it from the hub, and the others wait.

    Args:
        what: for messages.
        auto_class: of transformers.
        path: a folder or the id of a model on the hub.
        weights: whether `auto_class` reads them.
        kwargs: for `from_pretrained`.

    Raises:
        CheckpointError: the folder or hub id holds no such thing, or cannot be reached.
    """
    if not Path(path).is_dir() and (path[:1] in ("", ".", "/", "~") or _parent_is_here(path)):
        # Else transformers asks the hub, five times. ORG of an id ORG/NAME is no folder here.
        raise CheckpointError(f"no {what} in {path!r}: there is no such folder")
    folder = local_folder(path, weights=weights)
    try:
        return _named(path, folder, auto_class.from_pretrained(folder, **kwargs))
    except SafetensorError as error:
        raise CheckpointError(
            f"a file of the {what} in {path!r} is damaged or was not copied to its end: "
            f"{_damaged_file(folder) or first_line(error)}\n  fetch it again"
        ) from error
    except (OSError, ValueError) as error:
        if _is_unreachable(error):
            raise CheckpointError(
                f"no folder {path!r} is here, and the hub cannot be reached\n  give the path of a "
                "folder that holds the model (a plan needs its configs and tokenizer alone); "
                "HF_HUB_OFFLINE=1 looks in the cache without asking the hub again and again"
            ) from error
        reason = first_line(error)
        raise CheckpointError(
            f"no {what} in {path!r}: {reason}\n"
            "  give a folder that holds one, or the id of a model on the hub"
        ) from error


def _named(path: str, folder: str, loaded: Any) -> Any:
    """Give what was loaded from a cache the name that it was asked for by."""
    if folder == path:
        return loaded
    for item in loaded if isinstance(loaded, tuple) else [loaded]:
        owners: list[Any] = [item, getattr(item, "config", None), getattr(item, "tokenizer", None)]
        for owner in owners:
            if getattr(owner, "name_or_path", None) == folder:
                owner.name_or_path = path
    return loaded


def _is_unreachable(error: BaseException) -> bool:
    """Whether a look-up failed because there is no network."""
    return "couldn't connect" in str(error).lower() or "offline mode" in str(error).lower()


def _damaged_file(path: str) -> str | None:
    """Return the first safetensors file in a folder that cannot be opened, and why."""
    for file in sorted(Path(path).glob("*.safetensors")):
        try:
            with safe_open(str(file), framework="pt"):
                pass
        except SafetensorError as error:
            return f"{file.name}: {error}"
    return None


def tile_shape(config: ModelConfig) -> tuple[int, int]:
    """Return the sides of a tile and of a patch, in pixels, of a composed model.

    Raises:
        CheckpointError: the tower is no SigLIP, or its patches cannot be shuffled.
    """
    tower, factor = config.vision_tower, config.downsample_factor
    own_size, patch_size = FRESH_IMAGE_SIZE, tower.patch_size
    if tower.path is not None:
        own_size, patch_size = _shape_of(tower.path, vision_config(tower.path))
    image_size = tower.image_size
    if image_size is None:
        side = own_size // patch_size
        even = side // factor * factor
        image_size = even * patch_size if even and even < side else own_size
        if image_size != own_size:
            log.info("vision tower: used at %d pixels; at its own %d the grid is %d x %d, which "
                     "downsample_factor=%d does not divide", image_size, own_size, side, side,
                     factor)  # fmt: skip
    check_grid(image_size, patch_size, factor)
    return image_size, patch_size


def check_grid(image_size: int, patch_size: int, downsample_factor: int) -> None:
    """Refuse a grid of patches that cannot be shuffled.

    Raises:
        CheckpointError: naming a size that works.
    """
    side = image_size // patch_size
    if side % downsample_factor or not side:
        even = max(side // downsample_factor, 1) * downsample_factor
        raise CheckpointError(
            f"at {image_size} pixels the vision tower has {side} x {side} patches, which "
            f"model.downsample_factor={downsample_factor} does not divide; set "
            f"model.vision_tower.image_size, for example {even * patch_size}"
        )


def vision_config(path: str) -> Any:
    """Return the config of the SigLIP tower in a folder or on the hub.

    Raises:
        CheckpointError: there is none, or it is another kind of tower.
    """
    found = load("vision tower", AutoConfig, path)
    if found.model_type not in SIGLIP:
        raise CheckpointError(
            f"model.vision_tower.path={path!r} is a {found.model_type}, but a vision tower is a "
            f"SigLIP or SigLIP2 model ({', '.join(SIGLIP)})"
        )
    return getattr(found, "vision_config", found)


def _shape_of(path: str, config: Any) -> tuple[int, int]:
    """Return the sides of a tile and of a patch that a tower was trained with, in pixels."""
    patch_size = config.patch_size
    if hasattr(config, "num_patches"):  # NaFlex has a grid of positions, and no one size
        image_size = math.isqrt(config.num_patches) * patch_size
    else:
        image_size = config.image_size
    if not isinstance(image_size, int) or not isinstance(patch_size, int):
        raise CheckpointError(
            f"model.vision_tower.path={path!r} has tiles of {image_size} and patches of "
            f"{patch_size} pixels, but ours are square"
        )
    return image_size, patch_size


def texts_for_tokenizer(rows: Iterable[Row], languages: Sequence[str]) -> Iterator[str]:
    """Yield the text a fresh tokenizer is trained on: the rows, and the questions to come."""
    for row in rows:
        for turn in row.turns:
            yield turn.text
    for code in languages:
        yield from (*DESCRIBE[code], WRITE_NUMBER[code], TRANSLATE[code])
