"""Folders with configs of real models and no weights; a processor with a small tokenizer."""

from pathlib import Path
from typing import Any

from transformers import AyaVisionConfig, Cohere2Config, CohereConfig, SiglipVisionConfig

from data.processor import compose_processor
from data.tokenizer import prepare_for_images, train_tokenizer

TEXTS = ["A red kite over a green field.", "Ein Drache steht über dem Feld.", "何が見えますか。"]
# Shapes of arXiv 2505.08751 and the released configs; heads of the 32B: Aya Expanse 32B.
DECODERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "8b": (
        Cohere2Config,
        dict(
            hidden_size=4096,
            intermediate_size=14336,
            num_hidden_layers=32,
            num_attention_heads=32,
            num_key_value_heads=8,
            sliding_window=4096,
            logit_scale=0.25,
        ),
    ),
    "32b": (
        CohereConfig,
        dict(
            hidden_size=8192,
            intermediate_size=24576,
            num_hidden_layers=40,
            num_attention_heads=64,
            num_key_value_heads=8,
            logit_scale=0.0625,
        ),
    ),
}
PROJECTOR = {"8b": 28_672, "32b": 49_152}  # rows before the SwiGLU: the paper's 190 M and 428 M
TOWER = dict(
    hidden_size=1152,
    intermediate_size=4304,
    num_hidden_layers=27,
    num_attention_heads=16,
    patch_size=14,
)


def make_folders(root: Path, size: str) -> dict[str, Path]:
    """Write `vlm`, `text` and `tower` of Aya Vision of a size: configs alone."""
    folders = {name: root / name for name in ("vlm", "text", "tower")}
    tokenizer: Any = train_tokenizer(TEXTS, vocab_size=400)
    kind, shape = DECODERS[size]
    text = kind(**shape, vocab_size=256_000, tie_word_embeddings=True)
    text.save_pretrained(folders["text"])
    tokenizer.save_pretrained(folders["text"])
    SiglipVisionConfig(**TOWER, image_size=384).save_pretrained(folders["tower"])
    prepared = prepare_for_images(tokenizer)
    tokenizer = tokenizer if isinstance(prepared, int) else prepared
    processor = compose_processor(
        tokenizer,
        image_size=364,
        patch_size=14,
        downsample_factor=2,
        crop_to_patches=True,
        max_patches=12,
    )
    processor.save_pretrained(folders["vlm"])
    AyaVisionConfig(
        vision_config=SiglipVisionConfig(**TOWER, image_size=364, vision_use_head=False),
        text_config=text,
        image_token_index=processor.image_token_id,
        alignment_intermediate_size=PROJECTOR[size],
        tie_word_embeddings=True,
    ).save_pretrained(folders["vlm"])
    return folders
