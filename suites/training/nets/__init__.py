"""Networks of the training workloads, in plain torch; named here, imported when built."""

from __future__ import annotations

from typing import Any

from harness.catalogue.registry import resolve
from harness.errors import UnknownName

NETS = {
    "digits-cnn": "suites.training.nets.small:DigitsCNN",
    "deep-linear": "suites.training.nets.small:DeepLinear",
    "fashion-cnn": "suites.training.nets.small:FashionCNN",
    "airbench": "suites.training.nets.airbench:Airbench",
    "resnet18-cifar": "suites.training.nets.resnet:resnet18_cifar",
    "resnet32-cifar": "suites.training.nets.resnet:ResNetCifar",
    "resnet9": "suites.training.nets.resnet9:ResNet9",
    "resnet50": "suites.training.nets.resnet:resnet50",
    "vgg16-bn": "suites.training.nets.vgg:VGG16",
    "char-gpt": "suites.training.nets.gpt:CharGPT",
    "t2t-vit": "suites.training.nets.t2t:T2TViT",
    "vit": "suites.training.nets.vit:ViT",
    "convmixer": "suites.training.nets.convmixer:ConvMixer",
}


def build(name: str, **options: Any) -> Any:
    """A new network, drawn from torch's generator.

    Raises:
        UnknownName: a network that is not listed.
    """
    if name not in NETS:
        raise UnknownName("network", name, NETS)
    return resolve(NETS[name])(**options)
