"""Why a module of PyTorch cannot be traced, in words for its author."""

import importlib.metadata
import re
from collections.abc import Mapping
from typing import Any

import jax


class NotTracedError(Exception):
    """What a module does that a traced network cannot; the text follows its name."""


CUDA = "moves tensors to CUDA: leave that to JAX, which places all arrays"
GENERATOR = (
    "draws numbers from a torch.Generator of its own, which the step cannot seed; "
    "choices: torch.nn.Dropout, torch.rand and the like without generator="
)


def reason(error: Exception) -> str:
    """Returns what a module does that cannot be traced, or '' for other errors."""
    text = str(error)
    if isinstance(error, NotTracedError):
        return text
    if "mixed math" in text:  # torchax's assertion
        return (
            "computes with a tensor that is neither a parameter nor a buffer nor made "
            "of its images; choices: register_buffer in __init__, or device=x.device "
            "where it is made"
        )
    if isinstance(error, jax.errors.UnexpectedTracerError):
        return "keeps a tensor of an earlier call, which a traced network cannot"
    if isinstance(error, jax.errors.ConcretizationTypeError | jax.errors.JAXTypeError):
        return (
            "branches on values of its images, or makes a number of them: a traced "
            "network cannot; choices: torch.where, or sizes instead of values"
        )
    if missing := re.search(r"Operator with name (\S+) has no lowering", text):
        version = importlib.metadata.version("torchax")
        return f"uses an operation that torchax {version} has no form of: {missing[1]}"
    if "cuda" in text.lower():
        return CUDA
    return ""


def parts(result: Any) -> str:
    """Returns what a module returns in the place of logits, in words."""
    if isinstance(result, Mapping):
        return f"a dict of {', '.join(map(repr, result))}"
    if isinstance(result, tuple | list):
        kinds = [getattr(one, "shape", None) for one in result]
        shapes = [
            str(list(shape)) if shape is not None else type(one).__name__
            for shape, one in zip(kinds, result, strict=True)
        ]
        return f"a {type(result).__name__} of {', '.join(shapes)}"
    return f"an object of type {type(result).__name__}"
