"""Run folders as the trainer leaves them, made up: many languages, foreign and hostile text."""

import json
import math
import random
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from configs.languages import LANGUAGES

CODES = list(LANGUAGES)
ATTACK = "<script>alert(1)</script><img src=x onerror=alert(2)>|\"'&amp; [a](http://evil.example)"
WORDS = {
    "ar": ("ماذا ترى في هذه الصورة؟", "مفتاح وزهرة عباد الشمس (2)", "مفتاح"),
    "fa": ("در این تصویر چه می‌بینی؟", "کلید، گل آفتابگردان", "کلید و ۳ گل"),
    "he": ("מה רואים בתמונה הזאת?", "מפתח, חמנייה", "מפתח (1), שמש"),
    "hi": ("इस चित्र में क्या है?", "चाबी, सूरजमुखी", "चाबी"),
    "ja": ("この絵には何がありますか。", "鍵、ひまわり", "鍵、ひまわり"),
}
MEASURES = {
    "scenes": ["nll", "picture_gap", "choice_accuracy", "exact_match", "chrf", "bleu", "cider"],
    "numbers": ["nll", "nll_increase", "kl", "exact_match", "chrf"],
    "udhr": ["nll", "nll_increase", "kl"],
}
BLIND = ["nll", "choice_accuracy", "exact_match", "chrf"]
ENVIRONMENT = {
    "time": "2026-11-26T10:00:00+0000", "command": ["train/main.py", "experiment=made up"],
    "python": "3.11.7", "host": "machine", "platform": "Linux", "cpus": 2, "world_size": 1,
    "git_commit": "0123abc", "packages": {"torch": "2.13.0", "transformers": "5.23.0"},
}  # fmt: skip

HELD_OUT = {"scenes": {"kind": "emoji_scenes", "num_rows": 92},
            "udhr": {"kind": "udhr", "path": "rights"}}  # fmt: skip


def value(measure: str, code: str, step: int, last: int) -> float:
    """A value that runs from a start to an end, another one for each language."""
    chance = random.Random(f"{measure} {code}")
    worse, start = chance.uniform(0, 0.5) ** 2, chance.uniform(1.5, 3)
    share = step / last if last else 0.0
    wave = 0.01 * math.sin(step / 7 + start * 9)
    return {
        "nll": start + worse * share + wave, "nll_increase": worse * share + wave * (step > 0),
        "kl": worse * share / 2, "picture_gap": share * start / 2,
        "choice_accuracy": 0.25 + share * 0.6,
        "exact_match": share * worse * 3, "chrf": 5 + share * start * 20, "bleu": share * start * 8,
        "cider": share * start / 3,
    }[measure.removeprefix("blind_")] * (0.4 if measure.startswith("blind_") else 1)  # fmt: skip


def groups(step: int, last: int, codes: list[str], *, answer: str = "") -> dict[str, Any]:
    """What `as_json` gives."""
    found = {}
    for group, measures in MEASURES.items():
        names = [*measures, *(f"blind_{m}" for m in BLIND if group == "scenes")]
        by_language = {m: {c: value(m, c, step, last) for c in codes} for m in names}
        found[group] = {
            "kind": "captions" if group == "scenes" else "text",
            "mean": {m: sum(v.values()) / len(v) for m, v in by_language.items()},
            "by_language": by_language,
            "num_rows": {m: dict.fromkeys(codes, 4) for m in names},
            "answers": [] if group == "udhr" else [
                _answer(group, code, number, step, answer) for code in codes for number in range(4)
            ],
        }  # fmt: skip
    return found


def _answer(group: str, code: str, number: int, step: int, answer: str) -> dict[str, Any]:
    question, reference, said = WORDS.get(code, (f"What is it, {code}?", "key, sunflower", "key"))
    if step == 0:
        said = "…"
    elif number == 1 and step % 2 == 0:
        said = reference
    return {
        "row_id": f"{group}/{code}-{number}", "language": code, "question": question,
        "reference": reference, "answer": answer or said,
        "blind_answer": "a ball" if group == "scenes" else None,
    }  # fmt: skip


def make_run(
    folder: Path,
    *,
    codes: list[str] = CODES,
    num_steps: int = 400,
    every: int = 40,
    answer: str = "",
    finished: bool = True,
) -> Path:
    """Write a run folder."""
    (folder / "evaluation" / "pictures").mkdir(parents=True)
    config = {
        "output_dir": str(folder),
        "stage": {"name": "sft", "parts": {"vision_tower": {"mode": "frozen"},
                                           "decoder": {"mode": "full"}}},
        "model": {"kind": "vlm", "path": "somewhere/export"},
        "optim": {"max_steps": num_steps},
        "data": {"languages": codes,
                 "sources": {"pangea": {"kind": "messages", "path": "rows.jsonl", "weight": 1.0}},
                 "held_out": HELD_OUT},
    }  # fmt: skip
    (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    _lines(folder / "environment.jsonl", [ENVIRONMENT, {**ENVIRONMENT, "time": "2026-11-26T11"}])
    _json(folder / "data.json", {"samples": 1234, "digest": "0f0f"})
    _lines(folder / "rows.jsonl", [
        {"source": "pangea", "used": 1234, "bad": 2},
        *({"source": "pangea", "id": f"row-{i}", "reason": "a broken picture"} for i in (1, 2)),
        {"group": "held_out", "source": "scenes", "id": "7", "reason": "longer than max_tokens"},
    ])  # fmt: skip
    steps = sorted({*range(0, num_steps, every), num_steps})
    for step in steps:
        content = {"schema": 1, "step": step,
                   "groups": groups(step, num_steps, codes, answer=answer)}  # fmt: skip
        _json(folder / "evaluation" / f"step-{step:06d}.json", content)
    _lines(folder / "metrics.jsonl", [_metrics(step, num_steps, codes)
                                      for step in range(1, num_steps + 1)])  # fmt: skip
    pictures = {}
    for number, code in enumerate(codes):
        pictures[f"scenes/{code}-0"] = f"{number}.png"
        Image.new("RGB", (128, 128), (number * 10 % 255, 120, 160)).save(
            folder / "evaluation" / "pictures" / f"{number}.png"
        )
    _json(folder / "evaluation" / "pictures.json", pictures)
    if finished:
        _json(folder / "finished.json", {"steps": num_steps, "seconds": 321.5})
    return folder


def _metrics(step: int, last: int, codes: list[str]) -> dict[str, float]:
    noise = random.Random(step)
    loss = 2 + 3 * math.exp(-4 * step / last) + noise.gauss(0, 0.08)
    return {
        "step": step, "train/loss": loss, "train/grad_norm": 0.5 + noise.random() / 3,
        "train/grad_norm/decoder": 0.4 + noise.random() / 3,
        "train/learning_rate/decoder": 1e-4 * (1 - step / last),
        "train/learning_rate/projector": 3e-4 * (1 - step / last),
        **{f"train/loss/language/{c}": loss + 0.1 * (i - 11) for i, c in enumerate(codes)},
        "train/loss/source/pangea": loss, "perf/tokens_per_second": 18_000 + noise.gauss(0, 900),
        "perf/data_wait_ratio": 0.02, "perf/memory_peak_gib/forward": 1.5,
    }  # fmt: skip


def _json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def _lines(path: Path, lines: list[Any]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
