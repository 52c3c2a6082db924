"""What the processes of a run ask of the hub, against each loading for itself.

    python tests/benchmarks/hub.py [processes ...]

A text LM and a data set stand on a hub of this machine, tests/data/fake_hub.py, which counts requests.
The peer is what a script does that loads in every rank: `from_pretrained` and `load_dataset`. Cold:
the cache is empty; warm: it has been filled. Requests, not seconds: that is what a hub limits.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests/data"), *sys.path[1:]]

from datasets import Dataset
from fake_hub import Hub, served
from pico_families import save_text_lm

PROGRAMS = {
    "each for itself": """
from datasets import load_dataset
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
for kind in (AutoTokenizer, AutoConfig, AutoModelForCausalLM):
    kind.from_pretrained("org/lm")
load_dataset("org/set", split="train")
""",
    "ours": """
import torch
from transformers import AutoTokenizer
from configs.schema import SourceConfig, SourceKind
from data.processor import load
from data.sources.hub import HubRecords
from train.model.load import load_text_lm
load("tokenizer", AutoTokenizer, "org/lm")
load_text_lm("org/lm", dtype=torch.float32)
HubRecords("mine", SourceConfig(kind=SourceKind.dataset, path="org/set", split="train"))
""",
}


def main() -> None:
    """Count for some numbers of processes."""
    numbers = [int(word) for word in sys.argv[1:]] or [1, 4]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        save_text_lm("cohere2", folder / "lm")
        rows = {"caption": ["a", "b"], "image": ["a.png", "b.png"]}
        for shard in range(2):
            name = f"set/data/train-0000{shard}-of-00002.parquet"
            Dataset.from_dict(rows).to_parquet(folder / name)
        folders = {("models", "org/lm"): folder / "lm", ("datasets", "org/set"): folder / "set"}
        with served(folders) as hub:
            print("processes  cache  " + "  ".join(f"{name:>16}" for name in PROGRAMS))
            for number in numbers:
                counts = {
                    name: count(program, number, hub, folder / f"{name} {number}")
                    for name, program in PROGRAMS.items()
                }
                for at, cache in enumerate(("cold", "warm")):
                    told = "  ".join(f"{found[at]:>16}" for found in counts.values())
                    print(f"{number:>9}  {cache}   {told}")


def count(program: str, processes: int, hub: Hub, cache: Path) -> list[int]:
    """Return the requests of a start with an empty cache, and of the next one."""
    found = []
    for start in ("cold", "warm"):
        hub.asked.clear()
        env = {
            **os.environ, "HF_ENDPOINT": hub.url, "HF_HUB_CACHE": str(cache / "hub"),
            "HF_DATASETS_CACHE": str(cache / "sets"), "HF_HUB_DISABLE_TELEMETRY": "1",
            "WORLD_SIZE": str(processes), "TORCHELASTIC_RUN_ID": start, "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        started = [
            subprocess.Popen(
                [sys.executable, "-c", program], cwd=ROOT, stderr=subprocess.DEVNULL,
                env={**env, "RANK": str(rank)},
            )
            for rank in range(processes)
        ]  # fmt: skip
        ended = [process.wait() for process in started]
        if any(ended):
            raise RuntimeError(f"a process failed:\n{program}")
        found.append(len(hub.asked))
    return found


if __name__ == "__main__":
    main()
