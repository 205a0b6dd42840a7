"""Pretrained weights that timm and torchvision download for their networks.

The libraries try for minutes where their hub cannot be reached. So the hub is looked
for first, for some seconds; without it only what was downloaded before counts.
"""

import contextlib
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

from kdjax.models import names
from kdjax.models.foreign import zoo
from kdjax.models.foreign.torch import TorchNetwork
from kdjax.models.foreign.variables import variables_of
from kdjax.runtime import private_names
from kdjax.runtime.errors import UserError

_PATIENCE = 5.0  # seconds, for a hub to answer
_TIMEOUT = 10.0  # seconds, for the next bytes of a download
_REASON = 120  # characters


def pretrained(network: TorchNetwork) -> dict[str, np.ndarray]:
    """Returns the tensors that a library downloads for one of its networks.

    Args:
        network: 'timm:...' or 'torchvision:...'.

    Raises:
        UserError: the network is no library's, has none, or the hub is not reached.
    """
    reference = names.parse(network.name)
    library, name = reference.module, reference.attribute
    url = _hub(library, name)
    if not url:
        raise UserError(
            f"model {network.name!r} has no weights to download: teacher_weights= "
            "names a file"
        )
    make = zoo.pretrained(library, name, dict(reference.kwargs))
    host, port = _address(url)
    reached = _is_reached(host, port)
    try:
        if not reached and library == "torchvision" and not _is_kept(name):
            raise OSError
        with _limited(offline=not reached):
            module = make()
    except UserError:
        raise
    except Exception as error:
        reason = names.brief(error) if reached else f"{host} is not reached"
        raise UserError(
            f"the weights of {network.name} cannot be downloaded "
            f"({reason[:_REASON]}): teacher_weights= names a file that you have"
        ) from error
    found = variables_of(module)
    return {**found["params"], **found["batch_stats"]}


def _hub(library: str, network: str) -> str:
    """Returns the address that a library asks for a network's weights, or ''."""
    if library == "timm":
        return os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    return zoo.weights_url(network) if library == "torchvision" else ""


def _address(url: str) -> tuple[str, int]:
    """Returns the host and port of an address."""
    parts = urlsplit(url if "//" in url else f"//{url}")
    return parts.hostname or "", parts.port or (80 if parts.scheme == "http" else 443)


def _is_reached(host: str, port: int) -> bool:
    """Returns whether a host, or the proxy that asks it for us, answers soon."""
    proxy = os.environ.get("HTTPS_PROXY") or os.environ.get("https_proxy")
    address = _address(proxy) if proxy else (host, port)
    answered = threading.Event()

    def connect() -> None:
        with contextlib.suppress(OSError, ValueError):
            socket.create_connection(address, timeout=_PATIENCE).close()
            answered.set()

    # A thread: looking up a name has no limit of time.
    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(_PATIENCE)
    return answered.is_set()


def _is_kept(network: str) -> bool:
    """Returns whether torchvision has downloaded a network's weights before."""
    from torch import hub

    file = Path(urlsplit(zoo.weights_url(network)).path).name
    return (Path(hub.get_dir()) / "checkpoints" / file).exists()


@contextlib.contextmanager
def _limited(offline: bool) -> Iterator[None]:
    """Limits what a download waits for; offline, only what is there already counts."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_TIMEOUT)
    try:
        with private_names.hugging_face_offline(offline):
            yield
    finally:
        socket.setdefaulttimeout(before)
