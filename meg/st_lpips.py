"""ST-LPIPS: a perceptual distance that needs no download, with a network that a shift of a pixel hardly moves.

Shift-tolerant LPIPS (arXiv 2207.13686) compares the features of an AlexNet that is blurred before every stride. Its
weights come with the pip package stlpips-pytorch (BSD-2), of which only that one file is read: the package's own code
is never imported. The distance is not LPIPS, and the two are not comparable. Start reading at
`open_st_lpips`.
"""

import io
import warnings
import zipfile
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from common.parameters import ParameterError
from common.run_folder import describe

PACKAGE = "stlpips_pytorch"
WEIGHTS = "weights/vST0.0/alex_shift_tolerant.pth"  # in the package
SMALLEST = 24  # pixels along a side; below it nothing is left to blur
PART = 2**17  # pixels that go through the network together
KEPT = 2**20  # pixels of clean images up to which their features are kept

# Convolutions: name in the file, inputs, outputs, side of the kernel, padding. Blurs: name and channels.
CONVOLUTIONS = (
    ("net.slice1.0", 3, 64, 11, 2),
    ("net.slice2.5", 64, 192, 5, 2),
    ("net.slice3.9", 192, 384, 3, 1),
    ("net.slice4.11", 384, 256, 3, 1),
    ("net.slice5.13", 256, 256, 3, 1),
)
BLURS = (("net.slice1.1.filt", 64), ("net.slice2.4.filt", 64), ("net.slice3.8.filt", 192))
SHAPES = {  # of every tensor of the file
    "scaling_layer.shift": (1, 3, 1, 1),
    "scaling_layer.scale": (1, 3, 1, 1),
    **{f"{name}.weight": (outputs, inputs, side, side) for name, inputs, outputs, side, _ in CONVOLUTIONS},
    **{f"{name}.bias": (outputs,) for name, _, outputs, _, _ in CONVOLUTIONS},
    **{name: (channels, 1, 3, 3) for name, channels in BLURS},
    **{f"lin{i}.model.1.weight": (1, layer[2], 1, 1) for i, layer in enumerate(CONVOLUTIONS)},
}


