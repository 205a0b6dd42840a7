"""XLA's option with which tiny programs compile in half the time."""

from importlib import metadata

_VERSION = tuple(int(part) for part in metadata.version("jaxlib").split(".")[:2])

# jaxlib 0.12 has nothing but the fusion emitters, and no such option.
QUICK = "--xla_cpu_use_fusion_emitters=false" if _VERSION < (0, 12) else ""
