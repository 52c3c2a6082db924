"""Offline W&B runs of real trainings, read back: `wandb sync` has everything to send.

The sync itself needs a server; what it would read is the .wandb file and the folder `files`.
"""

import json
from pathlib import Path

import pytest
import wandb
import yaml
from wandb_file import Offline, offline_runs

from train.tracking.artifacts import RECORD, digests_of


@pytest.fixture(scope="module")
def offline(stages) -> Offline:
    return offline_runs(stages["sft"])


@pytest.mark.slow
def test_every_metric_of_both_segments_is_there(stages, offline):
    assert len(offline.folders) == 2
    history = offline.history()
    lines = [
        json.loads(line) for line in (stages["sft"] / "metrics.jsonl").read_text().splitlines()
    ]
    told = [(line["step"], k, v) for line in lines for k, v in line.items() if k != "step"]
    lost = [each for each in told if history[each[0]].get(each[1]) != each[2]]
    assert lost == []
    names = {name for _, name, _ in told}
    assert {line["step"] for line in lines} == {0, 1, 2, 3, 4} == set(history)
    assert {"train/loss", "train/loss/language/fr", "perf/tokens_per_second"} <= names
    assert {"retention/en/nll", "caption/mean/picture_gap", "data/padding_ratio"} <= names


@pytest.mark.slow
def test_it_is_one_run_of_its_stage_in_its_group(stages, offline):
    runs = offline.of("run")
    assert {r.run_id for r in runs} == {(stages["sft"] / "wandb_id.txt").read_text()}
    assert {(r.job_type, r.run_group, r.display_name) for r in runs} == {("sft", "pico", "sft")}
    assert [e.exit_code for e in offline.of("exit")] == [1, 0]


@pytest.mark.slow
def test_every_table_has_its_rows_and_pictures(stages, offline):
    for path in sorted((stages["sft"] / "evaluation").glob("step-*.json")):
        step = int(path.stem.split("-")[1])
        for group, result in json.loads(path.read_text())["groups"].items():
            if not result["answers"]:
                continue
            told = offline.history()[step][f"eval/{group}/answers"]
            assert told["_type"] == "table-file" and told["nrows"] == len(result["answers"])
            table = json.loads(offline.read(told["path"]))
            at = {name: place for place, name in enumerate(table["columns"])}
            assert [r[at["answer"]] for r in table["data"]] == [
                a["answer"] for a in result["answers"]
            ]
            assert {r[at["picture"]] for r in table["data"]} == (
                {"Image"} if group == "scenes" else {None}
            )


@pytest.mark.slow
def test_pictures_of_tables_wait_in_the_run_folder(stages, offline):
    """Not in the home folder, which another machine does not have, or which is swept."""
    tables = [a for a in offline.of("artifact") if a.type == "run_table"]
    scenes = [a for a in tables if "scenes" in a.name]
    assert len(tables) == 6 and len(scenes) == 3
    for table in scenes:
        pictures = [e for e in table.manifest.contents if e.path.startswith("media/images/")]
        assert len(pictures) == 4
        for entry in pictures:
            file = Path(entry.local_path)
            assert file.is_relative_to(stages["sft"] / "wandb")
            assert file.read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_config_and_files_are_there_as_they_are_at_the_end(stages, offline):
    resolved = yaml.safe_load((stages["sft"] / "config.yaml").read_text())
    config = offline.config()
    assert {key: config[key] for key in resolved} == resolved
    kept = {
        "resolved_config.yaml": "config.yaml",
        "rows.jsonl": "rows.jsonl",
        "environment.jsonl": "environment.jsonl",
    }
    assert offline.files() == dict.fromkeys(kept, "live") | {
        k: v for k, v in offline.files().items() if k not in kept
    }
    for there, here in kept.items():
        assert offline.read(there) == (stages["sft"] / here).read_bytes()
    assert not any((f / "files" / name).is_symlink() for f in offline.folders for name in kept)


@pytest.mark.slow
def test_summaries_keep_the_best_of_captions_and_the_worst_of_forgetting(offline):
    kept = {
        name: {k for k in ("min", "max", "last") if getattr(metric.summary, k)}
        for name, metric in offline.definitions().items()
    }
    assert kept["train/loss"] == kept["caption/en/nll"] == kept["retention/en/nll"] == {
        "min", "last",
    }  # fmt: skip
    assert kept["caption/en/picture_gap"] == kept["caption/mean/chrf"] == {"max", "last"}
    assert "perf/tokens_per_second" not in kept


@pytest.mark.slow
def test_the_tuned_model_comes_from_the_aligned_one(stages, offline):
    align = offline_runs(stages["align"])
    made, used = align.models(used=False), offline.models(used=True)
    assert set(used) == {"pico-align-export"}
    assert {made[n].digest for n in used} == {a.digest for a in used.values()}
    assert used["pico-align-export"].user_created
    told = offline.config()["inputs"]
    assert told["model"] == {
        "path": str(stages["align"] / "export"),
        "artifact": "pico-align-export",
        "digest": used["pico-align-export"].digest,
    }
    assert set(align.config()["inputs"]) == {"decoder"}  # not ours: named by what it holds
    assert set(align.models(used=True)) == {align.config()["inputs"]["decoder"]["artifact"]}


@pytest.mark.slow
def test_models_are_references_and_nothing_is_uploaded(stages, offline):
    made = offline.models(used=False)
    assert set(made) == {"pico-sft-export", "pico-sft-checkpoint"}
    assert {a.type for a in made.values()} == {"model", "checkpoint"}
    for artifact in made.values():
        assert all(entry.ref.startswith("file://") for entry in artifact.manifest.contents)
        assert not any(entry.local_path for entry in artifact.manifest.contents)
    export = stages["sft"] / "export"
    entries = {e.path: e.digest for e in made["pico-sft-export"].manifest.contents}
    assert entries == digests_of(export) and "model.safetensors" in entries
    assert json.loads((export / RECORD).read_text())["name"] == "pico-sft-export"
    aliases = [set(a.aliases) for a in offline.of("artifact") if a.type == "checkpoint"]
    assert {"latest", "step-4", "best"} in aliases or {"latest", "step-2", "best"} in aliases


@pytest.mark.slow
def test_the_digest_is_w_and_bs_own(stages):
    """A reference that W&B makes itself has ours, so that the versions are one."""
    export = stages["sft"] / "export"
    theirs = wandb.Artifact("a", "model")
    theirs.add_reference(export.as_uri(), checksum=True)
    entries = {str(k): v.digest for k, v in theirs.manifest.entries.items() if str(k) != RECORD}
    assert entries == digests_of(export)


def test_use_artifact_still_refuses_offline(tmp_path, no_agent):
    """What we go around: where this fails, W&B can do it itself."""
    opened = wandb.init(mode="offline", dir=str(tmp_path), settings={"silent": True})
    with opened, pytest.raises(TypeError, match="offline"):
        opened.use_artifact(wandb.Artifact("a", "model"))
