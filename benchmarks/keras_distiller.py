"""`kdjax.distill` beside `keras.distillation.Distiller` on Keras's JAX backend.

    pip install -e . keras==3.15.1 && python -m benchmarks.keras_distiller

WRN-16-1 learns from a frozen WRN-40-1 by KD (temperature 4), batch 128, random images
of 32x32 in 10 classes, crops after padding by four pixels and flips, SGD with momentum
and weight decay, float32. Both train whole epochs from uint8 arrays in memory, without
evaluation; a turn is one epoch, turns alternate, and the first of each, which compiles,
is left out. Keras varies images by NumPy, a whole batch at once, in two worker threads
(`PyDataset`), the faster of what it offers without TensorFlow; kdjax inside its step.
"""

import os

os.environ["KERAS_BACKEND"] = "jax"  # before keras is imported

import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

import kdjax
from benchmarks import measure
from kdjax.runtime import command
from kdjax.runtime.console import console
from kdjax.runtime.errors import UserError

BATCH, SIDE, CLASSES, TEMPERATURE = 128, 32, 10, 4.0
STUDENT, TEACHER = (16, 1), (40, 1)


def arrays(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns random images and labels."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (size, SIDE, SIDE, 3), dtype=np.uint8)
    return images, rng.integers(0, CLASSES, size).astype(np.int32)


def ours(size: int) -> Callable[[], float]:
    """Returns a function that trains an epoch by `kdjax.distill`: images per second."""
    images, labels = arrays(size)
    test = images[:BATCH], labels[:BATCH]
    folder = tempfile.TemporaryDirectory()
    teacher = f"wrn-{TEACHER[0]}-{TEACHER[1]}"
    shared = {
        "data": (images, labels),
        "test": test,
        "batch_size": BATCH,
        "augment": {"crop": 4, "padding": "zero", "flip": True},
        "recipe": {"schedule": "steps", "warmup": 0.0},
        "settings": {"saving": {"every_s": 1e6, "best": False, "evaluate_every": 1000}},
        "options": {"temperature": TEMPERATURE},
    }
    made = kdjax.distill(
        student=teacher,
        method="supervised",
        epochs=1,
        workdir=folder.name,
        **{**shared, "options": {}},
    )
    expert = made.network()

    def epoch(folder: Any = folder) -> float:
        # In a folder of its own, or nothing would be left to do. Compiled programs are
        # found in the cache, and compilation is not in a stage's seconds.
        with tempfile.TemporaryDirectory() as workdir:
            result = kdjax.distill(
                student=f"wrn-{STUDENT[0]}-{STUDENT[1]}",
                teacher=expert,
                epochs=1,
                workdir=workdir,
                **shared,
            )
        return result.summary["stages"]["student"]["images_per_second"][0]

    return epoch


def _block(x: Any, width: int, stride: int, layers: Any) -> Any:
    out = layers.Activation("relu")(layers.BatchNormalization(momentum=0.9)(x))
    shortcut = x
    if x.shape[-1] != width:
        shortcut = layers.Conv2D(width, 1, stride, use_bias=False)(out)
    out = layers.Conv2D(width, 3, stride, padding="same", use_bias=False)(out)
    out = layers.Activation("relu")(layers.BatchNormalization(momentum=0.9)(out))
    out = layers.Conv2D(width, 3, padding="same", use_bias=False)(out)
    return layers.Add()([out, shortcut])


def network(depth: int, widen: int) -> Any:
    """Returns a WRN as a Keras model: logits of normalised images."""
    import keras
    from keras import layers

    images = keras.Input((SIDE, SIDE, 3))
    x = layers.Conv2D(16, 3, padding="same", use_bias=False)(images)
    for stage in range(3):
        for block in range((depth - 4) // 6):
            stride = 2 if stage and not block else 1
            x = _block(x, 16 * widen * 2**stage, stride, layers)
    x = layers.Activation("relu")(layers.BatchNormalization(momentum=0.9)(x))
    return keras.Model(
        images, layers.Dense(CLASSES)(layers.GlobalAveragePooling2D()(x))
    )


def theirs(size: int) -> Callable[[], float]:
    """Returns a function that trains an epoch by Keras: images per second."""
    import keras
    from keras.distillation import Distiller, LogitsDistillation

    images, labels = arrays(size)

    class Varied(keras.utils.PyDataset):
        """Batches of cropped, mirrored and normalised images."""

        def __init__(self) -> None:
            super().__init__(workers=2, use_multiprocessing=False, max_queue_size=8)
            self._rng = np.random.default_rng(1)
            self._order = self._rng.permutation(size)
            self._padded = np.pad(images, ((0, 0), (4, 4), (4, 4), (0, 0)))

        def __len__(self) -> int:
            return size // BATCH

        def on_epoch_end(self) -> None:
            self._order = self._rng.permutation(size)

        def __getitem__(self, number: int) -> tuple[np.ndarray, np.ndarray]:
            rows = self._order[number * BATCH : (number + 1) * BATCH]
            top, left = self._rng.integers(0, 9, (2, BATCH, 1))
            columns = np.arange(SIDE) + left
            mirrored = self._rng.random(BATCH) < 0.5
            columns[mirrored] = columns[mirrored, ::-1]
            ys = (np.arange(SIDE) + top)[:, :, None]
            pixels = self._padded[rows[:, None, None], ys, columns[:, None, :]]
            return (pixels.astype(np.float32) / 255 - 0.5) / 0.25, labels[rows]

    teacher, student = network(*TEACHER), network(*STUDENT)
    distiller = Distiller(
        teacher=teacher,
        student=student,
        distillation_losses=LogitsDistillation(temperature=TEMPERATURE),
        student_loss_weight=0.1,
    )
    distiller.compile(
        optimizer=keras.optimizers.SGD(0.05, momentum=0.9, weight_decay=5e-4),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    data = Varied()

    def epoch() -> float:
        begin = time.perf_counter()
        distiller.fit(data, epochs=1, verbose=0)
        return (size // BATCH) * BATCH / (time.perf_counter() - begin)

    return epoch


def main(argv: Sequence[str] | None = None) -> int:
    """Measures and returns the exit status."""
    return command.run(lambda: _main(argv))


def _main(argv: Sequence[str] | None) -> None:
    parser = measure.parser("keras_distiller", __doc__, rounds=5)
    parser.add_argument("--size", type=int, default=20 * BATCH, help="training images")
    options = parser.parse_args(argv)
    try:
        import keras
    except ModuleNotFoundError as error:
        raise UserError("keras is missing: pip install keras==3.15.1") from error
    turns = {"kdjax": ours(options.size), "keras": theirs(options.size)}
    console.quiet = True
    for turn in turns.values():
        turn()
    found = measure.interleave(turns, options.rounds, options.busy)
    console.quiet = False
    values = found.pop("values")
    ratio = measure.quotient(values["kdjax"], values["keras"])
    rows = [
        (name, measure.figure(measure.spread(rates), ".0f"))
        for name, rates in values.items()
    ]
    rows.append(("kdjax / keras", measure.figure(ratio)))
    measure.show(
        f"KD of WRN-16-1 from WRN-40-1, batch {BATCH}, {options.size} images: images/s",
        ("", "median [quartiles]"),
        rows,
    )
    figures = {name: measure.spread(rates) for name, rates in values.items()}
    versions = {"keras": keras.__version__}
    measure.save(
        options.out,
        {"images_per_second": figures, "ratio": ratio, "rounds": found, **versions},
    )


if __name__ == "__main__":
    sys.exit(main())
