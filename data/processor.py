"""From the model config to a tokenizer (text LM) or a processor (vision-language model)."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from transformers import (
    AutoConfig,
    AutoProcessor,
    AutoTokenizer,
    AyaVisionProcessor,
)
from transformers.utils import is_torchvision_available

from configs.errors import CheckpointError, first_line
from configs.schema import ModelConfig, ModelKind
from data.instructions import DESCRIBE, TRANSLATE, WRITE_NUMBER
from data.rows import Row
from data.tokenizer import prepare_for_images, train_tokenizer

SIGLIP_MEAN = SIGLIP_STD = [0.5, 0.5, 0.5]  # what SigLIP was trained with


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
    return compose_processor(
        tokenizer,
        image_size=config.vision_tower.image_size,
        patch_size=patch_size_of(config),
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
    if for_images:
        prepare_for_images(tokenizer)
    return tokenizer


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


def load(what: str, auto_class: Any, path: str, **kwargs: Any) -> Any:
    """Return `auto_class.from_pretrained(path)`, with one clear message where that fails.

    Raises:
        CheckpointError: the folder or hub id holds no such thing, or cannot be reached.
    """
    if not Path(path).is_dir() and (path[:1] in ("", ".", "/", "~") or _parent_is_here(path)):
        # Else transformers asks the hub, five times. ORG of an id ORG/NAME is no folder here.
        raise CheckpointError(f"no {what} in {path!r}: there is no such folder")
    try:
        return auto_class.from_pretrained(path, **kwargs)
    except (OSError, ValueError) as error:
        reason = first_line(error)
        raise CheckpointError(
            f"no {what} in {path!r}: {reason}\n"
            "  give a folder that holds one, or the id of a model on the hub"
        ) from error


def patch_size_of(config: ModelConfig) -> int:
    """Return the patch size in pixels: the loaded tower's, or the configured one."""
    path = config.vision_tower.path
    if path is None:
        return config.vision_tower.patch_size
    found = load("vision tower", AutoConfig, path)
    return int(getattr(found, "vision_config", found).patch_size)


def texts_for_tokenizer(rows: Iterable[Row], languages: Sequence[str]) -> Iterator[str]:
    """Yield the text a fresh tokenizer is trained on: the rows, and the questions to come."""
    for row in rows:
        for turn in row.turns:
            yield turn.text
    for code in languages:
        yield from (*DESCRIBE[code], WRITE_NUMBER[code], TRANSLATE[code])
