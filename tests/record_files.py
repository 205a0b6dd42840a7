"""Files of records in the tests of data sets."""

import numpy as np

from kdjax.data import tfds_files

RECORD = "cifar10-test.array_record-00000-of-00001"


def assert_equal(one, other):
    for split in ("train", "test"):
        for part in ("images", "labels"):
            np.testing.assert_array_equal(
                getattr(getattr(one, split), part), getattr(getattr(other, split), part)
            )


def forbid_decoding(monkeypatch):
    def fail(*_):
        raise AssertionError("decoded again")

    monkeypatch.setattr(tfds_files, "_decode", fail)


def flip(path):
    content = bytearray(path.read_bytes())
    content[300] ^= 1
    path.write_bytes(content)
