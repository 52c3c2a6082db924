"""What the user of the demo asks, in each of the 23 languages.

The material (a picture, or words to translate) comes first in a user turn and the instruction
follows it, so that a picture takes the place that words had while the text LM was trained.
Portuguese is Brazilian and Chinese is simplified, as in the captions (CLDR).
"""

# Three wordings each; all ask for the same thing.
DESCRIBE: dict[str, tuple[str, str, str]] = {
    "ar": ("صف الصورة.", "ماذا ترى في الصورة؟", "ماذا يوجد في هذه الصورة؟"),
    "cs": ("Popiš obrázek.", "Co vidíš na obrázku?", "Co je na tomto obrázku?"),
    "de": ("Beschreibe das Bild.", "Was siehst du auf dem Bild?", "Was zeigt dieses Bild?"),
    "el": ("Περίγραψε την εικόνα.", "Τι βλέπεις στην εικόνα;", "Τι δείχνει αυτή η εικόνα;"),
    "en": ("Describe the picture.", "What do you see in the picture?", "What is in this picture?"),
    "es": ("Describe la imagen.", "¿Qué ves en la imagen?", "¿Qué hay en esta imagen?"),
    "fa": ("تصویر را توصیف کن.", "در تصویر چه می‌بینی؟", "در این تصویر چه چیزی هست؟"),
    "fr": (
        "Décris l’image.",
        "Que vois-tu sur l’image\u202f?",
        "Qu’y a-t-il sur cette image\u202f?",
    ),
    "he": ("נא לתאר את התמונה.", "מה רואים בתמונה?", "מה יש בתמונה הזאת?"),
    "hi": ("चित्र का वर्णन कीजिए।", "चित्र में क्या दिख रहा है?", "इस चित्र में क्या है?"),
    "id": (
        "Deskripsikan gambar ini.",
        "Apa yang terlihat pada gambar ini?",
        "Apa isi gambar ini?",
    ),
    "it": (
        "Descrivi l’immagine.",
        "Che cosa vedi nell’immagine?",
        "Che cosa c’è in questa immagine?",
    ),
    "ja": ("画像を説明してください。", "画像に何が見えますか？", "この画像には何がありますか？"),
    "ko": ("그림을 설명해 주세요.", "그림에 무엇이 보이나요?", "이 그림에는 무엇이 있나요?"),
    "nl": (
        "Beschrijf de afbeelding.",
        "Wat zie je op de afbeelding?",
        "Wat staat er op deze afbeelding?",
    ),
    "pl": ("Opisz obrazek.", "Co widzisz na obrazku?", "Co jest na tym obrazku?"),
    "pt": ("Descreva a imagem.", "O que você vê na imagem?", "O que há nesta imagem?"),
    "ro": ("Descrie imaginea.", "Ce vezi în imagine?", "Ce apare în această imagine?"),
    "ru": ("Опиши картинку.", "Что ты видишь на картинке?", "Что изображено на этой картинке?"),
    "tr": ("Resmi tarif et.", "Resimde ne görüyorsun?", "Bu resimde neler var?"),
    "uk": ("Опиши зображення.", "Що ти бачиш на зображенні?", "Що є на цьому зображенні?"),
    "vi": ("Hãy mô tả bức tranh.", "Bạn thấy gì trong bức tranh?", "Bức tranh này có gì?"),
    "zh": ("请描述这张图片。", "你在图片里看到了什么？", "这张图片里有什么？"),
}

# `{number}` is replaced by ASCII digits.
WRITE_NUMBER: dict[str, str] = {
    "ar": "اكتب العدد {number} بالحروف.",
    "cs": "Napiš číslo {number} slovy.",
    "de": "Schreibe {number} in Worten.",
    "el": "Γράψε τον αριθμό {number} ολογράφως.",
    "en": "Write {number} in words.",
    "es": "Escribe el número {number} con letras.",
    "fa": "عدد {number} را به حروف بنویس.",
    "fr": "Écris le nombre {number} en toutes lettres.",
    "he": "נא לכתוב את המספר {number} במילים.",
    "hi": "संख्या {number} को शब्दों में लिखिए।",
    "id": "Tuliskan angka {number} dengan huruf.",
    "it": "Scrivi il numero {number} in lettere.",
    "ja": "{number}を漢数字で書いてください。",
    "ko": "다음 숫자를 한글로 써 주세요: {number}",
    "nl": "Schrijf het getal {number} voluit.",
    "pl": "Napisz słownie liczbę {number}.",
    "pt": "Escreva o número {number} por extenso.",
    "ro": "Scrie numărul {number} în litere.",
    "ru": "Напиши число {number} прописью.",
    "tr": "{number} sayısını yazıyla yaz.",
    "uk": "Напиши число {number} словами.",
    "vi": "Hãy viết số {number} bằng chữ.",
    "zh": "请用汉字写出数字{number}。",
}

# Stands on a line of its own after the words to translate; names the target language only.
TRANSLATE: dict[str, str] = {
    "ar": "ترجم إلى العربية.",
    "cs": "Přelož do češtiny.",
    "de": "Übersetze ins Deutsche.",
    "el": "Μετάφρασε στα ελληνικά.",
    "en": "Translate into English.",
    "es": "Traduce al español.",
    "fa": "به فارسی ترجمه کن.",
    "fr": "Traduis en français.",
    "he": "נא לתרגם לעברית.",
    "hi": "हिंदी में अनुवाद कीजिए।",
    "id": "Terjemahkan ke bahasa Indonesia.",
    "it": "Traduci in italiano.",
    "ja": "日本語に訳してください。",
    "ko": "한국어로 번역해 주세요.",
    "nl": "Vertaal naar het Nederlands.",
    "pl": "Przetłumacz na polski.",
    "pt": "Traduza para o português.",
    "ro": "Tradu în română.",
    "ru": "Переведи на русский.",
    "tr": "Türkçeye çevir.",
    "uk": "Переклади українською.",
    "vi": "Hãy dịch sang tiếng Việt.",
    "zh": "请翻译成中文。",
}

# Between the names of a list.
LIST_SEPARATOR: dict[str, str] = {
    language: {"ar": "، ", "fa": "، ", "ja": "、", "zh": "、"}.get(language, ", ")
    for language in DESCRIBE
}
