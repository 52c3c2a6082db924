"""The loss: nats for each supervised token, without whole logits, with `logit_scale` once.

transformers' AyaVisionForConditionalGeneration leaves out the decoder's `logit_scale` (measured
from 4.52 to 5.23), so its own loss is that of a colder softmax than the text LM's. Here the head is
applied by us: hidden states of supervised positions only, in chunks, scaled as the text class does.
`check_against_text_class` proves at start that both agree.
"""

import contextlib
import functools
import logging
import types
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.nn import functional
from transformers import AutoModelForCausalLM, PreTrainedModel

from configs.errors import CheckpointError
from data.render import IGNORED
from train.model.attention import boundaries
from train.model.head import Original, chunked_divergence, chunked_losses

log = logging.getLogger(__name__)


def logit_scale_of(model: PreTrainedModel) -> float:
    """Return what the text class multiplies its logits by: Cohere's `logit_scale`, else 1."""
    scale = getattr(model.config.get_text_config(), "logit_scale", None)
    return 1.0 if scale is None else float(scale)


def add_token_losses(model: PreTrainedModel) -> None:
    """Let `model(..., labels=labels, token_losses=True)` return [S] nats of supervised tokens.

    With `token_states=True` it returns their [S, D] states before the head instead, and with
    `original=` (states of another model) the losses and [S] nats of KL(original || this model).
    Without a flag the forward is the one it was. Flags pass through PEFT, DDP and DeepSpeed, whose
    hooks need the model to be called, not its parts.
    """
    inner_forward = model.forward
    scale = logit_scale_of(model)

    @functools.wraps(type(model).forward)
    def forward(
        self: Any,
        *args: Any,
        token_losses: bool = False,
        token_states: bool = False,
        original: Original | None = None,
        **kwargs: Any,
    ) -> Any:
        if not (token_losses or token_states):
            return inner_forward(*args, **kwargs)
        labels = kwargs.pop("labels")
        kwargs["use_cache"] = False
        kwargs |= boundaries(self, kwargs.get("position_ids"))
        without_pictures = self.training and kwargs.get("pixel_values") is None
        with _vision_beside_text(self) if without_pictures else contextlib.nullcontext():
            hidden = self.model(*args, **kwargs).last_hidden_state
        if token_states:
            return _supervised(hidden, labels)[0]
        with _whole(self.get_output_embeddings().weight) as head:
            losses = supervised_losses(hidden, labels, head, scale)
            if original is None:
                return losses
            return losses, chunked_divergence(_supervised(hidden, labels)[0], head, scale, original)

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
    states, wanted = _supervised(hidden, labels)
    return chunked_losses(states, wanted, head, logit_scale)


def _supervised(hidden: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return [S, D] the states that predict supervised tokens, and [S] those tokens."""
    targets = labels[:, 1:]
    chosen = targets != IGNORED
    return hidden[:, :-1][chosen], targets[chosen]


def vision_parameters(model: Any) -> Iterator[nn.Parameter]:
    """Yield the parameters of tower and projector; none for a text LM."""
    for name in ("vision_tower", "multi_modal_projector"):
        module = getattr(model.model, name, None)
        if module is not None:
            yield from module.parameters()


@contextlib.contextmanager
def _vision_beside_text(model: Any) -> Iterator[None]:
    """Run the vision parts on a black tile and add 0 times the result to the embedded text.

    DDP and ZeRO wait on every rank for the gradient of all that trains; ZeRO-3 and FSDP2 also need
    every rank to run the same modules, frozen or not, in the same order. A rank without pictures
    would hang them (ms-swift 9639, DeepSpeed 7170). Hence where a picture would be: before the
    decoder.
    """
    # Of parameters that are shared out every rank gathers each, frozen or not: `ds_id` is ZeRO-3's.
    if not any(
        p.requires_grad or hasattr(p, "ds_id") or isinstance(p, DTensor)
        for p in vision_parameters(model)
    ):
        yield
        return

    def add(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        zero = 0.0 * black_tile_features(model).sum()
        return args, kwargs | {"inputs_embeds": kwargs["inputs_embeds"] + zero}

    decoder = model.model.language_model
    hook = decoder.register_forward_pre_hook(add, with_kwargs=True, prepend=True)
    try:
        yield
    finally:
        hook.remove()


def black_tile_features(model: Any) -> torch.Tensor:
    """Return the image features of a black tile, from every vision parameter that pictures use."""
    size = model.config.vision_config.image_size
    tile = torch.zeros(1, 3, size, size, device=model.device, dtype=model.dtype)
    features = model.get_image_features(pixel_values=tile, return_dict=True).pooler_output
    return torch.cat(tuple(features))


@contextlib.contextmanager
def _whole(weight: nn.Parameter) -> Iterator[nn.Parameter]:
    """Hold a weight whole that ZeRO-3 shares out. Its engine does so itself, but the engine is
    not called where a model is measured after training."""
    if weight.numel():
        yield weight
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters([weight]):
        yield weight


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
