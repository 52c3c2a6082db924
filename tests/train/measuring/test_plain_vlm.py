"""Any family's losses and answers, against loops over tokens with the model's plain forward."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pico_vlms
import pytest
import torch
from pico_models import make_aya
from pico_processors import CHATS, make_asked_vlm, make_processor
from pico_runs import FAST, SCENES
from pico_vlms import make_text, make_vlm
from PIL import Image

from configs.command import load_config
from configs.errors import CheckpointError, DataError
from data.processor import load_processor
from data.render import Renderer
from data.rows import IMAGE, Row, Turn, plain_text, question
from train.measuring.conversations import Scored
from train.measuring.held_out import prepare_held_out
from train.measuring.logit_factor import logit_factor
from train.measuring.plain_vlm import PlainVlm, blank_pictures, own_pictures
from train.measuring.reading import PackedReader
from train.model.load import load_vlm
from train.model.loss import add_token_losses

WORST = 5e-6  # nats; measured 5.2e-7
LOADED = [name for name, chat in CHATS.items() if chat.loads]


@dataclass(frozen=True)
class Drawn:
    """A picture made of noise."""

    seed: int
    width: int = 20
    height: int = 12

    def size(self) -> tuple[int, int]:
        return self.width, self.height

    def load(self) -> Image.Image:
        shape = (self.height, self.width, 3)
        pixels = np.random.default_rng(self.seed).integers(0, 255, shape, dtype=np.uint8)
        return Image.fromarray(pixels)


def row(name: str, asked: str, answer: str, *images: Drawn) -> Row:
    return Row(name, "drawn", "en", question(asked, answer, num_images=len(images)), images)


ROWS = [
    row("a", "What do you see?", "a key", Drawn(0)),
    row("b", "The fox?", "A lazy dog, 3 apples & a key.", Drawn(1, 9, 17)),
    row("c", "What do you see in the picture of the lazy dog?", "an elephant", Drawn(2, 8, 8)),
    row("d", "Zwei?", "Schlüssel", Drawn(3), Drawn(4, 16, 10)),
    row("e", "What does the quick brown fox do?", "It jumps."),
    Row("f", "drawn", "en", (
        Turn("user", ("What? ", IMAGE, " See it?")), Turn("assistant", ("a dog",)),
        *question("And the fox?", "It jumps over the dog."),
    ), (Drawn(5),)),
]  # fmt: skip


@pytest.fixture(scope="module", params=CHATS)
def vlm(request) -> Any:
    processor = make_processor(request.param)
    found = PlainVlm(
        make_asked_vlm(request.param, processor), processor, batch_size=3, max_new_tokens=8
    )
    found.chat = CHATS[request.param]
    return found


def inputs_of(vlm: Any, row: Row, pictures: Any, *, answer: str | None) -> dict[str, torch.Tensor]:
    """The published way, one conversation at a time: the text first, then the whole processor."""
    shown, messages = iter(pictures), []
    for turn in row.turns[:-1]:
        content = [{"type": "image"} if piece is IMAGE else {"type": "text", "text": piece}
                   for piece in turn.content]  # fmt: skip
        messages.append({"role": turn.role, "content": content})
    if answer is not None:
        content = [{"type": "text", "text": answer}]
        messages.append({"role": "assistant", "content": content})
    text = vlm.processor.apply_chat_template(messages, add_generation_prompt=answer is None)
    return dict(vlm.processor(
        text=[text], images=[list(shown)] if pictures else None, return_tensors="pt",
        add_special_tokens=False,
    ))  # fmt: skip


@torch.no_grad()
def naive_losses(vlm: Any, row: Row, pictures: Any, answer: str) -> list[float]:
    """The last tokens of the text that are the answer's, each predicted from all before it."""
    inputs = inputs_of(vlm, row, pictures, answer=answer)
    ids = inputs["input_ids"][0].tolist()
    space = " " if "ASSISTANT" in vlm.chat.template + vlm.processor.chat_template else ""
    space = " " if "Assistant:" in vlm.chat.template else space
    wanted = vlm.tokenizer.encode(space + answer + (vlm.chat.stop or ""), add_special_tokens=False)
    (start,) = [i for i in range(len(ids)) if ids[i : i + len(wanted)] == wanted][-1:]
    logits = vlm.model(**inputs).logits[0].double()
    return [
        float(-logits[t - 1].log_softmax(-1)[ids[t]]) for t in range(start, start + len(wanted))
    ]


