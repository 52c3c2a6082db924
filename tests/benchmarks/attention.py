"""A training step on packs: each sample attended on its own, against a dense mask over the pack.

    python tests/benchmarks/attention.py [threads]

Same 2 M decoder, same tokens, same supervised positions; forward and backward; medians of
interleaved repeats, so that a noisy machine slows both alike.
"""

import os
import statistics
import sys
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
sys.path[:] = [str(Path(__file__).resolve().parents[2]), *sys.path[1:]]

import torch
from transformers import Cohere2Config, Cohere2ForCausalLM

from configs.schema import Attention
from train.model.attention import set_attention
from train.model.loss import add_token_losses

REPEATS = 9
SAMPLE_TOKENS = 25


def make_model(attention: Attention) -> Cohere2ForCausalLM:
    """Return the demo's decoder."""
    torch.manual_seed(0)
    shape = Cohere2Config(
        vocab_size=2048,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=2,
        logit_scale=0.25,
        pad_token_id=0,
        bos_token_id=5,
        eos_token_id=6,
    )
    model = Cohere2ForCausalLM(shape)
    set_attention(model, attention)
    add_token_losses(model)
    return model.train()


def make_pack(num_tokens: int) -> dict[str, torch.Tensor]:
    """Return a pack of samples of SAMPLE_TOKENS tokens, the last third of each supervised."""
    ids = torch.randint(20, 2000, (1, num_tokens))
    positions = (torch.arange(num_tokens) % SAMPLE_TOKENS)[None]
    labels = torch.where(positions > SAMPLE_TOKENS * 2 // 3, ids, -100)
    return {"input_ids": ids, "position_ids": positions, "labels": labels}


def seconds(model: Cohere2ForCausalLM, pack: dict[str, torch.Tensor]) -> float:
    """Return how long one forward and backward take."""
    start = time.perf_counter()
    model(**pack, token_losses=True).sum().backward()
    model.zero_grad()
    return time.perf_counter() - start


def main() -> None:
    """Print the medians and their ratio for packs of several lengths."""
    threads = int(sys.argv[1]) if len(sys.argv) > 1 else 1
    torch.set_num_threads(threads)
    ours, dense = make_model(Attention.sdpa_by_sample), make_model(Attention.sdpa)
    print(f"{threads} thread(s), samples of {SAMPLE_TOKENS} tokens; seconds a step, median")
    for num_tokens in (512, 1024, 2048, 4096):
        pack = make_pack(num_tokens)
        pairs = [(seconds(ours, pack), seconds(dense, pack)) for _ in range(REPEATS)][1:]
        first, second = (statistics.median(column) for column in zip(*pairs, strict=True))
        print(f"{num_tokens:>6} tokens: by sample {first:.3f}, dense {second:.3f}, "
              f"ratio {second / first:.1f}")  # fmt: skip


if __name__ == "__main__":
    main()
