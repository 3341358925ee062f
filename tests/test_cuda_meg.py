"""A step of MEG's training on the GPU against the CPU: the same loss and gradients."""

from collections.abc import Iterator

import pytest
import torch
from helpers import make

from meg.dataset import Pairs
from meg.training_parameters import TrainingConfig, filled
from resd3_medium.vae import Decoder, LatentFormat, VAEConfig

# A bare machine with a GPU may lack packages that these import.
training, accelerate_state = pytest.importorskip("meg.training"), pytest.importorskip("accelerate.state")
pytestmark = pytest.mark.cuda


@pytest.fixture
def any_device() -> Iterator[None]:
    """accelerate knows one device in a process, and is made to forget it before and after."""
    accelerate_state.AcceleratorState._reset_state(reset_partial_state=True)
    yield
    accelerate_state.AcceleratorState._reset_state(reset_partial_state=True)


def test_a_step_of_megs_training_has_the_same_loss_and_gradients(gpu, any_device):
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(12, 4, 4, 4, generator=generator).half()
    images = torch.randint(256, (12, 3, 8, 8), generator=generator, dtype=torch.uint8)
    losses, gradients = [], []
    for device in ("cpu", str(gpu)):
        accelerate_state.AcceleratorState._reset_state(reset_partial_state=True)
        torch.manual_seed(0)
        model = training.SplitModel(Decoder(VAEConfig((8, 8), 1, 4, 4)), 4, LatentFormat(1.0, 0.0))
        config = filled(make(TrainingConfig, batch=4, validation=2, device=device))
        accelerator = training.accelerator_for(config)
        stage = training.MEGStage(
            "meg_dt", model, Pairs(latents, images), (training.Phase(10, 1e-3),), config, accelerator
        )
        assert stage.device.type == torch.device(device).type
        loss = stage.loss(3)
        stage.backward(loss)
        gradients.append({name: p.grad.cpu().clone() for name, p in model.named_parameters() if p.grad is not None})
        stage.optimiser.zero_grad()
        losses.append([loss.item(), *(stage.step(number) for number in (4, 5))])
    assert losses[1] == pytest.approx(losses[0], rel=1e-3) and losses[0][0] != losses[0][1]
    assert gradients[0] and gradients[1].keys() == gradients[0].keys()
    largest = max(float(gradient.abs().max()) for gradient in gradients[0].values())
    for name, wanted in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], wanted, rtol=1e-3, atol=1e-4 * largest)
