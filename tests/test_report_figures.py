"""Fidelity, calibration, paired tests and looks of pictures: numbers by hand."""

import functools
import itertools

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from kdjax.analysis import calibration, fidelity
from kdjax.report import statistics
from kdjax.report.figures import answers, style

LOGS = np.log(np.array([[0.5, 0.25, 0.25], [0.25, 0.5, 0.25]]))


def test_agreement_and_divergence_by_hand():
    other = np.log(np.array([[0.25, 0.5, 0.25], [0.25, 0.5, 0.25]]))
    assert fidelity.agreement(LOGS, other) == 0.5
    # The teacher's probabilities weigh: 0.5 log(0.5/0.8) + 2 x 0.25 log(0.25/0.1).
    student = np.log(np.array([[0.8, 0.1, 0.1]]))
    expected = 0.5 * np.log(0.625) + 0.5 * np.log(2.5)
    assert fidelity.divergence(student, LOGS[:1]) == pytest.approx(expected)
    assert fidelity.divergence(LOGS + 7, LOGS) == pytest.approx(0, abs=1e-12)


def test_distances_are_the_same_both_ways_and_bounded():
    sure = np.array([[1000.0, 0, 0], [0, 0, 0]])
    other = np.array([[0, 1000.0, 0], [0, 0, 0]])
    np.testing.assert_allclose(
        fidelity.distances(sure, other), [np.log(2), 0], atol=1e-12
    )
    np.testing.assert_allclose(
        fidelity.distances(LOGS, LOGS[::-1]), fidelity.distances(LOGS[::-1], LOGS)
    )


def test_fidelity_wants_equal_shapes():
    with pytest.raises(ValueError, match=r"\(2, 3\) and \(2, 2\)"):
        fidelity.agreement(LOGS, LOGS[:, :2])


def test_calibration_by_hand():
    confidence = np.array([0.95, 0.95, 0.65, 0.65, 0.65])
    logits = np.log(np.stack([confidence, 1 - confidence], 1))
    labels = np.array([0, 1, 0, 0, 1])
    bins = calibration.reliability(logits, labels, bins=10)
    assert bins.count.tolist() == [0, 0, 0, 0, 0, 0, 3, 0, 0, 2]
    np.testing.assert_allclose(bins.accuracy[[6, 9]], [2 / 3, 0.5])
    np.testing.assert_allclose(bins.confidence[[6, 9]], [0.65, 0.95])
    assert bins.ece == pytest.approx((3 * (2 / 3 - 0.65) + 2 * 0.45) / 5)
    with pytest.raises(ValueError, match="not"):
        calibration.reliability(logits, labels[:2])


def test_a_sure_network_falls_into_the_last_bin():
    bins = calibration.reliability(np.array([[1000.0, 0.0]]), np.array([0]))
    assert bins.count[-1] == 1
    assert bins.ece == 0


def test_the_paired_test_is_scipys():
    from scipy import stats

    values = [0.3, 0.5, 1.1, -0.2]
    margin, p = statistics.paired(values)
    theirs = stats.ttest_rel(values, [0.0] * 4)
    assert p == pytest.approx(theirs.pvalue)
    low, high = theirs.confidence_interval(0.95)
    assert margin == pytest.approx((high - low) / 2)
    assert statistics.paired([0.5, 0.5, 0.5]) == (0, 0)
    assert statistics.paired([0.0, 0.0, 0.0]) == (0, 1)


def test_holm_by_hand():
    assert statistics.holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert statistics.holm([0.5, 0.9]) == [1.0, 1.0]


def test_what_seeds_tell():
    # 4.303 / sqrt(3): a table of Student's t; two of eight signs.
    assert "2.5 times" in statistics.what_seeds_tell(3)
    assert "below 0.25" in statistics.what_seeds_tell(3)
    assert "below 0.062" in statistics.what_seeds_tell(5)


@pytest.mark.parametrize("theme", [style.LIGHT, style.DARK])
def test_lines_are_told_apart(theme):
    looks = [look for _, look in zip(range(24), theme.lines(), strict=False)]
    assert len({tuple(look.values()) for look in looks}) == 24
    for one, other in itertools.pairwise(looks):
        assert one["color"] != other["color"]
        assert one["linestyle"] != other["linestyle"]

    def luminance(colour):
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [
            p / 12.92 if p <= 0.04 else ((p + 0.055) / 1.055) ** 2.4 for p in parts
        ]
        return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))

    for colour in theme.cycle:
        light, dark = sorted((luminance(colour), luminance(theme.paper)), reverse=True)
        assert (light + 0.05) / (dark + 0.05) > 2, colour


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (78e3, 370e3, ["100k", "200k"]),
        (0.03, 2.5, ["0.05", "0.1", "0.2", "0.5", "1", "2"]),
        (1e3, 1e6, ["1k", "10k", "100k", "1M"]),
    ],
)
def test_logarithmic_axes_have_plain_numbers(low, high, expected):
    figure = Figure()
    axis = figure.subplots()
    axis.set(xscale="log", xlim=(low, high))
    style.plain_log(axis.xaxis)
    figure.draw_without_rendering()
    shown = [
        tick.label1.get_text()
        for tick in axis.xaxis.get_major_ticks()
        if low <= tick.get_loc() <= high
    ]
    assert shown == expected
    assert not any(tick.label1.get_text() for tick in axis.xaxis.get_minor_ticks())


def test_many_classes_are_shown_by_their_mistakes(tmp_path):
    labels = np.arange(100) % 25
    predicted = np.where(labels == 3, 4, labels)
    classes = tuple(map(str, range(25)))
    plot = functools.partial(answers.confusion, "net", predicted, labels, classes)
    picture = style.save(plot, tmp_path, "c", title="t", caption="c", alt="a")
    for name in (picture.light, picture.dark):
        assert imread(tmp_path / name).shape[:2] == (picture.height, picture.width)
    corners = [
        imread(tmp_path / name)[0, 0, :3] for name in (picture.light, picture.dark)
    ]
    assert corners[0].mean() > 0.9 > 0.2 > corners[1].mean()
    axes = plot(style.LIGHT).axes[0]
    assert axes.get_yticklabels()[0].get_text() == "3 taken for 4"
    assert axes.patches[0].get_width() == 4