@torch.no_grad()
def naive_answer(vlm: Any, row: Row, pictures: Any) -> str:
    """Greedy search with a whole forward for each token, no cache, no padding."""
    inputs, said = inputs_of(vlm, row, pictures, answer=None), []
    shape = inputs["input_ids"].shape
    of_tokens = [key for key, value in inputs.items() if value.shape == shape]
    ends = {vlm.tokenizer.eos_token_id, vlm.stop_token_id}
    while len(said) < vlm.max_new_tokens and not ends & set(said):
        said.append(int(vlm.model(**inputs, use_cache=False).logits[0, -1].argmax()))
        for key in of_tokens:
            new = {"input_ids": said[-1], "attention_mask": 1}.get(key, 0)
            inputs[key] = torch.cat([inputs[key], torch.tensor([[new]])], dim=1)
    return vlm.tokenizer.decode(said, skip_special_tokens=True)


def test_losses_are_those_of_a_loop_with_right_other_and_blank_pictures(vlm):
    own = [own_pictures(row) for row in ROWS]
    other = [own_pictures(row)[::-1] for row in ROWS]
    other[:3] = own[1], own[2], own[0]
    blank = [blank_pictures(pictures) for pictures in own]
    found = {}
    for name, pictures in (("own", own), ("other", other), ("blank", blank)):
        found[name] = vlm.token_losses(ROWS, pictures)
        for row, shown, losses in zip(ROWS, pictures, found[name], strict=True):
            assert losses.dtype == torch.float32 and losses.device.type == "cpu"
            wanted = naive_losses(vlm, row, shown, row.turns[-1].text)
            assert losses.tolist() == pytest.approx(wanted, abs=WORST)
    for i in range(4):  # the picture counts
        assert float((found["own"][i] - found["other"][i]).abs().max()) > 1e-4
        assert float((found["own"][i] - found["blank"][i]).abs().max()) > 1e-4


def test_another_answer_in_the_place_of_a_rows_own(vlm):
    captions = ["a key", "an elephant", "A lazy dog."] * 2
    own = [own_pictures(row) for row in ROWS]
    found = vlm.token_losses(ROWS, own, captions)
    for row, shown, text, losses in zip(ROWS, own, captions, found, strict=True):
        assert losses.tolist() == pytest.approx(naive_losses(vlm, row, shown, text), abs=WORST)


def test_what_ends_an_answer_is_supervised_and_what_follows_is_not(vlm):
    (losses,) = vlm.token_losses(ROWS[:1], [own_pictures(ROWS[0])])
    stop = vlm.chat.stop
    assert vlm.stop_token_id == (stop and vlm.tokenizer.convert_tokens_to_ids(stop))
    alone = len(vlm.tokenizer.encode("a key", add_special_tokens=False))
    with_space = len(vlm.tokenizer.encode(" a key", add_special_tokens=False))
    assert len(losses) - (stop is not None) in (alone, with_space)


def test_batched_answers_are_those_of_a_loop(vlm):
    own = [own_pictures(row) for row in ROWS]
    wanted = [naive_answer(vlm, row, shown) for row, shown in zip(ROWS, own, strict=True)]
    assert len(set(wanted)) > 1
    assert vlm.answers(ROWS, own) == wanted
    assert vlm._can_batch
    early = vlm.tokenizer.encode(wanted[0], add_special_tokens=False)[1]
    before, vlm.stop_token_id = vlm.stop_token_id, early  # answers then end at different lengths
    assert vlm.answers(ROWS, own) == [naive_answer(vlm, r, p) for r, p in zip(ROWS, own)]  # noqa: B905
    vlm.stop_token_id = before


