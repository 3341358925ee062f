"""A linear transform of latents: components that are uncorrelated, and whose errors count as pixels see them.

Errors of a latent's values do not show alike in the image. With J the decoder's Jacobian, a small error e of a latent
has the square error e' E[J'J] e in the image, so A = (E[J'J] + some of I)^1/2 weighs latents as pixels do. The
Karhunen-Loeve transform (KLT) of A (x - mean) has independent directions, the strongest first. A scale of its own for
every image makes the components nearly normal. Start reading at `fit_transform`, then `Transform`.
"""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from common.parameters import ParameterError
from common.progress import Progress
from common.run_folder import describe, replace_file

TRANSFORM = "transform.safetensors"  # in the folder of trained models
KRONECKER = 0.02  # share of the covariance that is a product of one of channels and one of places
IDENTITY = 0.1  # share of the pixel weights that is alike for all values
POWER = 0.5  # of the variance by which components count in their scale
WRONG = 0.01  # of a latent's value, that there and back may leave
WIDEST = 35.0  # logarithm of a variance, and of a scale; beyond, squares leave float32
FOLDS = 8  # parts of the data by which variances are measured on latents that no direction was fitted to


@dataclasses.dataclass(frozen=True, eq=False)
class Transform:
    """Components y = analysis (x - mean), strongest first, for latents of one shape; all in float32.

    `variances` [D] are those of components divided by their image's scale s, which has a mean square of 1.
    log s is about normal.
    """

    mean: torch.Tensor  # [C, h, w]
    analysis: torch.Tensor  # [D, D]
    synthesis: torch.Tensor  # [D, D], its inverse
    variances: torch.Tensor  # [D]
    log_scale: tuple[float, float]  # mean and standard deviation

    def components(self, latents: torch.Tensor) -> torch.Tensor:
        """Components [B, D] of latents [B, C, h, w]."""
        return (latents - self.mean).flatten(1) @ self.analysis.T

    def latents(self, components: torch.Tensor) -> torch.Tensor:
        """Latents [B, C, h, w] of components [B, D]."""
        return (components @ self.synthesis.T).unflatten(1, self.mean.shape) + self.mean

    @functools.cached_property
    def reach(self) -> torch.Tensor:
        """What each component's square error [D] adds to the mean square error of a latent's values."""
        return self.synthesis.square().mean(0)

    def snr_db(self, errors: torch.Tensor) -> torch.Tensor:
        """SNRs [B] in dB of white noise that leaves as much error of a latent as square errors [B, D] of components."""
        return 10 * torch.log10(1 / (errors @ self.reach.to(errors)).clamp(1e-6, 1 - 1e-3) - 1)

    def check(self) -> None:
        """Raises ValueError for tensors that make no transform."""
        size = self.mean.numel()
        if self.mean.ndim != 3 or self.analysis.shape != (size, size) or self.variances.shape != (size,):
            raise ValueError("shapes that do not fit")
        tensors = (self.mean, self.analysis, self.synthesis, self.variances, torch.tensor(self.log_scale))
        if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors):
            raise ValueError("numbers that are not finite")
        sizes = torch.cat([self.variances, torch.tensor(self.log_scale[1:])])
        if not bool((sizes > 0).all()):
            raise ValueError("variances or deviations that are not above 0")
        if bool((sizes.log().abs() > WIDEST).any()) or max(map(abs, self.log_scale)) > WIDEST:
            raise ValueError("variances or scales that no latents have")
        if (self.synthesis.double() @ self.analysis.double() - torch.eye(size)).abs().max() > WRONG:
            raise ValueError("a matrix without an inverse")

    def to(self, device: torch.device) -> "Transform":
        """The transform on a device."""
        tensors = ("mean", "analysis", "synthesis", "variances")
        return dataclasses.replace(self, **{name: getattr(self, name).to(device) for name in tensors})


def scales(components: torch.Tensor, variances: torch.Tensor) -> torch.Tensor:
    """Each image's scale [B]: the root mean square of its components [B, D] in units of their deviations.

    A component counts by its deviation, which is about what power it is sent with.
    """
    weights = variances**POWER
    return ((components.square() / variances) @ (weights / weights.sum())).sqrt()


def covariance(values: torch.Tensor, channels: int) -> torch.Tensor:
    """The covariance [D, D] of values [N, D] without mean, a little of it as a Kronecker product, in float64."""
    sample = values.T @ values / len(values)
    blocks = sample.unflatten(0, (channels, -1)).unflatten(2, (channels, -1))  # [C, P, C, P]
    of_channels = blocks.diagonal(dim1=1, dim2=3).mean(-1)
    of_places = blocks.diagonal(dim1=0, dim2=2).mean(-1)
    product = torch.kron(of_channels, of_places)
    return (1 - KRONECKER) * sample + KRONECKER * product * (sample.trace() / product.trace())


def decreasing(found: torch.Tensor) -> torch.Tensor:
    """Eigenvectors of a symmetric matrix as rows, those of the largest eigenvalues first."""
    return torch.linalg.eigh(found).eigenvectors.flip(1).T


