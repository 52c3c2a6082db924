"""What a vision-language model's logits must be multiplied by to be those of its text class.

Some classes of transformers leave out a factor that the text class on the same weights applies:
AyaVision `logit_scale` (see train/model/loss.py). Such a model is a colder or warmer one to its own
forward than to whoever made it, and its losses are not comparable with its text LM's.
"""

import logging
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from configs.errors import CheckpointError

log = logging.getLogger(__name__)
NUM_TOKENS = 16
# What configs of text LMs have and VLM classes may leave out. Neutral: absent, None or 1.
SETTINGS = ("logit_scale", "logits_scaling", "final_logit_softcapping")


@torch.no_grad()
def logit_factor(model: Any) -> float:
    """Return the factor on the logits of `model.forward`; 1 where the class applies what it should.

    Compared with the text class on the same weights, wherever the text config has such a setting.

    Raises:
        CheckpointError: the logits differ by something else than the setting.
    """
    text_config = model.config.get_text_config()
    given = {name: getattr(text_config, name, None) for name in SETTINGS}
    found = {name: float(value) for name, value in given.items() if value not in (None, 1)}
    if not found:
        return 1.0
    ours, theirs = _logits(model, text_config)
    # Relative to the logits themselves; half precision rounds each to 8 bits.
    tolerance = float(theirs.abs().max()) * (1e-4 if model.dtype == torch.float32 else 0.05)
    factors = [1.0, found.get("logit_scale", 1.0), 1 / found.get("logits_scaling", 1.0)]
    for factor in factors:
        if float((ours * factor - theirs).abs().max()) <= tolerance:
            if factor != 1:
                log.info("%s leaves out %s: logits are multiplied by %g as its text class does",
                         type(model).__name__, ", ".join(found), factor)  # fmt: skip
            return float(factor)
    raise CheckpointError(
        f"the logits of {type(model).__name__} are not those of its text class on the same "
        f"weights, whose config has {found}, so its losses mean nothing; please report this model"
    )


def _logits(model: Any, text_config: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Return [T, K] float32 logits of the model and of its text class, for the same text."""
    with torch.device("meta"):
        text_lm: Any = AutoModelForCausalLM.from_config(text_config)
    text_lm.model = model.get_decoder()
    text_lm.lm_head = model.get_output_embeddings()
    ids = torch.arange(1, NUM_TOKENS + 1, device=model.device)[None] % text_config.vocab_size
    for name in ("image_token_id", "image_token_index"):  # no picture is shown
        ids[ids == getattr(model.config, name, None)] = 0
    was_training = model.training
    model.eval(), text_lm.eval()
    found = [each(input_ids=ids, use_cache=False).logits[0].float() for each in (model, text_lm)]
    model.train(was_training)
    return found[0], found[1]
