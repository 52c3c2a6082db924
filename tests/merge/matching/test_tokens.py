"""merge.matching.tokens: whose rows are whose, and two tokenizers that are not one."""

import json
import time

import pytest
import torch
from merge_pico import IMAGE_TOKEN, edit, edit_config, load, same_bits, save_untied_pair

from configs.errors import CheckpointError
from merge.api import merge_checkpoints
from merge.matching.plan import plan_merge
from merge.matching.tensor_table import build_table
from merge.matching.tokens import compare_tokens, read_vocabulary
from merge.reading.checkpoint import read_checkpoint
from merge.recipe.recipe import make_recipe

EMBEDDING = "language_model.model.embed_tokens.weight"
WORDS = {f"w{row}": row for row in range(60)}  # of 64 rows: the last four are padding


def write(folder, words, added=(), **model):
    """A tokenizer.json of these {token: id}, and [(id, content)] beside them."""
    entries = [{"id": row, "content": token, "special": True} for row, token in added]
    content = {"added_tokens": entries, "model": {"type": "BPE", "vocab": words} | model}
    (folder / "tokenizer.json").write_text(json.dumps(content))


def rename(words, **new):
    """{token: id} with the tokens of some ids replaced: `w7="x"`."""
    return {new.get(token, token): row for token, row in words.items()}


def tokens_of(pair):
    return compare_tokens(read_checkpoint(pair.vlm, "vlm"), read_checkpoint(pair.text, "text"))


def kept_rows(pair):
    """{name: rows of the VLM} by the plan."""
    plans = build_table(read_checkpoint(pair.vlm, "vlm"), read_checkpoint(pair.text, "text"))
    return {
        plan.name: [row for pair in plan.vlm_rows for row in range(*pair)]
        for plan in plans
        if plan.vlm_rows
    }


def test_without_tokenizers_only_the_config_speaks(copy_pair):
    tokens = tokens_of(copy_pair)
    assert (tokens.num_common, tokens.text_end, tokens.own) == (None, None, set())
    assert tokens.stated == {IMAGE_TOKEN: "image_token_index"}
    write(copy_pair.vlm, WORDS)
    assert tokens_of(copy_pair).num_common is None


def test_ids_that_the_config_states(copy_pair):
    """Those of all families; numbers of other meaning, and flags, are none."""
    edit_config(
        copy_pair.vlm, video_token_id=6, vision_start_token_id=7, vision_end_token_id=8,
        vision_token_id=9, boi_token_index=10, eoi_token_index=11, image_seq_length=12,
        mm_tokens_per_image=13, num_image_tokens=14, use_image_token_id=True, pad_token_id=15,
        bos_token_id=16,
    )  # fmt: skip
    assert sorted(tokens_of(copy_pair).stated) == [IMAGE_TOKEN, 6, 7, 8, 9, 10, 11]
    assert kept_rows(copy_pair) == {"model.embed_tokens.weight": [IMAGE_TOKEN, *range(6, 12)]}


def test_tokens_that_the_processor_states(copy_pair):
    """Aya Vision's tags and Mistral's breaks stand there; plain words of the vocabulary do not
    count, and neither do tokens of text."""
    write(copy_pair.vlm, {**WORDS, "TILE": 60}, added=[(20, "<img>"), (21, "<brk>"), (22, "</s>")])
    (copy_pair.vlm / "processor_config.json").write_text(
        json.dumps({"start_of_img_token": "<img>", "tile_token": "TILE", "image_token": "w9"})
    )
    (copy_pair.vlm / "tokenizer_config.json").write_text(
        json.dumps({"image_break_token": {"content": "<brk>"}, "eos_token": "</s>"})
    )
    stated = {IMAGE_TOKEN: "image_token_index", 20: "start_of_img_token", 21: "image_break_token"}
    assert tokens_of(copy_pair).stated == stated