def pixel_weights(
    decode: Callable[[torch.Tensor], torch.Tensor], latents: torch.Tensor, probes: int, seed: int, batch: int = 16
) -> torch.Tensor:
    """E[J'J] [D, D] over latents [N, C, h, w], with a mean diagonal of 1, in float64.

    `decode` makes images of latents. J'J is the mean of (J'v)(J'v)' over vectors v of random signs, `probes` a latent.
    """
    generator = torch.Generator().manual_seed(seed)
    size = latents[0].numel()
    total = torch.zeros(size, size, dtype=torch.float64)
    for part in Progress(latents.split(batch), unit="batch", desc="pixel weights"):
        x = part.float().requires_grad_(True)
        images = decode(x)
        for probe in range(probes):
            signs = torch.randint(2, images.shape, generator=generator).to(images) * 2 - 1
            (found,) = torch.autograd.grad(images, x, signs, retain_graph=probe + 1 < probes)
            found = found.flatten(1).double().cpu()
            total += found.T @ found
    return total / total.diagonal().mean()


def fit_transform(latents: torch.Tensor, weights: torch.Tensor) -> Transform:
    """The transform of latents [N, C, h, w] and pixel weights [D, D]. Raises ValueError for too few, or too alike.

    Variances are measured on parts of the data whose directions come from the rest, for a few thousand latents do not
    tell a thousand variances otherwise.
    """
    mean = latents.double().mean(0)
    size = mean.numel()
    if bool((latents == latents[0]).all()):
        raise ValueError("fewer than two different latents")
    weights = (1 - IDENTITY) * weights + IDENTITY * torch.eye(size, dtype=torch.float64)
    values, vectors = torch.linalg.eigh(weights)
    root = vectors * values.sqrt() @ vectors.T
    seen = (latents.double() - mean).flatten(1)
    blocks = len(mean)

    def basis(part: torch.Tensor) -> torch.Tensor:
        return decreasing(root @ covariance(part, blocks) @ root)

    measured = torch.zeros(size, dtype=torch.float64)
    fold = torch.arange(len(seen)) % FOLDS
    held = []
    for number in range(FOLDS):
        own = seen[fold == number] @ (basis(seen[fold != number]) @ root).T
        held.append(own)
        measured += own.square().sum(0)
    variances = (measured / len(seen)).sort(descending=True).values
    for _ in range(3):  # variances of scaled components, and scales by those variances
        held_scales = [scales(own, variances) for own in held]
        mean_square = torch.cat(held_scales).square().mean()
        scaled = (
            sum((own / s[:, None]).square().sum(0) for own, s in zip(held, held_scales, strict=True))
            * mean_square
            / len(seen)
        )
        variances = scaled.sort(descending=True).values
    logs = torch.cat([scales(own, variances) for own in held]).log()
    analysis = basis(seen) @ root
    log_scale = float(logs.mean()), float(logs.std(correction=0))
    found = Transform(mean.float(), analysis.float(), torch.linalg.inv(analysis).float(), variances.float(), log_scale)
    found.check()
    return found


def transform_of(latents: torch.Tensor, weights: torch.Tensor, data: str) -> Transform:
    """`fit_transform` of the latents in a folder. Raises ParameterError of --data where they tell no transform."""
    try:
        return fit_transform(latents, weights)
    except (ValueError, torch.linalg.LinAlgError) as error:
        words = f"must tell a transform by its images that --validation leaves; these {len(latents)} are too few or "
        words += f"too alike ({describe(error)}); make more, or give a smaller --validation"
        raise ParameterError("data", data, words) from None


def save_transform(path: Path, transform: Transform) -> None:
    """Write what the transform is made of. Raises OSError when the file cannot be written."""
    content = {
        "mean": transform.mean,
        "analysis": transform.analysis.contiguous(),
        "variances": transform.variances,
        "log_scale": torch.tensor(transform.log_scale, dtype=torch.float64),
    }
    replace_file(path, lambda temporary: save_file(content, temporary))


def load_transform(path: Path, flag: str = "decoders") -> Transform:
    """The transform of a file, in float32. Raises ParameterError when it holds none."""
    if not path.is_file():
        raise ParameterError(flag, path, "missing; fit it with python meg/fit_statistics.py")
    try:
        content = {name: tensor.double() for name, tensor in load_file(path).items() if not tensor.is_complex()}
        synthesis = torch.linalg.inv(content["analysis"])
        tensors = (content["mean"], content["analysis"], synthesis, content["variances"])
        mean, deviation = content["log_scale"].reshape(2).tolist()
        found = Transform(*(tensor.float() for tensor in tensors), (mean, deviation))
        found.check()
    except (SafetensorError, OSError, ValueError, LookupError, RuntimeError) as error:
        raise ParameterError(flag, path, f"must be a transform by meg/fit_statistics.py ({describe(error)})") from None
    return found
