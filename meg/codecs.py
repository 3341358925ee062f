"""Pictures as JPEG, WebP and AVIF files of every size and quality, and these as bits for a channel.

A picture becomes a message: with headers left out, the number of its setting, then what of the file the receiver cannot
build by itself; else the whole file. A 1 and zeros fill the rest of the block, so no length has to be told. An empty
message says that the mean image is best. Messages are read again, and rebuilt files are the written ones to the last
byte. Start reading at `Album`.
"""

import dataclasses
import functools
import io
import math
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image, features

from common.parameters import ParameterError

MODULES = {"jpeg": "jpg", "webp": "webp", "webp_lossless": "webp", "avif": "avif"}  # Pillow's names
SIDES = (64, 48, 32, 24, 16, 12, 8, 4)  # 64ths of the picture's sides
JPEG_QUALITIES = (2, 4, 6, 9, 13, 18, 25, 33, 42, 52, 62, 72, 80, 87, 93, 97)
WEBP_QUALITIES = (0, 5, 11, 20, 30, 42, 55, 68, 80, 88, 94, 99)
AVIF_QUALITIES = (10, 18, 26, 34, 42, 50, 58, 65, 72, 79, 85, 90, 93, 96, 98, 100)
PEAK_DB = 60.0  # PSNRs are cut there, as in metrics.py


@dataclasses.dataclass(frozen=True)
class Setting:
    """How a file is written: codec, sides in 64ths of the picture's, and Pillow's quality. WebP halves the colours."""

    codec: str
    side: int
    quality: int

    def shape(self, size: tuple[int, int]) -> tuple[int, int]:
        """Width and height in pixels of the file of a picture of that width and height."""
        return max(1, round(size[0] * self.side / 64)), max(1, round(size[1] * self.side / 64))


@functools.cache
def all_settings() -> tuple[Setting, ...]:
    """Every setting, in the order of its number in a message. JPEG is best for small files, AVIF for large ones."""
    found = [Setting("jpeg", s, q) for s in SIDES for q in JPEG_QUALITIES]
    found += [Setting("webp", s, q) for s in SIDES[:5] for q in WEBP_QUALITIES]
    found += [Setting("avif", s, q) for s in SIDES[:4] for q in AVIF_QUALITIES]
    found.append(Setting("webp_lossless", 64, 80))
    return tuple(found)


def check_codecs() -> None:
    """Raises ParameterError unless Pillow was built with every codec."""
    missing = sorted({name for name in MODULES.values() if not features.check(name)})
    if missing:
        raise ParameterError("schemes", "cg_digital", f"needs a Pillow with {', '.join(missing)}")


def write(picture: Image.Image, setting: Setting, smallest: bool) -> bytes:
    """The file of a picture; `smallest` gives JPEG Huffman tables of its own, which only whole files can have."""
    shape = setting.shape(picture.size)
    small = picture if shape == picture.size else picture.resize(shape, Image.Resampling.BICUBIC)
    file = io.BytesIO()
    if setting.codec == "jpeg":
        small.save(file, "JPEG", quality=setting.quality, subsampling="4:4:4", optimize=smallest)
    elif setting.codec == "avif":
        small.save(file, "AVIF", quality=setting.quality, subsampling="4:4:4", speed=6, max_threads=1)
    else:
        small.save(file, "WEBP", quality=setting.quality, lossless=setting.codec == "webp_lossless", method=4)
    return file.getvalue()


def read(file: bytes, size: tuple[int, int]) -> np.ndarray:
    """The picture [H, W, 3] in bytes of a file, brought to that width and height. Raises OSError for no picture."""
    with Image.open(io.BytesIO(file)) as image:
        whole = image.convert("RGB")
    return np.asarray(whole if whole.size == size else whole.resize(size, Image.Resampling.BICUBIC))


# --- headers ---


def leb128(number: int) -> bytes:
    """A length as AV1 writes it: seven bits a byte, the lowest first."""
    parts = []
    while True:
        number, low = number >> 7, number & 127
        parts.append(low | (128 if number else 0))
        if not number:
            return bytes(parts)


def frame_start(file: bytes) -> int:
    """Where the header of an AVIF file's frame stands: behind the temporal delimiter and the sequence header."""
    sequence = file.index(b"mdat") + 6
    return sequence + 2 + file[sequence + 1]  # it is shorter than 128 bytes


@functools.cache
def template(setting: Setting, size: tuple[int, int]) -> bytes:
    """The file of a grey picture: what stands before the coded pixels of every file of that setting and size."""
    return write(Image.new("RGB", size, (128, 128, 128)), setting, smallest=False)


def body(file: bytes, setting: Setting) -> bytes:
    """What of a file `joined` needs to build it again."""
    if setting.codec == "jpeg":  # between the header of the scan and the marker of the end
        scan = file.index(b"\xff\xda")
        return file[scan + 2 + int.from_bytes(file[scan + 2 : scan + 4]) : -2]
    if setting.codec == "avif":
        start = frame_start(file) + 1
        while file[start] & 128:
            start += 1
        return file[start + 1 :]
    length = int.from_bytes(file[16:20], "little")
    content = file[20 : 20 + length]
    return content[5:] if setting.codec == "webp_lossless" else content[:3] + content[10:]


