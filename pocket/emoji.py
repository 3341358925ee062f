"""Pictures and names of Microsoft's Fluent emoji: what the pocket model learns from.

`scripts/prepare_emoji.py` fetches the pictures (npm package @lobehub/fluent-emoji-3d), their names (emoji-datasource-
google) and keywords (emojilib), joins them with `matched`, and writes one archive with `save_emoji`; training and
evaluation read it with `load_emoji`, which refuses a damaged one. Start reading at `EmojiSet`.
"""

import dataclasses
import hashlib
import io
import json
import re
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from common.parameters import ParameterError
from common.run_folder import describe, replace_file

SIDE = 64  # pixels along a picture's side
ARCHIVE = Path(__file__).resolve().parents[1] / "dataset" / "emoji.npz"
KEYWORDS = 4  # kept of each emoji's list, which begins with the commonest
FORMAT = "dedgeai emoji 1"


@dataclasses.dataclass(frozen=True)
class EmojiSet:
    """Pictures [N, SIDE, SIDE, 4] as RGBA bytes; for each its name, other names that only it has, and keywords."""

    pictures: np.ndarray
    names: list[str]
    aliases: list[list[str]]
    keywords: list[list[str]]

    def __len__(self) -> int:
        return len(self.names)

    def digest(self) -> str:
        """SHA-256 over pictures and words."""
        words = json.dumps([self.names, self.aliases, self.keywords]).encode()
        return hashlib.sha256(self.pictures.tobytes() + words).hexdigest()


def plain(name: str) -> str:
    """A name in lower case with spaces for hyphens and underscores, as in 'thumbs up' for 'THUMBS-UP'."""
    return re.sub(r"[\s_-]+", " ", name.lower()).strip()


def picture(file: bytes) -> np.ndarray:
    """An image file as RGBA bytes [SIDE, SIDE, 4]; hidden colours do not bleed in, since they are weighed by alpha."""
    with Image.open(io.BytesIO(file)) as image:
        weighed = image.convert("RGBA").convert("RGBa")
        return np.array(weighed.resize((SIDE, SIDE), Image.Resampling.LANCZOS).convert("RGBA"))


def matched(assets: Mapping[str, bytes], entries: Iterable[dict[str, Any]], words: dict[str, list[str]]) -> EmojiSet:
    """The emoji that have both a picture and a name, flags left out, in the order of `entries`.

    `assets` maps code points, as in '1f680', to image files; `entries` are those of emoji.json; `words` maps an emoji
    to its keywords. The name is Unicode's, the aliases are the short names, unless another emoji has them already.
    """
    found = []
    for entry in entries:
        codes = (entry["unified"], entry["non_qualified"], entry["unified"].replace("-FE0F", ""))
        code = next((c.lower() for c in codes if c and c.lower() in assets), None)
        if code is not None and entry["category"] != "Flags":
            found.append((entry, code))
    names = [plain(entry["name"] or entry["short_name"]) for entry, _ in found]
    names = [n if names.count(n) == 1 else plain(e["short_name"]) for n, (e, _) in zip(names, found, strict=True)]
    taken, aliases = set(names), []
    for entry, _ in found:
        own = dict.fromkeys(plain(re.sub(r"(?<=[a-z])\d$", "", short)) for short in entry["short_names"])
        aliases.append([alias for alias in own if alias and alias not in taken])
        taken.update(aliases[-1])
    keywords = []
    for (entry, _), name in zip(found, names, strict=True):
        symbol = "".join(chr(int(part, 16)) for part in entry["unified"].split("-"))
        own = words.get(symbol) or words.get(symbol.replace("\ufe0f", "")) or []
        keywords.append([w for w in dict.fromkeys(map(plain, own)) if w != name and w.isascii()][:KEYWORDS])
    return EmojiSet(np.stack([picture(assets[code]) for _, code in found]), names, aliases, keywords)


def save_emoji(path: Path, emoji: EmojiSet) -> None:
    """Write the archive, from which `load_emoji` gives the same again. Raises OSError when it cannot be written."""
    words = json.dumps({"names": emoji.names, "aliases": emoji.aliases, "keywords": emoji.keywords})

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            np.savez_compressed(
                file, format=FORMAT, pictures=emoji.pictures, words=words, digest=emoji.digest(), allow_pickle=False
            )

    replace_file(path, write)


def load_emoji(path: Path = ARCHIVE) -> EmojiSet:
    """Read the archive. Raises ParameterError when it is missing, foreign, or not what its checksum says."""
    if not path.is_file():
        raise ParameterError("emoji", path, "missing; make it with python scripts/prepare_emoji.py")
    try:
        with np.load(path, allow_pickle=False) as content:
            if str(content["format"]) != FORMAT:
                raise ValueError("another format")
            words = json.loads(str(content["words"]))
            emoji = EmojiSet(content["pictures"], words["names"], words["aliases"], words["keywords"])
            expected = str(content["digest"])
    except (OSError, ValueError, LookupError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise ParameterError(
            "emoji", path, f"must be an archive made by prepare_emoji.py ({describe(error)})"
        ) from None
    if emoji.digest() != expected:
        raise ParameterError("emoji", path, f"must have the SHA-256 {expected[:12]}.., but is damaged; make it anew")
    return emoji
