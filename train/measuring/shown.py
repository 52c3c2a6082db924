"""Pictures of held-out rows in files, for reports and judges."""

import json
from collections.abc import Sequence
from pathlib import Path

from data.render import Sample

LOSSLESS_SIDE = 128  # pixels: a picture up to it is a PNG, a larger one a JPEG


def save_pictures(
    samples: Sequence[Sample], digests: Sequence[str], folder: Path, *, side: int
) -> dict[str, str]:
    """Save the first picture of each sample, equal ones once, and which row has which.

    Args:
        samples: with pictures.
        digests: equal where pictures are.
        folder: of pictures/ and of pictures.json, {row id: "1.png"}.
        side: pixels of the longer side, at most.

    Returns:
        what is in pictures.json.
    """
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    names: dict[str, str] = {}
    found: dict[str, str] = {}
    for sample, digest in zip(samples, digests, strict=True):
        if digest not in names:
            picture = sample.row.images[0].load()
            picture.thumbnail((side, side))
            ending = "png" if max(picture.size) <= LOSSLESS_SIDE else "jpg"
            names[digest] = f"{len(names) + 1}.{ending}"  # ids may hold a slash
            picture.save(folder / "pictures" / names[digest], quality=88)
        found[str(sample.row)] = names[digest]
    text = json.dumps(found, ensure_ascii=False, indent=1)
    (folder / "pictures.json").write_text(text, encoding="utf-8")
    return found
