"""Time and memory of the merge: ours against `cp`, mergekit and the usual script, in one run.

    python tests/benchmarks/merge.py --mergekit-venv DIR                   # 4 GB, 3 rounds
    python tests/benchmarks/merge.py --mergekit-venv DIR --gb 0.3 --small-gb 0.1 --repeats 1
    python tests/benchmarks/merge.py --workdir DIR --keep ...              # reuses the checkpoints

Writes random checkpoints of real config classes: an Aya-Vision-shaped VLM (three quarters of it
decoder), the text LM its decoder is near to, and for mergekit, which merges no VLM with a text LM,
that decoder as a text checkpoint. All sides take turns, each in a process of its own, over inputs
that were just read (page cache warm), with the last output removed and the disk at rest. Told are
seconds until the process ends, and until its output is on disk as well: ours waits for the disk
by itself, the others leave that to the kernel; and CPU seconds, which bear it best when others
use the machine. Private memory is what the process and its children hold that no file backs
(RssAnon, every 50 ms); ratios are medians of ratios per round.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:] = [str(ROOT), *sys.path[1:]]
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import psutil
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from train.saving.disk import flush_folder

ALPHA = 0.4
FULL_GB = 4.0  # the shape below, undivided
SHARD_BYTES = 1_000_000_000  # an embedding above that has a shard of its own, as transformers does
CHUNK_ELEMENTS = 1 << 22
SAMPLE_SECONDS, CHILDREN_SECONDS = 0.05, 1.0
SAMPLED_ELEMENTS = 1 << 18  # of each tensor, when results are compared
DECODER = "language_model."  # prefix of the decoder's tensors in a VLM's files
EMBEDDING = "language_model.model.embed_tokens.weight"
MERGEKIT = "mergekit==0.1.5"
# How such a merge is written by hand, with the dtype of the files.
USUAL = """
import sys
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

vlm_path, text_path, out, alpha = *sys.argv[1:4], float(sys.argv[4])
vlm = AutoModelForImageTextToText.from_pretrained(vlm_path, dtype="auto")
text = AutoModelForCausalLM.from_pretrained(text_path, dtype="auto")
merged = vlm.model.language_model.state_dict()
for name, weight in text.model.state_dict().items():
    merged[name] = (1 - alpha) * weight + alpha * merged[name]
vlm.model.language_model.load_state_dict(merged)
vlm.save_pretrained(out)
"""


@dataclass(frozen=True)
class Pair:
    """The folders of one size. `decoder` is the VLM's decoder as a text checkpoint."""

    vlm: Path
    text: Path
    decoder: Path


@dataclass(frozen=True)
class Run:
    """What one process took."""

    seconds: float
    on_disk_seconds: float
    cpu_seconds: float
    private_bytes: int
    resident_bytes: int
    written_bytes: int


Samples = dict[str, torch.Tensor]


# ---------------------------------------------------------------------------- checkpoints


