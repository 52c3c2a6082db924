"""What asks for a caption where a row names no question: drawn from templates, by seed and row.

A draw is a function of what it is for, not of when or where it is made: any order of rows, any
number of processes and any epoch give a row the same words.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import TypeVar

from data.instructions import DESCRIBE

T = TypeVar("T")

# Two wordings beside those of DESCRIBE, which the shipped scenes draw from: to widen that table
# would change their rows, and with them the demo's numbers.
MORE_DESCRIBE: dict[str, tuple[str, str]] = {
    "ar": ("أخبرني بما تراه في هذه الصورة.", "اكتب وصفًا لهذه الصورة."),
    "cs": ("Řekni mi, co vidíš na tomto obrázku.", "Napiš popis tohoto obrázku."),
    "de": (
        "Sag mir, was auf diesem Bild zu sehen ist.",
        "Schreibe eine Beschreibung dieses Bildes.",
    ),
    "el": ("Πες μου τι βλέπεις σε αυτή την εικόνα.", "Γράψε μια περιγραφή αυτής της εικόνας."),
    "en": ("Tell me what you see in this picture.", "Write a description of this picture."),
    "es": ("Dime qué ves en esta imagen.", "Escribe una descripción de esta imagen."),
    "fa": ("بگو در این تصویر چه می‌بینی.", "توصیفی برای این تصویر بنویس."),
    "fr": ("Dis-moi ce que tu vois sur cette image.", "Écris une description de cette image."),
    "he": ("נא לספר מה רואים בתמונה הזאת.", "נא לכתוב תיאור של התמונה הזאת."),
    "hi": ("बताइए कि इस चित्र में क्या दिख रहा है।", "इस चित्र का विवरण लिखिए।"),
    "id": ("Sebutkan apa yang terlihat pada gambar ini.", "Tuliskan deskripsi gambar ini."),
    "it": ("Dimmi che cosa vedi in questa immagine.", "Scrivi una descrizione di questa immagine."),
    "ja": ("この画像に何が見えるか教えてください。", "この画像の説明を書いてください。"),
    "ko": ("이 그림에 무엇이 보이는지 말해 주세요.", "이 그림에 대한 설명을 써 주세요."),
    "nl": (
        "Vertel me wat je op deze afbeelding ziet.",
        "Schrijf een beschrijving van deze afbeelding.",
    ),
    "pl": ("Powiedz, co widzisz na tym obrazku.", "Napisz opis tego obrazka."),
    "pt": ("Diga o que você vê nesta imagem.", "Escreva uma descrição desta imagem."),
    "ro": ("Spune-mi ce vezi în această imagine.", "Scrie o descriere a acestei imagini."),
    "ru": ("Расскажи, что ты видишь на этой картинке.", "Напиши описание этой картинки."),
    "tr": ("Bu resimde ne gördüğünü söyle.", "Bu resim için bir açıklama yaz."),
    "uk": ("Розкажи, що ти бачиш на цьому зображенні.", "Напиши опис цього зображення."),
    "vi": (
        "Hãy cho biết bạn thấy gì trong bức tranh này.",
        "Hãy viết lời mô tả cho bức tranh này.",
    ),
    "zh": ("请告诉我你在这张图片里看到了什么。", "请为这张图片写一段描述。"),
}


def draw_prompt(
    language: str, prompts: Mapping[str, Sequence[str]], seed: int, source: str, row_id: str
) -> str:
    """Return what asks for the caption of a row.

    Args:
        language: of the row, one of LANGUAGES.
        prompts: language -> templates of the config; a language that is not there has ours.
        seed: of the run.
        source: name of the row's source.
        row_id: unique in its source.
    """
    templates = prompts.get(language) or (*DESCRIBE[language], *MORE_DESCRIBE[language])
    return draw(templates, "prompt", seed, source, row_id)


def draw(choices: Sequence[T], what: str, seed: int, source: str, row_id: str) -> T:
    """Return one of `choices`; draws for another `what` are independent of it."""
    told = json.dumps([what, seed, source, row_id]).encode("ascii")
    drawn = int.from_bytes(hashlib.blake2b(told, digest_size=8).digest(), "big")
    return choices[drawn % len(choices)]
