"""TFDS builders that need no TensorFlow.

These builders write what the official ones write: the same names, versions, features,
ids and order (PNG files may differ in bytes, never in pixels), so that a folder
prepared by either can be read by both. Tiny ImageNet, which TFDS lacks, has its own
builder.
"""

from kdjax.data.builders.cifar import Cifar10, Cifar100
from kdjax.data.builders.svhn import SvhnCropped
from kdjax.data.builders.tiny_imagenet import TinyImagenet

BUILDERS = {
    builder.name: builder for builder in (Cifar10, Cifar100, SvhnCropped, TinyImagenet)
}
