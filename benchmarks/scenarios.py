"""The losses of the paper's three scenarios down to what costs time: networks, zones and alignment, on one rank or on several."""
import torch

from lzn_nb.alignment import alignment_loss
from lzn_nb.parallel import drawn_rows, zones_of_batch
from lzn_nb.rectified_flow import velocity_errors
from lzn_nb.scenarios.joint import joint_components, joint_losses
from lzn_nb.training import Trainer


def generation(config, network, images, labels, generator, n):
    "Scenario 1: the latent of an image's zone tells the decoder what to draw."
    image = network["image"]
    zones, mine, extra = zones_of_batch(image, images, n, config.piece or None, config.ring)
    draw = lambda kind, *shape: drawn_rows(kind, n, *shape, generator=generator, like=images)
    z = zones.encode(mine, draw(torch.randn, image.latent_dim))
    x0, t = draw(torch.randn, *images.shape[1:]), draw(torch.rand)
    return {"loss": velocity_errors(image.decoder, images, x0, t, **image.given(z, 0 * labels)).mean() + extra}


def representation(config, network, images, labels, generator, n):
    "Scenario 2: latents of a view come into the zones of the other."
    image = network["image"]
    draw = lambda *shape: drawn_rows(torch.randn, n, *shape, generator=generator, like=images)
    (first, mine, a), (second, _, b) = (zones_of_batch(image, images + 0.1 * draw(*images.shape[1:]), n, config.piece or None, config.ring) for _ in range(2))
    return {"loss": alignment_loss(first.encode(mine, draw(image.latent_dim), 0.45), second, mine) + a + b}


def drawing(config, network, images, labels, generator, n):
    "Scenarios 1 and 3 without zones: the anchors themselves as latents, in the same networks."
    image = network["image"]
    x0, t = torch.randn(images.shape, generator=generator), torch.rand(len(images), generator=generator)
    return {"loss": velocity_errors(image.decoder, images, x0, t, **image.given(image.anchors(images), labels)).mean() + 0 * network["label"].matrix.sum()}


def two_views(config, network, images, labels, generator, n):
    "Scenario 2 without zones: the anchors of both views."
    image = network["image"]
    return {"loss": sum(image.anchors(images + 0.1 * torch.randn(images.shape, generator=generator)).square().mean() for _ in range(2))}


LOSSES = {"generation": generation, "representation": representation, "joint": joint_losses}
WITHOUT_ZONES = {"generation": drawing, "representation": two_views, "joint": drawing}
TRAINED = {"generation": ("decoder", "encoder"), "representation": ("encoder",), "joint": ("decoder", "encoder", "label")}


def trainer_of(scenario: str, config, network, losses=None) -> Trainer:
    "A trainer of the parts of a joint `network` that a scenario has, ready for its updates (or those of other `losses`)."
    parts = {name: part for name, part in joint_components(config, network).items() if name in TRAINED[scenario]}
    (trainer := Trainer(network, config, parts)).begin(lambda *batch: (losses or LOSSES[scenario])(config, *batch, n=config.zone_batch))
    return trainer
