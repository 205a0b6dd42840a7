"""A folder of JPEGs from CIFAR-10, a folder for every class below train/ and test/.

    python docs/examples/write_jpegs.py DATA_DIR photos/ --train 4000 --test 2000

`DATA_DIR` is where TFDS or `python -m kdjax.data.prepare cifar10` put CIFAR-10.
"""

import argparse
import pathlib

from PIL import Image

from kdjax.data import sources

CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)


def main() -> None:
    """Writes the folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data_dir")
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--train", type=int, default=4000)
    parser.add_argument("--test", type=int, default=2000)
    args = parser.parse_args()
    data = sources.load(
        "cifar10", args.data_dir, train_size=args.train, test_size=args.test
    )
    for name, split in (("train", data.train), ("test", data.test)):
        for number, (image, label) in enumerate(
            zip(split.images, split.labels, strict=True)
        ):
            folder = args.out / name / CLASSES[label]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / f"{number:05d}.jpg", quality=95)
    print(f"{data.train_size} and {data.test_size} images in {args.out}")


if __name__ == "__main__":
    main()