def test_renamed_and_new_tokens_are_the_vlms(copy_pair, tmp_path):
    """Aya Vision's START_OF_IMG stands in no config, and in place of a reserved token."""
    write(copy_pair.text, {**WORDS, **{f"v{row}": row for row in range(100, 200)}})
    words = {**rename(WORDS, w30="<tile>"), **{f"v{row}": row for row in range(100, 200)}}
    write(copy_pair.vlm, words, added=[(60, "<new>"), (61, "<newer>")])
    tokens = tokens_of(copy_pair)
    assert dict(tokens.differing) == {30: ("<tile>", "w30")} and tokens.num_common == 160
    assert dict(tokens.new) == {60: "<new>", 61: "<newer>"}
    vlm, text = load(copy_pair.vlm)[EMBEDDING], load(copy_pair.text)["model.embed_tokens.weight"]
    report = merge_checkpoints(
        vlm=copy_pair.vlm, text=copy_pair.text, out=tmp_path / "out", alpha=0, verify=False
    )
    out = load(tmp_path / "out")[EMBEDDING]
    text[[IMAGE_TOKEN, 30, 60, 61]] = vlm[[IMAGE_TOKEN, 30, 60, 61]]
    assert same_bits(out, text)
    told = report["relatives"]["tokens"]
    assert told["vlm_rows"] == {"5": "image_token_index", "30": "'<tile>', 'w30' in the text LM",
                                "60": "new token '<new>'", "61": "new token '<newer>'"}  # fmt: skip
    assert (told["num_vlm_rows"], told["num_common_ids"], told["num_differing_ids"]) == (4, 160, 1)


def test_a_head_of_its_own_keeps_only_what_means_another_token(tmp_path):
    pair = save_untied_pair(tmp_path)
    write(pair.text, WORDS)
    write(pair.vlm, WORDS, added=[(62, "<new>")])
    expected = {"model.embed_tokens.weight": [IMAGE_TOKEN, 62], "lm_head.weight": [62]}
    assert kept_rows(pair) == expected


def test_another_tokenizer_is_refused(copy_pair):
    write(copy_pair.text, WORDS)
    shifted = {token: (row + 1) % 60 for token, row in WORDS.items()}
    write(copy_pair.vlm, shifted)
    message = (
        r"disagree about 60 of 60 token ids \(100.0%; .*\): 0 is 'w59' in the vlm and 'w0' in the "
        r"text LM, 1 is .* and 55 more\. .*give the text LM .* or set force=true"
    )
    with pytest.raises(CheckpointError, match=message):
        plan_merge(copy_pair.vlm, copy_pair.text)
    plan = plan_merge(copy_pair.vlm, copy_pair.text, force=True)
    assert plan.relatives["tokens"]["num_differing_ids"] == 60
    assert plan.relatives["tokens"]["num_vlm_rows"] == 60


@pytest.mark.parametrize(("num_renamed", "refused"), [(2, False), (3, True)])
def test_one_in_a_hundred_may_be_renamed(num_renamed, refused, copy_pair):
    words = {f"w{row}": row for row in range(200)}
    write(copy_pair.text, words)
    write(copy_pair.vlm, rename(words, **{f"w{row}": f"n{row}" for row in range(num_renamed)}))
    if refused:
        with pytest.raises(CheckpointError, match=r"disagree about 3 of 200 token ids \(1.5%"):
            plan_merge(copy_pair.vlm, copy_pair.text)
    else:
        told = plan_merge(copy_pair.vlm, copy_pair.text).relatives["tokens"]
        assert sorted(map(int, told["vlm_rows"])) == [0, 1, IMAGE_TOKEN]


def test_ids_beyond_the_rows_are_told(copy_pair):
    """A video token of a config that was copied has no row; nothing is to be kept."""
    edit_config(copy_pair.vlm, video_token_id=151656)
    told = plan_merge(copy_pair.vlm, copy_pair.text).relatives["tokens"]
    assert told["ids_without_row"] == [151656] and told["num_vlm_rows"] == 1
    assert kept_rows(copy_pair) == {"model.embed_tokens.weight": [IMAGE_TOKEN]}


