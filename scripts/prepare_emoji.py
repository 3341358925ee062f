"""Fetch Microsoft's Fluent emoji with their names and write the archive that the pocket model is trained on.

Downloads three npm packages, about 90 MB, and checks them: the pictures (@lobehub/fluent-emoji-3d), the names
(emoji-datasource-google) and keywords (emojilib). All three, and the pictures by Microsoft, are under the MIT licence.
Example:
python scripts/prepare_emoji.py
"""

import common.quiet_start  # noqa: F401

import base64
import dataclasses
import hashlib
import io
import json
import tarfile
from pathlib import Path
from typing import Any

from common.command_line import command_line
from common.fetching import fetched
from common.parameters import ParameterError, Parameters, parameter
from common.progress import Progress
from common.run_folder import made, replace_file
from pocket.emoji import ARCHIVE, matched, save_emoji

REGISTRY = "https://registry.npmjs.org"
PACKAGES = {  # the tarball's path in the registry, and its SHA-512 as the registry gives it
    "pictures": (
        "@lobehub/fluent-emoji-3d/-/fluent-emoji-3d-1.1.0.tgz",
        "Wlq2lVStTnr8BDpIJ0pEnTKO4LuDxxqTEhTvRtD1DLRF0me7ogeRQjKoehDHXuVJ2Qaecgl5wRBv60lUAG3h7g==",
    ),
    "names": (
        "emoji-datasource-google/-/emoji-datasource-google-16.0.0.tgz",
        "ZRexfzs7MVoLnmzZmNsO4TKhnAJp5D++Vm6PpUpH/jEQQlemp3l88CjZ+DoZ2faM9R4QxZkOPJCoT8DlPhfQ3A==",
    ),
    "keywords": (
        "emojilib/-/emojilib-4.0.3.tgz",
        "KbWiYre9aRSaPbHrHZIz9zmoM+21LAsK1VFJtnTh1VCtWE/rNMDviGhQTmselFl95dhqtGlY22iH0leG5BuW0g==",
    ),
}


@dataclasses.dataclass(kw_only=True)
class PrepareConfig(Parameters):
    """Every parameter of prepare_emoji.py."""

    registry: str = parameter(REGISTRY, "address of the npm registry, or of a mirror")
    downloads: str = parameter(
        str(ARCHIVE.parent / ".downloads"), "folder that keeps the downloaded packages", path=True
    )
    out: str = parameter(str(ARCHIVE), "file of the archive; one that is there is replaced", path=True)


def checksum(content: bytes) -> str:
    """The SHA-512 in base64, as the registry gives it."""
    return base64.b64encode(hashlib.sha512(content).digest()).decode()


def fetch(kind: str, registry: str, folder: Path) -> bytes:
    """A package's tarball, from the folder or else from the registry. Raises ParameterError when it is another one."""
    path, expected = PACKAGES[kind]
    kept = folder / path.rpartition("/")[2]
    if kept.is_file() and checksum(content := kept.read_bytes()) == expected:
        return content
    content = fetched(f"{registry.rstrip('/')}/{path}", kept.name, "registry", registry)
    if checksum(content) != expected:
        raise ParameterError("registry", registry, f"{kept.name} must have the SHA-512 {expected[:12]}.., but has not")
    replace_file(kept, lambda temporary: temporary.write_bytes(content))
    return content


def members(tarball: bytes, ending: str) -> dict[str, bytes]:
    """The files of a tarball whose names end so, by the names' last part."""
    with tarfile.open(fileobj=io.BytesIO(tarball), mode="r:gz") as archive:
        wanted = [m for m in archive if m.isfile() and m.name.endswith(ending)]
        return {m.name.rpartition("/")[2]: archive.extractfile(m).read() for m in wanted}


def main(config: PrepareConfig, given: dict[str, Any]) -> None:
    """Fetch the three packages and write the archive. Raises ParameterError."""
    folder, out = made(Path(config.downloads)), Path(config.out)
    made(out.parent)
    tarballs = {kind: fetch(kind, config.registry, folder) for kind in PACKAGES}
    assets = {name.removesuffix(".webp"): file for name, file in members(tarballs["pictures"], ".webp").items()}
    entries = json.loads(members(tarballs["names"], "package/emoji.json")["emoji.json"])
    words = json.loads(next(iter(members(tarballs["keywords"], "emoji-en-US.json").values())))
    emoji = matched(assets, Progress(entries, unit="emoji", desc="matching"), words)
    save_emoji(out, emoji)
    print(f"{len(emoji)} emoji in {out}, {out.stat().st_size / 1e6:.1f} MB, SHA-256 of the content {emoji.digest()}")


if __name__ == "__main__":
    command_line(PrepareConfig, main, __doc__)
