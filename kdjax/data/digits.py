"""scikit-learn's digits, the one data set that comes without files."""

import numpy as np

from kdjax.data.subsets import stratified

_TEST_SIZE = 360  # a fifth of the 1,797 digits


def read() -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Returns 1,437 training and 360 test images, 8x8x1, each with their labels."""
    from sklearn import datasets  # takes a second: not for `import kdjax`

    digits = datasets.load_digits()
    # Values of 0..16 become 0..255; [N, 8, 8] -> [N, 8, 8, 1].
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)[..., np.newaxis]
    labels = digits.target.astype(np.int32)
    is_test = np.zeros(len(labels), bool)
    is_test[stratified(labels, _TEST_SIZE)] = True
    return (images[~is_test], labels[~is_test]), (images[is_test], labels[is_test])