class STLPIPS(nn.Module):
    """The distance of images [N, 3, H, W] in 0..1 from others, [N]; 0 for the same ones.

    `tensors` are those of the weights' file, by its names.
    """

    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        super().__init__()
        for name, tensor in tensors.items():
            self.register_buffer(name.replace(".", "_"), tensor.float())

    def tensor(self, name: str) -> torch.Tensor:
        """A tensor by its name in the file."""
        return self.get_buffer(name.replace(".", "_"))

    def blurred(self, x: torch.Tensor, number: int) -> torch.Tensor:
        """x [B, C, H, W] blurred and halved, mirrored by 2 pixels at its edges."""
        name, channels = BLURS[number]
        return functional.conv2d(
            functional.pad(x, (2, 2, 2, 2), mode="reflect"), self.tensor(name), stride=2, groups=channels
        )

    def convolved(self, x: torch.Tensor, number: int) -> torch.Tensor:
        """x [B, C, H, W] behind that convolution."""
        name, *_, padding = CONVOLUTIONS[number]
        return functional.conv2d(x, self.tensor(f"{name}.weight"), self.tensor(f"{name}.bias"), padding=padding)

    @torch.inference_mode()
    def features(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Features of images [B, 3, H, W] in 0..1 behind each of the five layers, of length 1 along the channels."""
        x = (images * 2 - 1 - self.tensor("scaling_layer.shift")) / self.tensor("scaling_layer.scale")
        x = self.blurred(self.convolved(x, 0), 0).relu()
        found = [x]
        for number in range(1, len(CONVOLUTIONS)):
            if number < len(BLURS):
                x = self.blurred(functional.max_pool2d(x, 3, 1), number)
            x = self.convolved(x, number).relu()
            found.append(x)
        return [x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10) for x in found]

    @torch.inference_mode()
    def distance(self, a: list[torch.Tensor], b: list[torch.Tensor]) -> torch.Tensor:
        """The distances [B] of features from features."""
        layers = [
            functional.conv2d((x - y).square(), self.tensor(f"lin{i}.model.1.weight")).mean((1, 2, 3))
            for i, (x, y) in enumerate(zip(a, b, strict=True))
        ]
        return torch.stack(layers).sum(0)

    def forward(self, images: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
        """Distances [N] of images [N, 3, H, W] in 0..1 from others of the same shape."""
        return Against(self, others)(images)


class Against:
    """Distances from clean images [N, 3, H, W] in 0..1, whose features are kept where they are not many.

    Images have at least SMALLEST pixels along a side.
    """

    def __init__(self, network: STLPIPS, clean: torch.Tensor) -> None:
        self.network, self.size = network, max(1, PART // (clean.shape[2] * clean.shape[3]))
        self.clean = clean.split(self.size)
        few = clean.shape[0] * clean.shape[2] * clean.shape[3] <= KEPT
        self.known = [network.features(part) for part in self.clean] if few else None

    def __call__(self, received: torch.Tensor) -> torch.Tensor:
        """Distances [N] of received images [N, 3, H, W] in 0..1, which are in the order of the clean ones."""
        found = []
        for number, (part, clean) in enumerate(zip(received.split(self.size), self.clean, strict=True)):
            known = self.known[number] if self.known else self.network.features(clean)
            found.append(self.network.distance(self.network.features(part), known))
        return torch.cat(found)


def installed() -> Path | None:
    """The weights of the installed package, which is found without being imported; None where there is none."""
    spec = find_spec(PACKAGE)
    folders = list(spec.submodule_search_locations or []) if spec else []
    return next((path for folder in folders if (path := Path(folder) / WEIGHTS).is_file()), None)


def content(path: Path) -> bytes:
    """The bytes of the weights: the file's, or from the package's wheel. Raises OSError, KeyError or BadZipFile."""
    if path.suffix == ".whl":
        with zipfile.ZipFile(path) as archive:
            return archive.read(f"{PACKAGE}/{WEIGHTS}")
    return path.read_bytes()


def open_st_lpips(choice: str) -> tuple[STLPIPS | None, str]:
    """The network, or None and a line that says why there is none.

    `choice` is auto: by the installed package, if there is one; off; or a path of its weights or wheel. Raises
    ParameterError for a path that holds no such weights.
    """
    if choice == "off":
        return None, "ST-LPIPS is off"
    if choice != "auto":
        return load_st_lpips(Path(choice)), ""
    path = installed()
    if path is None:
        return None, "ST-LPIPS is left out: it needs the weights of the package stlpips-pytorch"
    try:
        return load_st_lpips(path), ""
    except ParameterError as error:
        return None, f"ST-LPIPS is left out: {path} {error.reason}"


def load_st_lpips(path: Path, flag: str = "st_lpips") -> STLPIPS:
    """The network with the weights of a file, which may be the package's wheel.

    Only tensors are read (weights_only), and only those of the right names and shapes. Raises ParameterError of the
    flag.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tensors = torch.load(io.BytesIO(content(path)), map_location="cpu", weights_only=True)
        found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        if odd := sorted(n for n in SHAPES.keys() | found.keys() if SHAPES.get(n) != found.get(n)):
            raise ValueError(f"{len(odd)} tensors are missing or of another shape, such as {odd[0]}")
        if not all(bool(tensor.isfinite().all()) for tensor in tensors.values()):
            raise ValueError("not all of its numbers are finite")
    except Exception as error:  # torch raises many kinds for files that are none of its own
        reason = getattr(error, "strerror", None) or describe(error)
        words = f"must be {WEIGHTS} of the package stlpips-pytorch, or its wheel ({reason})"
        raise ParameterError(flag, path, words) from None
    return STLPIPS(tensors).eval()
