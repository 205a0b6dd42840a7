"""Predictions of exported models: `python -m kdjax.predict`, and the same in Python.

model = Model("student")
model.predict(["cat.png", "dog.jpg"])[0]  # the best classes of the first image

It needs NumPy, PIL and the runtime of the model's format; an ONNX model needs no JAX.
"""

from kdjax.predict.model import ClassScore, Model

__all__ = ["ClassScore", "Model"]
