"""The losses of the scenarios, the paper's three and sentences, down to what costs time: networks, zones and alignment, on one rank or on several."""
import torch

from lzn_nb.rectified_flow import velocity_errors
from lzn_nb.scenarios.generation import GENERATION, generation_losses
from lzn_nb.scenarios.joint import JOINT, joint_losses
from lzn_nb.scenarios.representation import REPRESENTATION, representation_losses, views_of
from lzn_nb.scenarios.text import TEXT
from lzn_nb.training import Trainer, get_preset


def drawing(config, network, images, labels, generator, n):
    "Scenarios 1 and 3 without zones: the anchors themselves as latents, in the same networks."
    image, others = network["image"], [p for name, p in network.named_parameters() if not name.startswith("types.image.")]
    x0, t = torch.randn(images.shape, generator=generator), torch.rand(len(images), generator=generator)
    return {"loss": velocity_errors(image.decoder, images, x0, t, **image.given(image.anchors(images), labels)).mean() + 0 * sum(p.sum() for p in others)}


def two_views(config, network, images, labels, generator, n):
    "Scenario 2 without zones: the anchors of both views."
    return {"loss": sum(network["image"].anchors(view).square().mean() for view in views_of(config, images, generator, n))}


LOSSES = {"generation": generation_losses, "representation": representation_losses, "joint": joint_losses}  # of the paper's three, which are timed
WITHOUT_ZONES = {"generation": drawing, "representation": two_views, "joint": drawing}
SCENARIOS = {"generation": GENERATION, "representation": REPRESENTATION, "joint": JOINT, "text": TEXT}


def network_of(scenario: str, preset: str, shape: tuple, classes: int, seed: int = 0, **changes):
    "Configuration and untrained network of a scenario."
    config = get_preset(SCENARIOS[scenario].presets, preset, **changes)
    return config, SCENARIOS[scenario].network(config, shape, classes, seed)


def trainer_of(scenario: str, config, network, losses=None) -> Trainer:
    "A trainer of a scenario's `network`, ready for its updates (or those of other `losses`)."
    (trainer := Trainer(network, config, SCENARIOS[scenario].components(config, network))).begin(lambda *batch: (losses or SCENARIOS[scenario].losses)(config, *batch, n=config.zone_batch))
    return trainer
