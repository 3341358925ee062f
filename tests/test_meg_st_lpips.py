"""ST-LPIPS: the network against a plain version, its weights' file, and what is refused.

The stand-in has the names and shapes of the real weights' file; one test reads the real one where the package is.
"""

import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import refusal

from common.parameters import ParameterError
from meg import st_lpips, test_MEG
from meg.metrics import Judge
from meg.st_lpips import PACKAGE, SHAPES, SMALLEST, WEIGHTS, Against, installed, load_st_lpips, open_st_lpips


@pytest.fixture(scope="module")
def tensors() -> dict[str, torch.Tensor]:
    """Random weights of the real ones' names and shapes, with features that are neither all zero nor all alike."""
    draw = torch.Generator().manual_seed(0)
    made = {name: torch.randn(shape, generator=draw) for name, shape in SHAPES.items()}
    for name, tensor in made.items():
        if name.endswith("weight") and name.startswith("net"):
            tensor /= tensor[0].numel() ** 0.5
        elif name.endswith("filt") or name.startswith("lin"):
            tensor.abs_()
    made["scaling_layer.scale"] = torch.tensor([0.458, 0.448, 0.45]).reshape(1, 3, 1, 1)
    return made


@pytest.fixture(scope="module")
def file(tensors, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "alex.pth"
    torch.save(tensors, path)
    return path


def images(count: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(seed))


def correlated(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """x [C, H, W] under kernels [D, C, k, k] at all places where they fit."""
    windows = np.lib.stride_tricks.sliding_window_view(x, weight.shape[2:], axis=(1, 2))
    return np.tensordot(weight, windows, ((1, 2, 3), (0, 3, 4))) + bias[:, None, None]


def plain_distance(tensors: dict[str, torch.Tensor], a: torch.Tensor, b: torch.Tensor) -> float:
    """The distance of two images [3, H, W] in 0..1, in NumPy and float64."""
    t = {name: tensor.double().numpy() for name, tensor in tensors.items()}

    def blurred(x: np.ndarray, kernels: np.ndarray) -> np.ndarray:
        x = np.pad(x, ((0, 0), (2, 2), (2, 2)), mode="reflect")
        return np.stack(
            [correlated(c[None], k[None], np.zeros(1))[0, ::2, ::2] for c, k in zip(x, kernels, strict=True)]
        )

    def highest(x: np.ndarray) -> np.ndarray:
        return np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(1, 2)).max((3, 4))

    def layers(image: torch.Tensor) -> list[np.ndarray]:
        x = image.double().numpy() * 2 - 1
        x = (x - t["scaling_layer.shift"][0]) / t["scaling_layer.scale"][0]
        found = []
        for name, pad, blur in (
            ("1.0", 2, "1.1"),
            ("2.5", 2, "2.4"),
            ("3.9", 1, "3.8"),
            ("4.11", 1, ""),
            ("5.13", 1, ""),
        ):
            weights = [t[f"net.slice{name}.{kind}"] for kind in ("weight", "bias")]
            if blur and found:
                x = blurred(highest(x), t[f"net.slice{blur}.filt"])
            x = correlated(np.pad(x, ((0, 0), (pad, pad), (pad, pad))), *weights)
            if not found:
                x = blurred(x, t["net.slice1.1.filt"])
            x = np.maximum(x, 0)
            found.append(x)
        return [x / (np.sqrt((x**2).sum(0)) + 1e-10) for x in found]

    pairs = enumerate(zip(layers(a), layers(b), strict=True))
    return sum((t[f"lin{i}.model.1.weight"][0, :, 0, 0] @ ((x - y) ** 2).mean((1, 2))) for i, (x, y) in pairs)


@pytest.mark.parametrize("size", [(SMALLEST, SMALLEST), (40, 33)])
def test_distance_is_that_of_a_plain_version(tensors, file, size):
    network, a, b = load_st_lpips(file), images(2, *size), images(2, *size, seed=1)
    found = network(a, b)
    assert found.tolist() == pytest.approx([plain_distance(tensors, x, y) for x, y in zip(a, b, strict=True)], rel=1e-4)
    assert network(a, a).tolist() == [0, 0] and torch.equal(found, network(b, a))


def test_parts_and_features_that_are_not_kept_change_nothing(file, monkeypatch):
    network, a, b = load_st_lpips(file), images(5, 24, 24), images(5, 24, 24, seed=1)
    whole = Against(network, b)(a)
    monkeypatch.setattr(st_lpips, "PART", 2 * 24 * 24)
    monkeypatch.setattr(st_lpips, "KEPT", 0)
    parts = Against(network, b)
    assert parts.known is None and len(parts.clean) == 3
    assert parts(a).tolist() == pytest.approx(whole.tolist(), rel=1e-4)


def test_a_wheel_is_read_without_being_installed(file, tmp_path):
    wheel = tmp_path / "stlpips_pytorch-0.0.2-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(file, f"{PACKAGE}/{WEIGHTS}")
    a, b = images(1, 24, 24), images(1, 24, 24, seed=1)
    assert torch.equal(load_st_lpips(wheel)(a, b), load_st_lpips(file)(a, b))


class Evil:
    """What a foreign pickle may do when it is read."""

    def __reduce__(self):
        return Path.touch, (Path("touched"),)


def test_files_that_are_no_such_weights_are_refused_in_one_line(tensors, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "alex.pth"
    path.write_bytes(pickle.dumps(Evil()))
    short = {name: tensor for name, tensor in tensors.items() if name != "lin4.model.1.weight"}
    wide = tensors | {"net.slice5.13.bias": torch.zeros(257)}
    endless = tensors | {"net.slice5.13.bias": torch.full((256,), torch.inf)}
    contents = [None, b"", b"damaged", Evil(), [1], {"a": 1}, short, wide, endless, tensors | {"other": torch.zeros(1)}]
    reasons = {6: "lin4.model.1.weight", 7: "net.slice5.13.bias", 8: "finite", 9: "other"}
    for number, content in enumerate(contents):
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif content is not None:  # first the plain pickle
            torch.save(content, path)
        with pytest.raises(ParameterError) as refused:
            load_st_lpips(path)
        words = str(refused.value)
        assert words.startswith(f"--st_lpips={path}: must be {WEIGHTS}") and "\n" not in words
        assert reasons.get(number, "") in words
    assert not (tmp_path / "touched").exists()
    path.rename(tmp_path / "a.whl")
    for place in ("a.whl", ".", "nowhere.pth"):
        with pytest.raises(ParameterError, match="must be weights/"):
            load_st_lpips(Path(place))


def test_the_choice_is_told(file, monkeypatch, tmp_path, capsys):
    assert open_st_lpips("off") == (None, "ST-LPIPS is off")
    monkeypatch.setattr(st_lpips, "installed", lambda: None)
    assert "left out: it needs the weights of the package stlpips-pytorch" in open_st_lpips("auto")[1]
    monkeypatch.setattr(st_lpips, "installed", lambda: file)
    network, _ = open_st_lpips("auto")
    assert network is not None
    monkeypatch.setattr(st_lpips, "installed", lambda: tmp_path)
    assert "ST-LPIPS is left out" in open_st_lpips("auto")[1]
    assert "--st_lpips=nowhere" in refusal(capsys, test_MEG, "--st_lpips", "nowhere", "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()

    def features(x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3))

    judge = Judge(images(3, 32, 32), features, 0, 0)
    assert "with ST-LPIPS" in judge.add_st_lpips(network)
    found = judge(images(3, 32, 32, seed=1))
    assert list(found) == ["psnr_db", "ssim", "st_lpips", "frechet_pocket"]
    assert found["st_lpips"].low < found["st_lpips"].value < found["st_lpips"].high
    assert judge(judge.clean)["st_lpips"].value == 0
    judge = Judge(images(3, 16, 16), features, 0, 0)
    assert "at least 24 pixels" in judge.add_st_lpips(network) and "st_lpips" not in judge(images(3, 16, 16))


@pytest.mark.skipif(installed() is None, reason="the package stlpips-pytorch is not installed")
def test_real_weights_give_the_packages_own_distances():
    """The numbers are what the package's own code gives."""
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    a = torch.stack([x / 63, y / 63, ((x - 32) ** 2 + (y - 32) ** 2 < 400).float()])[None]
    b = (a + 0.1 * torch.sin(x * y / 40)).clamp(0, 1)
    network = load_st_lpips(installed())
    found = float(network(a, b)), float(network(a.roll(1, 3), a))
    assert found == pytest.approx((0.23529527, 0.00558569), rel=1e-4)
