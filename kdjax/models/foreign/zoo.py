"""Networks of timm and torchvision by name: `timm:resnet18`, `torchvision:resnet18`."""

import dataclasses
import difflib
import functools
import importlib.util
import re
from collections.abc import Callable, Mapping
from typing import Any

from kdjax.runtime import private_names
from kdjax.runtime.errors import UserError, unknown


@functools.cache
def factory(library: str, network: str) -> Callable[..., Any]:
    """Returns the function that makes a library's network, with its arguments by name.

    Args:
        library: one of `names.LIBRARIES`.
        network: its name there.

    Raises:
        UserError: the library is not installed, or has no such network.
    """
    load(library)
    return {"timm": _timm, "torchvision": _torchvision}[library](network)


def load(library: str) -> Any:
    """Returns a library.

    Raises:
        UserError: it is not installed, or torch is not.
    """
    for package in ("torch", "torchvision", library):
        if importlib.util.find_spec(package) is None:
            wanted = "'kdjax[torch]'" if package == "torch" else package
            raise UserError(
                f"networks of {library} need {package}, which is not installed: pip "
                f"install {wanted}"
            )
    torchvision = private_names.import_torchvision()
    if library == "torchvision":
        return torchvision
    import timm

    return timm


def _timm(network: str) -> Callable[..., Any]:
    timm = load("timm")
    known = timm.list_models()
    if network.split(".")[0] not in known:
        raise _unknown("timm", network, known)

    def create(num_classes: int, **options: Any) -> Any:
        return timm.create_model(network, num_classes=num_classes, **options)

    return create


def _torchvision(network: str) -> Callable[..., Any]:
    models = load("torchvision").models
    classifiers = models.__name__
    known = [
        name
        for name in models.list_models()
        if models.get_model_builder(name).__module__.rpartition(".")[0] == classifiers
    ]
    if network not in known:
        raise _unknown("torchvision", network, known)

    def create(num_classes: int, **options: Any) -> Any:
        return models.get_model(network, num_classes=num_classes, **options)

    return create


_LISTS = {
    "timm": "timm.list_models()",
    "torchvision": "torchvision.models.list_models()",
}


def _unknown(library: str, network: str, known: list[str]) -> UserError:
    close = difflib.get_close_matches(network, known, 5, 0.5)
    if not close:
        family = re.split(r"[\d_]", network)[0]
        close = [name for name in known if family and name.startswith(family)][:5]
    close = close or known[:5]
    rest = f"and {len(known) - len(close)} more, which {_LISTS[library]} lists"
    return unknown(f"network of {library}", network, (*close, rest))


def pretrained(
    library: str, network: str, options: dict[str, Any]
) -> Callable[[], Any]:
    """Returns a function that downloads a library's network with its weights.

    Args:
        library: one of `names.LIBRARIES`.
        network: its name there.
        options: further arguments; the number of classes is that of the weights.
    """
    options = {key: value for key, value in options.items() if key != "num_classes"}
    if library == "timm":
        timm = load("timm")
        return lambda: timm.create_model(network, pretrained=True, **options)
    models = load("torchvision").models
    return lambda: models.get_model(network, weights="DEFAULT", **options)


def weights_url(network: str) -> str:
    """Returns from where torchvision downloads a network's weights; '' if it has none.

    Args:
        network: its name there.
    """
    weights = load("torchvision").models.get_model_weights(network)
    return str(weights.DEFAULT.url) if len(weights) else ""


@dataclasses.dataclass(frozen=True)
class View:
    """How a library's network learned to see images.

    Attributes:
        size: height and width.
        mean: of each channel, on the scale 0 to 1.
        std: standard deviation of each channel.
        interpolation: 'bilinear' or 'bicubic'.
    """

    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str


def view(library: str, network: str, options: Mapping[str, Any]) -> View | None:
    """Returns how a library's network learned to see images, where that is known.

    Args:
        library: one of `names.LIBRARIES`.
        network: its name there.
        options: further arguments: a transformer of timm's that is made with `img_size`
            takes no other size.
    """
    if library == "timm":
        config = load("timm").get_pretrained_cfg(network)
        if config is None:
            return None
        method = "bicubic" if config.interpolation == "bicubic" else "bilinear"
        size = tuple(config.input_size[1:])
        if side := options.get("img_size"):
            size = (side, side) if isinstance(side, int) else tuple(side)
        return View(size, tuple(config.mean), tuple(config.std), method)
    weights = load("torchvision").models.get_model_weights(network)
    if not len(weights):
        return None
    seen = weights.DEFAULT.transforms()
    method = "bicubic" if seen.interpolation.value == "bicubic" else "bilinear"
    side = seen.crop_size[0]
    return View((side, side), tuple(seen.mean), tuple(seen.std), method)
