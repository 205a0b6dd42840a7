"""Stages that are fed image by image from disk, through the whole command."""

import json

import chex
import jax
import numpy as np
import pytest
import tiny
from pictures import BROKEN, SIZE, TEST, TRAIN, files

from benchmarks import photos
from configs import dgkd
from kdjax.data.stream import Stream
from kdjax.data.streaming.crop import Crop
from kdjax.data.streaming.feed import StreamedFeed
from kdjax.data.streaming.opening import open_streamed
from kdjax.experiment.config import parse_config
from kdjax.experiment.run import Run
from kdjax.runtime import parallel
from kdjax.runtime.errors import UserError
from kdjax.runtime.rng import fold
from kdjax.runtime.signals import Interrupt, Interrupted
from kdjax.train.program import Program
from kdjax.train.step import Step

BATCH = 8


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    photos.write(folder, {split: files(split) for split in BROKEN})
    return folder


def experiment(data_dir, **changes):
    """Two plain networks on the small set, one teaching the other."""
    arg = "imagenet,path=plain3/plain2,epochs=2,batch_size=8,method=kd"
    config = dgkd.get_config(arg).to_dict()
    config["data"] |= {"dir": str(data_dir), "image_size": SIZE, "workers": 0}
    config["saving"]["every_s"] = 1e9
    for key, value in changes.items():
        config[key] |= value
    return parse_config(config)


def digests(results):
    return {name: stage["digest"] for name, stage in results["stages"].items()}


def test_a_chain_runs_stops_within_an_epoch_and_goes_on(data_dir, tmp_path, capfd):
    parsed = experiment(data_dir)
    assert parsed.stages["S2"].teachers == ("T3",)
    whole = Run(parsed, tmp_path / "whole", Interrupt()).run()
    results = json.loads((tmp_path / "whole" / "results.json").read_text())
    # One of the nine test images is broken: it counts for nobody.
    accuracy = results["stages"]["S2"]["test_accuracy"]["final"][0]
    assert round(accuracy * (TEST - 1), 3) == round(accuracy * (TEST - 1))
    assert "t07" in capfd.readouterr().out
    stopped = tiny.InterruptAfter(15, 4)
    with pytest.raises(Interrupted):
        Run(parsed, tmp_path / "cut", stopped).run()
    assert list((tmp_path / "cut").glob("stages/*/checkpoints/*"))
    assert digests(Run(parsed, tmp_path / "cut", Interrupt()).run()) == digests(whole)


def program(data, devices=1, parts=1):
    recipe = tiny.replace(batch_size=BATCH)
    mesh = parallel.make_mesh(jax.devices()[:devices])
    dtype = np.dtype("float64")
    stream = Stream(TRAIN, BATCH, tiny.Augment(), data.mean, data.std, dtype=dtype)
    step = Step(
        tiny.methods.create("supervised", {}),
        "plain-2",
        {},
        data.num_classes,
        data.image_shape,
        optimisers=(recipe.optimiser(6),),
        dtype=dtype,
    )
    return Program(step, StreamedFeed(data, stream, mesh, parts))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("parts", [1, 2])
def test_one_device_equals_two(data_dir, parts):
    with open_streamed(
        "imagenet", str(data_dir), image_size=SIZE, workers=0, crop=Crop()
    ) as data:
        one, two = (
            tiny.many_steps(program(data, devices, parts), 2, [5], {})[0]
            for devices in (1, 2)
        )
    chex.assert_trees_all_close(one, two, rtol=1e-9, atol=1e-12)


def test_images_are_whole_batches_in_the_streams_order(data_dir):
    with open_streamed(
        "imagenet", str(data_dir), image_size=SIZE, workers=0, crop=Crop()
    ) as data:
        with jax.enable_x64(True):
            feed = program(data, devices=2, parts=2).feed
        (width, (images, labels, index)), *rest = feed.epoch([5], 1, 0, 1)
        assert width == 1
        assert len(rest) == TRAIN // BATCH - 1
        order = np.asarray(feed.stream.order(fold(jax.random.key(5), "stream"), 1))
        np.testing.assert_array_equal(np.ravel(index), order[:BATCH])
        seen = data.examples(order[:BATCH], 5, 1)
        np.testing.assert_array_equal(
            np.asarray(images).reshape(seen.images.shape), seen.images
        )
        np.testing.assert_array_equal(np.ravel(labels), seen.labels)
        # From the second step on: what a resumed epoch begins with.
        (_, (_, _, later)), *_ = feed.epoch([5], 1, 1, 1)
        np.testing.assert_array_equal(np.ravel(later), order[BATCH : 2 * BATCH])


def test_what_only_streamed_or_only_resident_data_take_is_told(data_dir):
    with pytest.raises(UserError, match="validation is for data sets that fit"):
        Run(experiment(data_dir, data={"validation": 3}), data_dir, Interrupt())
    config = dgkd.get_config("digits").to_dict()
    config["data"]["workers"] = 2
    with pytest.raises(UserError, match=r"data\.workers .* not 'digits'"):
        parse_config(config)
