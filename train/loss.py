"""The loss: nats for each supervised token, without whole logits, with `logit_scale` once.

transformers' AyaVisionForConditionalGeneration leaves out the decoder's `logit_scale` (measured
from 4.52 to 5.23), so its own loss is that of a colder softmax than the text LM's. Here the head is
applied by us: hidden states of supervised positions only, in chunks, scaled as the text class does.
`check_against_text_class` proves at start that both agree.
"""

import functools
import logging
import types
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForCausalLM, PreTrainedModel

from configs.errors import CheckpointError
from data.render import IGNORED

log = logging.getLogger(__name__)
CHUNK = 1024  # supervised tokens whose logits are held at once: 1 GiB in float32 at K = 256,000


def logit_scale_of(model: PreTrainedModel) -> float:
    """Return what the text class multiplies its logits by: Cohere's `logit_scale`, else 1."""
    scale = getattr(model.config.get_text_config(), "logit_scale", None)
    return 1.0 if scale is None else float(scale)


def add_token_losses(model: PreTrainedModel) -> None:
    """Let `model(..., labels=labels, token_losses=True)` return [S] nats of supervised tokens.

    Without the flag the forward is the one it was. The flag passes through PEFT, DDP and DeepSpeed,
    whose hooks need the model to be called, not its parts.
    """
    inner_forward = model.forward
    scale = logit_scale_of(model)

    @functools.wraps(type(model).forward)
    def forward(self: Any, *args: Any, token_losses: bool = False, **kwargs: Any) -> Any:
        if not token_losses:
            return inner_forward(*args, **kwargs)
        labels = kwargs.pop("labels")
        kwargs["use_cache"] = False
        hidden = self.model(*args, **kwargs).last_hidden_state
        losses = supervised_losses(hidden, labels, self.get_output_embeddings().weight, scale)
        if self.training and kwargs.get("pixel_values") is None:
            losses = losses + _touch_vision(self)
        return losses

    model.forward = types.MethodType(forward, model)


def supervised_losses(
    hidden: torch.Tensor, labels: torch.Tensor, head: torch.Tensor, logit_scale: float
) -> torch.Tensor:
    """Return [S] float32: the negative log-likelihood of each supervised token, in nats.

    Args:
        hidden: [B, T, D] last hidden states; the one at t predicts token t + 1.
        labels: [B, T] int64, IGNORED where a token is not supervised.
        head: [K, D] weights of the LM head.
        logit_scale: factor on the logits.
    """
    targets = labels[:, 1:]
    chosen = targets != IGNORED
    states, wanted = hidden[:, :-1][chosen], targets[chosen]
    needs_grad = torch.is_grad_enabled() and (states.requires_grad or head.requires_grad)
    chunks = []
    for part, want in zip(states.split(CHUNK), wanted.split(CHUNK), strict=True):
        if needs_grad and len(states) > CHUNK:
            chunks.append(
                checkpoint(_chunk_losses, part, want, head, logit_scale, use_reentrant=False)
            )
        else:
            chunks.append(_chunk_losses(part, want, head, logit_scale))
    return torch.cat(chunks)


def _chunk_losses(
    states: torch.Tensor, targets: torch.Tensor, head: torch.Tensor, logit_scale: float
) -> torch.Tensor:
    logits = functional.linear(states, head).float() * logit_scale
    return functional.cross_entropy(logits, targets, reduction="none")


def _touch_vision(model: Any) -> torch.Tensor:
    """Return 0, computed from every trainable vision parameter with a black tile.

    Engines wait for the gradient of every parameter on every rank, so a batch without pictures
    would hang the rank that has none (ms-swift 9639, DeepSpeed 7170).
    """
    vision = [
        getattr(model.model, name, None) for name in ("vision_tower", "multi_modal_projector")
    ]
    used = [p for module in vision if module is not None for p in module.parameters()]
    if not any(p.requires_grad for p in used):
        return torch.zeros((), device=model.device)
    size = model.config.vision_config.image_size
    tile = torch.zeros(1, 3, size, size, device=model.device, dtype=model.dtype)
    features = model.get_image_features(pixel_values=tile, return_dict=True).pooler_output
    return 0.0 * features.float().sum()


@torch.no_grad()
def check_against_text_class(model: PreTrainedModel, *, num_tokens: int = 16) -> float:
    """Compare our token losses with those of the text class, same weights and text input.

    Returns:
        the largest difference in nats.

    Raises:
        CheckpointError: they differ, so `logit_scale` is applied wrongly or not at all.
    """
    text_config = model.config.get_text_config()
    with torch.device("meta"):
        text_lm = AutoModelForCausalLM.from_config(text_config)
    text_lm.model = getattr(model.model, "language_model", model.model)
    text_lm.lm_head = model.get_output_embeddings()
    ids = torch.arange(1, num_tokens + 1, device=model.device)[None] % text_config.vocab_size
    was_training = model.training
    model.eval(), text_lm.eval()
    ours = model(input_ids=ids, labels=ids, token_losses=True)
    logits = text_lm(input_ids=ids).logits[0, :-1].float()
    theirs = functional.cross_entropy(logits, ids[0, 1:], reduction="none")
    model.train(was_training)
    worst = float((ours - theirs).abs().max())
    tolerance = 1e-3 if model.dtype == torch.float32 else 0.1  # worst measured: 2e-6, 0.02
    if not worst <= tolerance:
        raise CheckpointError(
            f"the loss differs from the text class {type(text_lm).__name__} by {worst:.3g} nats a "
            f"token; logit_scale is {logit_scale_of(model)}; please report this model"
        )
    log.info("loss equals %s's within %.1e nats; logit_scale %g applied once",
             type(text_lm).__name__, worst, logit_scale_of(model))  # fmt: skip
    return worst


def frozen_without_graph(module: nn.Module) -> None:
    """Run a frozen module under `no_grad`, whatever hooks its input embeddings carry.

    With PEFT and gradient checkpointing `enable_input_require_grads` otherwise makes the frozen
    tower build a graph and be run backwards (measured, see docs/DESIGN.md).
    """
    module.forward = torch.no_grad()(module.forward)