def test_plain_text_stands_behind_an_empty_question(vlm):
    text = Row("t", "drawn", "en", plain_text("The quick brown fox jumps."))
    asked = Row("t", "drawn", "en", question("", "The quick brown fox jumps."))
    (losses,) = vlm.token_losses([text], [[]])
    assert losses.tolist() == pytest.approx(
        naive_losses(vlm, asked, [], "The quick brown fox jumps."), abs=WORST
    )


# ------------------------------------------------------------------------------ folders


@pytest.mark.parametrize("name", LOADED)
def test_a_folder_is_measured_as_the_model_in_memory(name, tmp_path):
    processor = make_processor(name)
    model = make_asked_vlm(name, processor)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    own = [own_pictures(row) for row in ROWS]
    loaded = PlainVlm.from_folder(str(tmp_path))
    found = loaded.token_losses(ROWS, own)
    wanted = PlainVlm(model, processor).token_losses(ROWS, own)
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_our_own_models_are_measured_as_by_our_own_path(pipeline):
    """AyaVision's class leaves out `logit_scale`; here it is put back."""
    config = load_config("train", [
        *FAST, *SCENES, "data.held_out.scenes.num_rows=6", "evaluation.max_rows=3",
        "evaluation.max_new_tokens=8",
    ])  # fmt: skip
    renderer = Renderer(load_processor(str(pipeline.sft)))
    held_out = prepare_held_out(config.data, config.evaluation, renderer)
    model: Any = load_vlm(str(pipeline.sft), dtype=torch.float32)
    add_token_losses(model)
    plain = PlainVlm.from_folder(str(pipeline.sft), dtype=torch.float32, max_new_tokens=8)
    assert plain.factor == model.config.text_config.logit_scale != 1
    assert plain.stop_token_id == renderer.stop_token_id
    for samples in held_out.groups.values():
        rows = [sample.row for sample in samples]
        shown = [own_pictures(row) for row in rows]
        with torch.no_grad():
            reader = PackedReader(model.eval(), held_out.renderer, held_out.pictures, 8)
            wanted = [nats for nats, _ in reader.losses([Scored(s, s) for s in samples])]
        if len(rows[0].turns) > 1:
            answers = reader.answers(samples)
            assert plain.answers(rows, shown) == answers
            for one, two in zip(plain.token_losses(rows, shown), wanted, strict=True):
                assert one.tolist() == pytest.approx(two.tolist(), abs=WORST)


# ------------------------------------------------------------------------------ the factor


@pytest.mark.parametrize("tied", [True, False])
def test_aya_visions_missing_factor_is_found(tied):
    assert logit_factor(make_aya(tied=tied)) == 0.25


def test_a_factor_that_the_class_applies_is_not_applied_again():
    mended = make_aya()

    class Mended(type(mended)):  # type: ignore[misc]
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            out = super().forward(*args, **kwargs)
            out.logits = out.logits * 0.25
            return out

    mended.__class__ = Mended
    assert logit_factor(mended) == 1.0


@pytest.mark.parametrize(
    ("family", "text", "factor"),
    [("aya_vision", "cohere2", 0.25), ("cohere2_vision", "cohere2", 0.25),
     ("llava_next", "granite", 0.125), ("paligemma", "gemma2", 1.0), ("llava", "gemma2", None)],
)  # fmt: skip
def test_what_vlm_classes_leave_out_of_transformers_5(family, text, factor, monkeypatch):
    """Granite Vision is a LLaVA-NeXT on Granite; PaliGemma has Gemma 2's soft cap itself."""
    granite = dict(logits_scaling=8.0, embedding_multiplier=3.0)
    monkeypatch.setitem(pico_vlms.TEXT_CHANGES, "granite", granite)
    model = make_vlm(family, make_text(text, tied=True))
    if factor is not None:
        assert logit_factor(model) == factor
    else:
        with pytest.raises(CheckpointError, match=r"'final_logit_softcapping': 30"):
            logit_factor(model)


def test_families_without_such_a_setting_are_not_compared():
    assert logit_factor(make_vlm("llava", make_text("llama"))) == 1.0


