"""The table of network families: which module makes 'wrn-16-1', 'resnet-8x4', ..."""

from typing import Any

from kdjax.models import (
    bottleneck_resnet,
    cifar_resnet,
    imagenet_resnet,
    mobilenetv2,
    names,
    padded_resnet,
    plain,
    resnet,
    shufflenetv1,
    shufflenetv2,
    simkd,
    vgg,
    wrn,
)
from kdjax.runtime.entry_points import Registry
from kdjax.runtime.errors import unknown

_BUILT_IN: dict[str, Any] = {
    "bottleneck_resnet": bottleneck_resnet,
    "cifar_resnet": cifar_resnet,
    "imagenet_resnet": imagenet_resnet,
    "mobilenetv2": mobilenetv2,
    "padded_resnet": padded_resnet,
    "plain": plain,
    "resnet": resnet,
    "shufflenetv1": shufflenetv1,
    "shufflenetv2": shufflenetv2,
    "simkd": simkd,
    "vgg": vgg,
    "wrn": wrn,
}


def _problem(name: str, module: Any) -> str | None:
    """Returns what an entry point's object lacks of a family, or None."""
    if "-" in name or ":" in name:
        return "has a name with '-' or ':', which no family's name may contain"
    if not callable(getattr(module, "create", None)):
        return "has no function create(name, num_classes)"
    if not isinstance(getattr(module, "VERSION", None), int):
        return "has no integer VERSION"
    return None


MODELS: Registry[Any] = Registry("kdjax.models", _BUILT_IN, _problem)
"""Families by the first word of their names; each module has `create` and `VERSION`."""

# The usual ones first: of a long list, an error message shows only the choices that
# resemble the given name, and the first ones.
_FORMS = (
    "resnet-DEPTH",
    "wrn-DEPTH-WIDEN",
    "vgg-DEPTH",
    names.FORM,
    "resnet-DEPTHx4",
    "cifar_resnet-DEPTH",
    "padded_resnet-DEPTH",
    "imagenet_resnet-DEPTH",
    "bottleneck_resnet-DEPTH",
    "mobilenetv2-WIDTH",
    "shufflenetv1",
    "shufflenetv2",
    "plain-DEPTH",
    "wrn-DEPTH-WIDEN-fan_out",
    "simkd-FACTOR:MODEL:MODEL",
)


def family(name: str) -> Any:
    """Returns the module of the family that a network belongs to.

    Args:
        name: the network's, such as 'wrn-16-1'.

    Raises:
        UserError: there is no such family.
    """
    word = name.split("-")[0]
    if word not in MODELS:
        # The families that other packages add come first: the message cuts a long list.
        raise unknown("model", name, (*MODELS.outside(), *_FORMS))
    return MODELS[word]