def joined(content: bytes, setting: Setting, size: tuple[int, int]) -> bytes:
    """The file of that setting and picture size of which `body` is the content."""
    known = template(setting, size)
    if setting.codec == "jpeg":
        scan = known.index(b"\xff\xda")
        return known[: scan + 2 + int.from_bytes(known[scan + 2 : scan + 4])] + content + known[-2:]
    if setting.codec == "avif":
        place, start = known.index(b"mdat") - 4, frame_start(known)
        data = known[place + 8 : start + 1] + leb128(len(content)) + content
        head = bytearray(known[:place])
        extent = known.index(b"iloc") + 22  # of its only item
        head[extent : extent + 4] = len(data).to_bytes(4)
        return bytes(head) + (len(data) + 8).to_bytes(4) + b"mdat" + data
    same = known[20:25] if setting.codec == "webp_lossless" else known[23:30]
    lossy = setting.codec == "webp"
    content = content[:3] + same + content[3:] if lossy else same + content
    padded = content + b"\0" * (len(content) % 2)
    head = b"WEBP" + known[12:16] + len(content).to_bytes(4, "little") + padded
    return b"RIFF" + len(head).to_bytes(4, "little") + head


# --- messages ---


def to_bits(number: int, count: int) -> np.ndarray:
    """A number as `count` bits, the highest first."""
    return np.array([number >> place & 1 for place in reversed(range(count))], np.uint8)


def message(label: np.ndarray, content: bytes, bits: int) -> np.ndarray | None:
    """A block of so many bits: a label, whole bytes, a 1 and zeros. None where it does not hold them."""
    spare = bits - len(label) - 8 * len(content) - 1
    if spare < 0:
        return None
    data = np.unpackbits(np.frombuffer(content, np.uint8))
    return np.concatenate([label, data, np.ones(1, np.uint8), np.zeros(spare, np.uint8)])


def parsed(block: np.ndarray, label: int) -> tuple[np.ndarray, bytes]:
    """Label and bytes of a block; the label has so many bits."""
    end = len(block) - 1 - int(np.argmax(block[::-1]))
    return block[:label], np.packbits(block[label:end]).tobytes()


@dataclasses.dataclass(frozen=True)
class Entry:
    """A file of a picture: its setting's number, the bytes to send, the bits that they take, and the PSNR in dB."""

    number: int
    content: bytes
    bits: int
    psnr_db: float


class Album:
    """The files of pictures, each coded once: whole, and without the headers that the receiver knows."""

    def __init__(self, size: tuple[int, int]) -> None:
        """Files of pictures of that width and height. Raises ParameterError when Pillow lacks a codec."""
        check_codecs()
        self.size = size
        self.known: dict[bytes, tuple[list[Entry], list[Entry]]] = {}
        self.coding = threading.Lock()  # what one thread codes, others need not

    def label(self, whole_files: bool) -> int:
        """The bits that say a setting: none beside whole files."""
        return 0 if whole_files else math.ceil(math.log2(len(all_settings())))

    def entries(self, picture: np.ndarray, whole_files: bool) -> list[Entry]:
        """The files of a picture [H, W, 3] in bytes that are worth sending: each larger than the last, and better."""
        key = picture.tobytes()
        if key not in self.known:
            self.known[key] = self.coded(picture)
        return self.known[key][whole_files]

    def coded(self, picture: np.ndarray) -> tuple[list[Entry], list[Entry]]:
        """What `entries` gives of a picture, without headers and whole."""
        image, shorter, whole = Image.fromarray(picture), [], []
        for number, setting in enumerate(all_settings()):
            file = write(image, setting, smallest=False)
            psnr = psnr_db(read(file, self.size), picture)
            alone = write(image, setting, smallest=True) if setting.codec == "jpeg" else file
            content = body(file, setting)
            shorter.append(Entry(number, content, self.label(False) + 8 * len(content) + 1, psnr))
            whole.append(Entry(number, alone, self.label(True) + 8 * len(alone) + 1, psnr))
        return worth_sending(shorter), worth_sending(whole)

    def prepare(self, pictures: Sequence[np.ndarray], threads: int) -> None:
        """Code pictures [H, W, 3] in as many threads; Pillow's codecs run beside each other."""
        with self.coding, ThreadPoolExecutor(threads) as pool:
            new = [p for p in pictures if p.tobytes() not in self.known]
            for picture, entries in zip(new, pool.map(self.coded, new), strict=True):
                self.known[picture.tobytes()] = entries

    def block(self, entry: Entry | None, bits: int, whole_files: bool) -> np.ndarray | None:
        """The message of so many bits that holds a file, or no file; None where it does not fit."""
        entry = entry or Entry(0, b"", 0, 0.0)
        return message(to_bits(entry.number, self.label(whole_files)), entry.content, bits)

    def picture(self, block: np.ndarray, whole_files: bool) -> np.ndarray | None:
        """The picture [H, W, 3] in bytes of a message; None where it holds no file."""
        label, content = parsed(block, self.label(whole_files))
        if not content:
            return None
        if whole_files:
            return read(content, self.size)
        setting = all_settings()[int("".join(map(str, label)), 2)]
        return read(joined(content, setting, self.size), self.size)


def worth_sending(entries: Sequence[Entry]) -> list[Entry]:
    """The entries that no other one of at most their bits is as good as, the smallest first."""
    best: list[Entry] = []
    for entry in sorted(entries, key=lambda e: (e.bits, -e.psnr_db)):
        if not best or entry.psnr_db > best[-1].psnr_db:
            best.append(entry)
    return best


def psnr_db(one: np.ndarray, other: np.ndarray) -> float:
    """The PSNR in dB of pictures in bytes, at most PEAK_DB."""
    error = float(np.square(one.astype(float) - other.astype(float)).mean())
    return PEAK_DB if error == 0 else min(PEAK_DB, 10 * math.log10(255**2 / error))


def best_under(entries: Sequence[Entry], bits: int) -> Entry | None:
    """The best of a picture's entries that fits into so many bits."""
    fitting = [entry for entry in entries if entry.bits <= bits]
    return fitting[-1] if fitting else None
