"""`results.json`: what further commands have added is kept while it is true."""

import json

import pytest

from kdjax.experiment.report import MEASURED, keep_measured


def results(fingerprint, **more):
    return {"stages": {"student": {"fingerprint": [fingerprint], **more}}}


def test_what_was_measured_of_the_same_networks_stays(tmp_path):
    path = tmp_path / "results.json"
    added = {key: {"median": 0.5} for key in MEASURED}
    path.write_text(json.dumps(results("0123", test_loss=1.0, **added)))
    same, other = results("0123", test_loss=2.0), results("4567")
    keep_measured(same, path)
    keep_measured(other, path)
    assert same == results("0123", test_loss=2.0, **added)
    assert other == results("4567")


@pytest.mark.parametrize("text", [None, "", "[]", '{"stages": 3'])
def test_earlier_results_may_be_missing_or_damaged(tmp_path, text):
    path = tmp_path / "results.json"
    if text is not None:
        path.write_text(text)
    summary = results("0123")
    keep_measured(summary, path)
    assert summary == results("0123")
