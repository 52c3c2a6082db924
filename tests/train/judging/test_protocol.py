"""The paper's protocol from end to end, on a table like AyaVisionBench's: answer, then judge."""

import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from judge_server import judge_server, prefers_longer, shown, user_text
from PIL import Image

from configs.command import load_config
from train.evaluate_run import evaluate
from train.judging.run import judge


def make_table(path: Path) -> None:
    """A Parquet file with the columns of a subset of CohereLabs/AyaVisionBench, made up."""
    rows = []
    for number, prompt in enumerate(("What is it?", "What colour is it?", "Describe it.")):
        picture = io.BytesIO()
        Image.new("RGB", (48, 32), (80 * number, 90, 30)).save(picture, "PNG")
        rows.append(
            {
                "image": [{"bytes": picture.getvalue(), "path": None}],
                "image_source": "made up",
                "image_source_category": "captioning",
                "index": f"row {number}",
                "prompt": prompt,
                "reference": "a patch of colour",
                "language": "eng_Latn",
            }
        )
    pq.write_table(pa.Table.from_pylist(rows), path)


@pytest.mark.slow
def test_two_models_answer_a_benchmark_and_are_judged(
    pipeline: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    make_table(tmp_path / "eng.parquet")
    source = (
        "{kind: dataset, path: parquet, split: train, language: en, id_field: index, "
        f"data_files: [{tmp_path}/eng.parquet], prompt_field: prompt, caption_field: reference}}"
    )
    config: Any = load_config(
        "evaluate",
        [
            f"models={{merged: {pipeline.merged}, tuned: {pipeline.sft}}}",
            f"out={tmp_path / 'answers'}",
            "data.languages=[en]",
            "engine.num_threads=1",
            f"+data.held_out.aya={source}",
        ],
    )
    evaluate(config)
    told = json.loads((tmp_path / "answers" / "evaluation.json").read_text(encoding="utf-8"))
    answers = {
        name: {a["row_id"]: a["answer"] for a in model["groups"]["aya"]["answers"]}
        for name, model in told["models"].items()
    }
    assert answers["merged"].keys() == answers["tuned"].keys()
    assert len(answers["merged"]) == 3
    with judge_server(prefers_longer) as server:
        asked: Any = load_config(
            "judge",
            [
                f"evaluation={tmp_path / 'answers'}",
                "models=[merged,tuned]",
                "groups=[aya]",
                f"endpoint={server.url}",
                "judge_model=a-judge",
                f"out={tmp_path / 'judged'}",
            ],
        )
        judge(asked)
    found = json.loads((tmp_path / "judged" / "judge.json").read_text(encoding="utf-8"))
    assert found["all"]["num_rows"] == 3
    longer = [len(answers["merged"][key]) - len(answers["tuned"][key]) for key in answers["tuned"]]
    assert found["all"]["wins"] == sum(gap > 0 for gap in longer)
    assert found["all"]["losses"] == sum(gap < 0 for gap in longer)
    both = {text for body in server.bodies for text in shown(body)}
    assert both <= {text for model in answers.values() for text in model.values()}
    assert all("What" in user_text(b) or "Describe" in user_text(b) for b in server.bodies)