def make_configs(gb: float) -> tuple[Any, Any]:
    """Configs of a VLM of about `gb` GB in bfloat16 and of its text LM.

    Depth, vocabulary and projector follow the size. Widths stay: the tower's are those of
    SigLIP so400m, and a layer of the decoder is half as wide as one of Aya Vision 8B.
    """
    from transformers import AyaVisionConfig, Cohere2Config, SiglipVisionConfig

    share = gb / FULL_GB
    text = Cohere2Config(
        hidden_size=2048, intermediate_size=7168, num_attention_heads=16, num_key_value_heads=4,
        num_hidden_layers=max(1, round(18 * share)), vocab_size=round(4000 * share) * 64 or 64,
        dtype="bfloat16", architectures=["Cohere2ForCausalLM"],
        pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    tower = SiglipVisionConfig(
        hidden_size=1152, intermediate_size=4304, num_attention_heads=16, image_size=364,
        patch_size=14, num_hidden_layers=max(1, round(27 * share)), vision_use_head=False,
    )  # fmt: skip
    vlm = AyaVisionConfig(
        vision_config=tower, text_config=text, image_token_index=text.vocab_size - 1,
        alignment_intermediate_size=max(2, round(8192 * share) * 2),
        dtype="bfloat16", architectures=["AyaVisionForConditionalGeneration"],
    )  # fmt: skip
    return vlm, text


def list_shapes(config: Any) -> dict[str, tuple[int, ...]]:
    """{name in a file: shape} of a VLM or a text LM, without making its weights."""
    from transformers import AyaVisionForConditionalGeneration, Cohere2ForCausalLM

    classes = {"aya_vision": AyaVisionForConditionalGeneration, "cohere2": Cohere2ForCausalLM}
    with torch.device("meta"):
        model = classes[config.model_type](config)
    return {
        file_name(name, config.model_type): tuple(weight.shape)
        for name, weight in model.named_parameters()
        if name != "lm_head.weight"  # tied
    }


def file_name(name: str, model_type: str) -> str:
    """What `save_pretrained` calls a parameter."""
    if model_type != "aya_vision":
        return name
    name = name.removeprefix("model.")
    return name.replace(DECODER, f"{DECODER}model.", 1)


def make_values(name: str, num_elements: int) -> Iterator[torch.Tensor]:
    """The bfloat16 values of a tensor, chunk by chunk; a VLM's decoder is the text LM's and noise.

    Seeds come from names, so that either checkpoint can be written without the other.
    """
    text_name = name.removeprefix(DECODER)
    source = torch.Generator().manual_seed(zlib.crc32(text_name.encode()))
    noise = torch.Generator().manual_seed(1 + zlib.crc32(name.encode()))
    for start in range(0, num_elements, CHUNK_ELEMENTS):
        size = min(CHUNK_ELEMENTS, num_elements - start)
        values = torch.empty(size).normal_(std=0.02, generator=source).bfloat16()
        if name != text_name:
            values += torch.empty(size).normal_(std=0.004, generator=noise)
        yield values


def write_checkpoint(folder: Path, config: Any) -> None:
    """Writes config and random weights in shards, holding one chunk at a time."""
    config.save_pretrained(folder)
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    size = 0
    for name, shape in list_shapes(config).items():
        num_bytes = 2 * torch.Size(shape).numel()
        if shards[-1] and size + num_bytes > SHARD_BYTES:
            shards.append({})
            size = 0
        shards[-1][name] = shape
        size += num_bytes
    files = [f"model-{n:05}-of-{len(shards):05}.safetensors" for n in range(1, len(shards) + 1)]
    for file, shapes in zip(files, shards, strict=True):
        write_shard(folder / file, shapes)
    weight_map = {n: file for file, names in zip(files, shards, strict=True) for n in names}
    write_index(folder, weight_map)


def write_shard(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Writes one safetensors file (https://github.com/huggingface/safetensors#format)."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * torch.Size(shape).numel()
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, shape in shapes.items():
            for values in make_values(name, torch.Size(shape).numel()):
                file.write(values.view(torch.uint8).numpy().data)


def write_index(folder: Path, weight_map: Mapping[str, str]) -> None:
    """Writes which tensor is in which shard."""
    index = {"metadata": {"total_size": folder_bytes(folder)}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))


def extract_decoder(vlm: Path, text: Path, target: Path) -> None:
    """Writes the VLM's decoder as a text checkpoint with the text LM's config."""
    target.mkdir()
    shutil.copy(text / "config.json", target)
    weight_map: dict[str, str] = {}
    for path in sorted(vlm.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            names = [name for name in file.keys() if name.startswith(DECODER)]  # noqa: SIM118
            tensors = {name.removeprefix(DECODER): file.get_tensor(name) for name in names}
        if tensors:
            save_file(tensors, target / path.name, metadata={"format": "pt"})
            weight_map |= dict.fromkeys(tensors, path.name)
    write_index(target, weight_map)


def make_pair(workdir: Path, gb: float) -> Pair:
    """Writes the checkpoints of one size, unless an earlier run with --keep left them."""
    folder = workdir / f"{gb:g}gb"
    pair = Pair(folder / "vlm", folder / "text", folder / "decoder")
    done = folder / "done"
    if not done.exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        started = time.perf_counter()
        for target, config in zip((pair.vlm, pair.text), make_configs(gb), strict=True):
            write_checkpoint(target, config)
        written = time.perf_counter()
        extract_decoder(pair.vlm, pair.text, pair.decoder)
        ended = time.perf_counter()
        flush_folder(folder)
        times = f"{written - started:.0f} s, decoder extracted in {ended - written:.1f} s"
        done.write_text(f"{gb:g} GB written in {times}")
    print(f"{done.read_text()}: vlm {folder_bytes(pair.vlm) / 1e9:.2f} GB, "
          f"text {folder_bytes(pair.text) / 1e9:.2f} GB", flush=True)  # fmt: skip
    return pair


def folder_bytes(folder: Path) -> int:
    """Size of the files of a folder."""
    return sum(path.stat().st_size for path in folder.iterdir())


# ---------------------------------------------------------------------------------- sides


def list_sides(pair: Pair, out: Path, mergekit: Path | None) -> dict[str, tuple[list[str], ...]]:
    """{side: (command, folders it reads)}; each writes `out`."""
    ours = [sys.executable, "-m", "merge", f"vlm={pair.vlm}", f"text={pair.text}",
            f"out={out}", f"alpha={ALPHA}"]  # fmt: skip
    usual = [sys.executable, "-c", USUAL, str(pair.vlm), str(pair.text), str(out), str(ALPHA)]
    both = [str(pair.vlm), str(pair.text)]
    sides: dict[str, tuple[list[str], ...]] = {
        "cp -r": (["cp", "-r", str(pair.vlm), str(out)], [str(pair.vlm)]),
        "ours": ([*ours, "verify=false"], both),
        "ours, tensors verified": ([*ours, "verify=true", "verify_logits=false"], both),
        "ours, logits verified too": ([*ours, "verify=true"], both),
        "usual script": (usual, both),
    }
    if mergekit is not None:
        recipe = write_recipe(pair)
        command = [str(mergekit / "bin/mergekit-yaml"), str(recipe), str(out)]
        sides["mergekit"] = (command, [str(pair.decoder), str(pair.text)])
    return sides


def write_recipe(pair: Pair) -> Path:
    """Writes mergekit's config for the same merge of the two text checkpoints."""
    path = pair.text.parent / "mergekit.yaml"
    weights = {pair.decoder: ALPHA, pair.text: 1 - ALPHA}
    models = [{"model": str(model), "parameters": {"weight": w}} for model, w in weights.items()]
    recipe = {"merge_method": "linear", "dtype": "bfloat16", "models": models}
    path.write_text(json.dumps(recipe, indent=2))  # JSON is YAML
    return path


def install_mergekit(venv: Path) -> None:
    """Makes a virtual environment with mergekit and our versions of what both need."""
    if (venv / "bin/mergekit-yaml").exists():
        return
    import transformers

    same = [
        f"torch=={torch.__version__.split('+')[0]}",
        f"transformers=={transformers.__version__}",
    ]
    subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    subprocess.run([str(venv / "bin/pip"), "install", "--quiet", MERGEKIT, *same], check=True)


# ------------------------------------------------------------------------------- measuring


class MemoryWatch(threading.Thread):
    """Peaks of private and resident memory of a process and its children."""

    def __init__(self, pid: int) -> None:
        """Starts at once and goes on until `stop`."""
        super().__init__(daemon=True)
        self.private_bytes = self.resident_bytes = 0
        self._pids, self._ended = [pid], threading.Event()
        self.start()

    def run(self) -> None:
        """Looks every SAMPLE_SECONDS; for new children, which is dear, every CHILDREN_SECONDS."""
        found = time.monotonic()
        while not self._ended.wait(SAMPLE_SECONDS):
            if time.monotonic() - found > CHILDREN_SECONDS:
                self._find_children()
                found = time.monotonic()
            held = [read_memory(pid) for pid in self._pids]
            self.private_bytes = max(self.private_bytes, sum(private for private, _ in held))
            self.resident_bytes = max(self.resident_bytes, sum(resident for _, resident in held))

    def stop(self) -> None:
        """Ends the thread."""
        self._ended.set()
        self.join()

    def _find_children(self) -> None:
        try:
            children = psutil.Process(self._pids[0]).children(recursive=True)
        except psutil.NoSuchProcess:
            return
        self._pids[1:] = [child.pid for child in children]


def read_memory(pid: int) -> tuple[int, int]:
    """Private and resident bytes of a process now, by proc(5); zeros when it has ended."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0, 0
    if "RssAnon:" not in text:  # ended, not yet waited for
        return 0, 0
    private, resident = (
        int(text.split(f"{key}:")[1].split()[0]) * 1024 for key in ("RssAnon", "VmRSS")
    )
    return private, resident


def measure(command: list[str], inputs: list[str], out: Path) -> Run:
    """Runs a command that reads `inputs`, now in the page cache, and writes `out`."""
    shutil.rmtree(out, ignore_errors=True)
    os.sync()  # another's pages must not be written on this one's time
    for folder in inputs:
        read_files(Path(folder))
    with tempfile.TemporaryFile("w+") as log:
        started = time.perf_counter()
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
        watch = MemoryWatch(process.pid)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        watch.stop()
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            log.seek(0)
            raise SystemExit(f"{command[:4]} failed:\n{log.read()[-4000:]}")
    flush_folder(out)
    on_disk = time.perf_counter() - started
    cpu = usage.ru_utime + usage.ru_stime
    written = folder_bytes(out)
    return Run(seconds, on_disk, cpu, watch.private_bytes, watch.resident_bytes, written)


def read_files(folder: Path) -> None:
    """Reads every file once."""
    buffer = bytearray(1 << 20)
    for path in folder.iterdir():
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


# ------------------------------------------------------------------------------- comparing


def read_samples(folder: Path) -> Samples:
    """The first rows of every tensor of a result, under the VLM's names."""
    samples: Samples = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118
                rows = file.get_slice(name)
                shape = rows.get_shape()
                width = max(1, torch.Size(shape[1:]).numel())
                samples[name] = rows[: max(1, SAMPLED_ELEMENTS // width)]
    return {
        DECODER + name if name.startswith("model.") else name: weight
        for name, weight in samples.items()
    }


def compare_values(ours: Samples, theirs: Samples) -> str:
    """How far another result is from ours: the decoder by elements, the rest by tensors."""
    decoder = [name for name in ours if name.startswith(DECODER)]
    rest = [name for name in ours if not name.startswith(DECODER)]
    if missing := set(decoder) - set(theirs):
        raise SystemExit(f"{len(missing)} decoder tensors are missing, as {min(missing)}")
    pairs = [(ours[name], theirs[name]) for name in decoder]
    total = sum(one.numel() for one, _ in pairs)
    differ = sum(int(one.ne(two).sum()) for one, two in pairs)
    worst = max(float((one.float() - two.float()).abs().max()) for one, two in pairs)
    shared = [name for name in rest if name in theirs]
    equal = sum(torch.equal(ours[name], theirs[name]) for name in shared)
    return (
        f"{differ / total:.2%} of {total:,} sampled decoder elements differ from ours, by at most "
        f"{worst:.2e} (values spread by 0.02); {equal} of {len(shared)} other tensors are equal"
    )


# --------------------------------------------------------------------------------- telling


def run_rounds(
    sides: Mapping[str, tuple[list[str], ...]], out: Path, repeats: int
) -> tuple[dict[str, list[Run]], dict[str, Samples]]:
    """All sides in turn, `repeats` times; also samples of what each wrote in the last round.

    A round before those is not counted: where memory is lent by a host, the first use of each page
    costs more than copying it (`cp` of 4 GB took 8.5 s at first and 1.1 s later).
    """
    found: dict[str, list[Run]] = {side: [] for side in sides}
    samples: dict[str, Samples] = {}
    for number in range(repeats + 1):
        for side, (command, inputs) in sides.items():
            run = measure(command, inputs, out)
            print(f"  round {number}, {side}: {run.seconds:.2f} s, on disk "
                  f"{run.on_disk_seconds:.2f} s, CPU {run.cpu_seconds:.2f} s, load "
                  f"{os.getloadavg()[0]:.1f}", file=sys.stderr, flush=True)  # fmt: skip
            if number > 0:
                found[side].append(run)
            if number == repeats and side != "cp -r":
                samples[side] = read_samples(out)
    shutil.rmtree(out, ignore_errors=True)
    return found, samples


def make_table(found: Mapping[str, list[Run]]) -> str:
    """The Markdown table: medians, in brackets the least and the most."""
    ratios = "| to `cp` | to ours "
    lines = [
        f"| | GB written | seconds {ratios}| and on disk, seconds {ratios}| CPU seconds {ratios}"
        "| private MiB | resident MiB |",
        f"|---|{'---:|' * 12}",
    ]
    for side, runs in found.items():
        cells = [side, f"{median(runs, 'written_bytes') / 1e9:.2f}"]
        for key in ("seconds", "on_disk_seconds", "cpu_seconds"):
            cells += [spread(runs, key), *(ratio(runs, found[x], key) for x in ("cp -r", "ours"))]
        cells += [f"{median(runs, k) / 2**20:,.0f}" for k in ("private_bytes", "resident_bytes")]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def median(runs: list[Run], key: str) -> float:
    """The median of one figure."""
    return statistics.median(getattr(run, key) for run in runs)


def spread(runs: list[Run], key: str) -> str:
    """The median of one figure, the least and the most."""
    values = [getattr(run, key) for run in runs]
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def ratio(runs: list[Run], others: list[Run], key: str) -> str:
    """The median over rounds of the ratio of one figure to another side's."""
    pairs = zip(runs, others, strict=True)
    return f"{statistics.median(getattr(a, key) / getattr(b, key) for a, b in pairs):.2f}"


def describe_machine(mergekit: Path | None) -> str:
    """Cores, load and versions."""
    import transformers

    cpu = next(x for x in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in x)
    copy = subprocess.run(["cp", "--version"], capture_output=True, text=True, check=True).stdout
    return (
        f"{os.cpu_count()} cores ({cpu.split(': ')[1]}), load {os.getloadavg()[0]:.1f}, "
        f"{psutil.virtual_memory().total / 2**30:.0f} GiB; Python {sys.version.split()[0]}, "
        f"torch {torch.__version__}, transformers {transformers.__version__}, "
        f"{copy.splitlines()[0]}{'' if mergekit is None else f', {MERGEKIT}'}"
    )


def compare(workdir: Path, gb: float, small_gb: float, repeats: int, mergekit: Path | None) -> None:
    """Prints the table of one size, whether results agree, and our memory at another size."""
    if mergekit is not None:
        install_mergekit(mergekit)
    print(describe_machine(mergekit), flush=True)
    out = workdir / "out"
    pair, small = make_pair(workdir, gb), make_pair(workdir, small_gb)
    found, samples = run_rounds(list_sides(pair, out, mergekit), out, repeats)
    few = {side: x for side, x in list_sides(small, out, None).items() if side in ("cp -r", "ours")}
    found_small, _ = run_rounds(few, out, repeats)
    print(f"\n{gb:g} GB, alpha {ALPHA}, medians of {repeats} rounds\n\n{make_table(found)}")
    print(f"\n{small_gb:g} GB\n\n{make_table(found_small)}\n")
    for side, values in samples.items():
        if side != "ours":
            print(f"{side}: {compare_values(samples['ours'], values)}")
    print(f"load at the end {os.getloadavg()[0]:.1f}")


def main() -> None:
    """Compare, in a folder that is removed at the end unless it is to be kept."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--gb", type=float, default=FULL_GB, help="size of the VLM")
    parser.add_argument("--small-gb", type=float, default=0.5, help="another, for ours alone")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--mergekit-venv", type=Path, help="made if absent; without it no mergekit")
    parser.add_argument("--workdir", type=Path, help="default: a temporary folder in outputs/")
    parser.add_argument("--keep", action="store_true", help="leave the checkpoints for later runs")
    options = parser.parse_args()
    (ROOT / "outputs").mkdir(exist_ok=True)
    workdir = (options.workdir or Path(tempfile.mkdtemp(dir=ROOT / "outputs"))).resolve()
    mergekit = options.mergekit_venv and options.mergekit_venv.resolve()
    try:
        compare(workdir, options.gb, options.small_gb, options.repeats, mergekit)
    finally:
        if not options.keep:
            for name in ("out", f"{options.gb:g}gb", f"{options.small_gb:g}gb"):
                shutil.rmtree(workdir / name, ignore_errors=True)
            if not any(workdir.iterdir()):
                workdir.rmdir()


if __name__ == "__main__":
    main()