def test_another_difference_from_the_text_class_is_refused():
    model = make_aya()
    model.config.text_config.logit_scale = 0.5  # of the text class made anew
    model.register_forward_hook(
        lambda module, args, out: setattr(out, "logits", out.logits.flip(-1))
    )
    with pytest.raises(CheckpointError, match=r"AyaVision.*\{'logit_scale': 0.5\}"):
        logit_factor(model)


# ------------------------------------------------------------------------------ what is refused


def test_a_processor_without_a_template_is_refused():
    processor = make_processor("llava")
    model = make_asked_vlm("llava", processor)
    processor.chat_template = None
    with pytest.raises(CheckpointError, match=r"LlavaProcessor of this llava has no chat template"):
        PlainVlm(model, processor)


def test_a_prompt_that_is_no_beginning_is_refused():
    """It ends in a space, which the whole reads as one token with the word that follows."""
    processor = make_processor("llava")
    model = make_asked_vlm("llava", processor)
    processor.chat_template = processor.chat_template.replace("'ASSISTANT:'", "'ASSISTANT: '")
    ok = "cannot be used to measure it: its prompt is no beginning of prompt and answer: at token"
    with pytest.raises(CheckpointError, match=ok):
        PlainVlm(model, processor)


def test_a_template_that_refuses_is_told():
    processor = make_processor("llava")
    model = make_asked_vlm("llava", processor)
    processor.chat_template = "{{ raise_exception('Only tools may speak') }}"
    with pytest.raises(CheckpointError, match="Only tools may speak"):
        PlainVlm(model, processor)


def test_a_row_that_cannot_be_shown_is_named():
    processor = make_processor("llava")
    plain = PlainVlm(make_asked_vlm("llava", processor), processor)
    with pytest.raises(DataError, match=r"drawn/a: .* 0 pictures are shown for 1 places"):
        plain.token_losses(ROWS[:1], [[]])
    with pytest.raises(DataError, match=r"drawn/a: .* 0 pictures are shown for 1 places"):
        plain.answers(ROWS[:1], [[]])
    odd = row("x", "Write <image> twice", "a key", Drawn(0))
    with pytest.raises(DataError, match="drawn/x: cannot be measured"):
        plain.token_losses([odd], [own_pictures(odd)])
    with pytest.raises(DataError, match="drawn/x: cannot be asked"):
        plain.answers([odd, ROWS[0]], [own_pictures(odd), own_pictures(ROWS[0])])


def test_a_processor_that_takes_no_batch_is_asked_row_by_row(caplog, monkeypatch):
    processor = make_processor("llava")
    model = make_asked_vlm("llava", processor)
    own = [own_pictures(row) for row in ROWS]
    wanted = PlainVlm(model, processor, max_new_tokens=6).answers(ROWS, own)
    call = type(processor).__call__

    def one(self: Any, *args: Any, text: Any, **kwargs: Any) -> Any:
        if len(text) > 1:
            raise ValueError("one at a time, please")
        return call(self, *args, text=text, **kwargs)

    monkeypatch.setattr(type(processor), "__call__", one)
    plain = PlainVlm(model, processor, max_new_tokens=6)
    with caplog.at_level("INFO"):
        assert plain.answers(ROWS, own) == wanted
    told = [r for r in caplog.records if "LlavaProcessor takes no batch" in r.getMessage()]
    assert len(told) == 1 and "one at a time, please" in told[0].getMessage()


def test_a_processor_that_needs_what_is_not_installed_is_told(tmp_path):
    from transformers.utils import is_torchvision_available

    if is_torchvision_available():
        pytest.skip("torchvision is installed")
    processor = make_processor("qwen2_5_vl")
    make_asked_vlm("qwen2_5_vl", processor).save_pretrained(tmp_path)
    processor.tokenizer.save_pretrained(tmp_path)
    processor.image_processor.save_pretrained(tmp_path)
    (tmp_path / "processor_config.json").write_text('{"processor_class": "Qwen2_5_VLProcessor"}')
    with pytest.raises(CheckpointError, match=r"(?s)cannot be loaded here.*torchvision"):
        PlainVlm.from_folder(str(tmp_path))
