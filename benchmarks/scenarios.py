"""The losses of the paper's three scenarios down to what costs time: networks, zones and alignment, on one rank or on several."""
import torch

from lzn_nb.alignment import alignment_loss
from lzn_nb.parallel import drawn_rows, zones_of_batch
from lzn_nb.rectified_flow import velocity_errors
from lzn_nb.scenarios.generation import GENERATION, generation_losses
from lzn_nb.scenarios.joint import JOINT, joint_losses
from lzn_nb.training import Trainer, get_preset


def representation(config, network, images, labels, generator, n):
    "Scenario 2: latents of a view come into the zones of the other."
    image = network["image"]
    draw = lambda *shape: drawn_rows(torch.randn, n, *shape, generator=generator, like=images)
    (first, mine, a), (second, _, b) = (zones_of_batch(image, images + 0.1 * draw(*images.shape[1:]), n, config.piece or None, config.ring) for _ in range(2))
    return {"loss": alignment_loss(first.encode(mine, draw(image.latent_dim), 0.45), second, mine) + a + b}


def drawing(config, network, images, labels, generator, n):
    "Scenarios 1 and 3 without zones: the anchors themselves as latents, in the same networks."
    image, others = network["image"], [p for name, p in network.named_parameters() if not name.startswith("types.image.")]
    x0, t = torch.randn(images.shape, generator=generator), torch.rand(len(images), generator=generator)
    return {"loss": velocity_errors(image.decoder, images, x0, t, **image.given(image.anchors(images), labels)).mean() + 0 * sum(p.sum() for p in others)}


def two_views(config, network, images, labels, generator, n):
    "Scenario 2 without zones: the anchors of both views."
    image = network["image"]
    return {"loss": sum(image.anchors(images + 0.1 * torch.randn(images.shape, generator=generator)).square().mean() for _ in range(2))}


LOSSES = {"generation": generation_losses, "representation": representation, "joint": joint_losses}
WITHOUT_ZONES = {"generation": drawing, "representation": two_views, "joint": drawing}
PARTS = {"generation": (GENERATION, ("decoder", "encoder")), "representation": (JOINT, ("encoder",)), "joint": (JOINT, ("decoder", "encoder", "label"))}


def network_of(scenario: str, preset: str, shape: tuple, classes: int, seed: int = 0, **changes):
    "Configuration and untrained network of a scenario (of the second, until it has its own, an equivalent)."
    owner, _ = PARTS[scenario]
    config = get_preset(owner.presets, preset, **changes)
    return config, owner.network(config, shape, classes, seed)


def trainer_of(scenario: str, config, network, losses=None) -> Trainer:
    "A trainer of the parts of a `network` that a scenario has, ready for its updates (or those of other `losses`)."
    owner, names = PARTS[scenario]
    parts = {name: part for name, part in owner.components(config, network).items() if name in names}
    (trainer := Trainer(network, config, parts)).begin(lambda *batch: (losses or LOSSES[scenario])(config, *batch, n=config.zone_batch))
    return trainer
