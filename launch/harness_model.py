"""The lm-eval model `visiongraft`: a text LM as it is, a vision-language model by its text half.

lm-eval's `hf` refuses a vision-language folder. Its `hf-multimodal` takes one, but with the logits
of transformers' class, which leaves out the decoder's `logit_scale` (train/model/loss.py): another
softmax, so other log-likelihoods, while greedy answers are the same. Here the decoder is run by the
text class, which is also what the text LM that it is compared with is run by.
"""

import logging
from typing import Any

import torch
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedModel

from configs.errors import CheckpointError, ConfigError
from train.model.load import load_checked
from train.model.loss import logit_scale_of

log = logging.getLogger(__name__)
# What HFLM does to a loaded model by names of its modules, which are not the folder's here.
NOT_FOR_VLM = ("peft", "delta", "autogptq", "gptqmodel", "gguf_file", "parallelize", "tp_plan")


class _TextLM:
    """What HFLM loads by: nothing made up, nothing left over."""

    @staticmethod
    def from_pretrained(path: str, **options: Any) -> PreTrainedModel:
        """Return a text LM."""
        model: PreTrainedModel = load_checked("text LM", AutoModelForCausalLM, path, **options)
        return model


class _TextOfVLM:
    """The same for the text half of a vision-language model."""

    @staticmethod
    def from_pretrained(path: str, **options: Any) -> PreTrainedModel:
        """Return the decoder and the head of a vision-language model, in the text class."""
        vlm = load_checked("vision-language model", AutoModelForImageTextToText, path, **options)
        return text_half(vlm)


def text_half(vlm: PreTrainedModel) -> PreTrainedModel:
    """Return the text class over the decoder and the head of a vision-language model: same weights.

    Where transformers has no text class for the decoder (Qwen's VLMs), the model itself: it brings
    its own logits.

    Raises:
        CheckpointError: there is none, and the model's own logits may lack the scale; or the
            decoder sees what follows (PaliGemma's): log-likelihoods would be too good to be true.
    """
    config = vlm.config.get_text_config()
    if getattr(config, "use_bidirectional_attention", None):
        raise CheckpointError(
            f"the decoder of {vlm.config.model_type} attends to the words that follow "
            "(use_bidirectional_attention): its log-likelihood of a text says nothing"
        )
    try:
        with torch.device("meta"):
            text = AutoModelForCausalLM.from_config(config)
    except ValueError as error:
        if logit_scale_of(vlm) == 1:
            return vlm
        raise CheckpointError(
            f"transformers has no text class for the decoder of {vlm.config.model_type} "
            f"({config.model_type}), which scales its logits: its text cannot be measured alone"
        ) from error
    text.model = vlm.get_decoder()
    text.lm_head = vlm.get_output_embeddings()
    text.generation_config = vlm.generation_config
    text.config.name_or_path = vlm.name_or_path
    return text.eval()


@register_model("visiongraft")
class VisiongraftLM(HFLM):
    """HFLM with strict loading, and with a vision-language model's text in the text class."""

    def __init__(self, pretrained: str, **options: Any) -> None:
        self._options = options
        super().__init__(pretrained, **options)

    def _get_backend(self, config: Any, *arguments: Any, **options: Any) -> None:
        self.backend = "causal"
        is_vlm = hasattr(config, "vision_config")
        self.AUTO_MODEL_CLASS = _TextOfVLM if is_vlm else _TextLM
        given = [name for name in NOT_FOR_VLM if self._options.get(name)]
        if is_vlm and given:
            raise ConfigError(
                f"model_args: {given[0]} is not for the text of a vision-language model; export or "
                "merge it, and give that folder"
            )
        log.info("text %s", "of a vision-language model" if is_vlm else "LM")