def test_added_tokens_and_lists_of_pieces(tmp_path):
    """Unigram models list pieces with scores; an added token stands before one of its id."""
    write(tmp_path, [["<unk>", 0.0], ["a", -1.5], ["b", -2.0]], added=[(2, "<b>"), (3, "<c>")])
    vocabulary = read_vocabulary(tmp_path)
    assert dict(vocabulary.tokens) == {0: "<unk>", 1: "a", 2: "<b>", 3: "<c>"}
    assert dict(vocabulary.added) == {"<b>": 2, "<c>": 3}


def test_a_real_tokenizer(tmp_path):
    """What the library writes, of two kinds, is read as it numbers it."""
    from pico_families import make_tokenizer

    for name in ("cohere2", "gemma3_text"):
        tokenizer = make_tokenizer(name)
        tokenizer.save_pretrained(tmp_path / name)
        found = read_vocabulary(tmp_path / name).tokens
        assert {token: row for row, token in found.items()} == tokenizer.get_vocab()


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"model": {}}', '{"added_tokens": [1], "model": {"vocab": {}}}']
)
def test_broken_files_are_named(content, copy_pair):
    (copy_pair.text / "tokenizer.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"text/tokenizer.json (is not|holds a list)"):
        tokens_of(copy_pair)


def taller(tensors):
    """Four more rows in the text LM."""
    name = "model.embed_tokens.weight"
    return tensors | {name: torch.cat([tensors[name], tensors[name][:4]])}


def test_padding_of_the_text_lm_is_dropped(copy_pair, tmp_path):
    """Its rows from 64 on have no token: what comes out is what came before they were there."""
    write(copy_pair.text, WORDS)
    write(copy_pair.vlm, WORDS)
    paths = dict(vlm=copy_pair.vlm, text=copy_pair.text)
    merge_checkpoints(**paths, out=tmp_path / "before", alpha=0.4, verify=False)
    edit(copy_pair.text, taller)
    report = merge_checkpoints(**paths, out=tmp_path / "out", alpha=0.4)
    before, out = load(tmp_path / "before"), load(tmp_path / "out")
    assert all(same_bits(out[name], before[name]) for name in before)
    dropped = {"model.embed_tokens.weight": [64, 68]}
    assert report["relatives"]["dropped_text_rows"] == dropped


def test_the_dial_drops_them_too(copy_pair, tmp_path):
    from transformers import AutoModelForImageTextToText

    from merge.sweeping.in_place import AlphaDial

    write(copy_pair.text, WORDS)
    edit(copy_pair.text, taller)
    merge_checkpoints(vlm=copy_pair.vlm, text=copy_pair.text, out=tmp_path / "out", alpha=0)
    model = AutoModelForImageTextToText.from_pretrained(copy_pair.vlm, dtype="auto")
    AlphaDial(model, plan_merge(copy_pair.vlm, copy_pair.text).table).set(make_recipe(alpha=0))
    held = model.get_input_embeddings().weight.detach()
    assert same_bits(held, load(tmp_path / "out")[EMBEDDING])


@pytest.mark.parametrize("where", ["vocab", "added", "config"])
def test_rows_of_tokens_are_not_dropped(where, copy_pair):
    words = WORDS | ({"w65": 65} if where == "vocab" else {})
    write(copy_pair.text, words, added=[(65, "<x>")] if where == "added" else ())
    if where == "config":
        edit_config(copy_pair.text, eos_token_id=[2, 65])
    edit(copy_pair.text, taller)
    message = (
        r"\(vlm \[64, 32\], text \[68, 32\]; .* only as padding, but its tokens reach up to 65"
    )
    with pytest.raises(CheckpointError, match=message):
        plan_merge(copy_pair.vlm, copy_pair.text)


def test_reading_takes_well_under_a_second(copy_pair):
    """A vocabulary of 256,000 on both sides (0.3 s here); refusals come in under a second."""
    words = {f"token{row}": row for row in range(256_000)}
    write(copy_pair.vlm, words, merges=[f"a{row} b" for row in range(250_000)])
    write(copy_pair.text, words, merges=[f"a{row} b" for row in range(250_000)])
    start = time.process_time()
    assert tokens_of(copy_pair).num_common == 256_000
    assert time.process_time() - start < 2
