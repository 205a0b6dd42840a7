"""kdjax: knowledge distillation of image classifiers in JAX and Flax."""

__version__ = "0.1.0"
