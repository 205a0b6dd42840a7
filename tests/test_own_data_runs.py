"""Whole experiments on one's own data, and data sets that TFDS prepared."""

import io
import json
import shutil

import numpy as np
import pytest
import tensorflow_datasets as tfds
import tiny
from own_images import CLASSES, encoded, pixels, splits, write
from tensorflow_datasets.core import registered

from kdjax.data import own, sources, tfds_files
from kdjax.experiment import builders, dry_run
from kdjax.experiment.build import open_data
from kdjax.experiment.config import parse_config
from kdjax.experiment.run import Run
from kdjax.preflight import compiling
from kdjax.runtime.errors import UserError
from kdjax.runtime.signals import Interrupt
from kdjax.sweep.__main__ import parse

VARY = {"crop": 1, "flip": True, "area": (0.5, 1.0), "jitter": (0.1, 0.1, 0.1)}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write(tmp_path_factory.mktemp("photos"), splits())


def experiment(path, **data):
    recipe = {"epochs": 2, "batch_size": 8, "learning_rate": 0.05}
    section = {"name": "folder", "path": str(path), "image_size": 8, "augment": VARY}
    return parse_config(
        {
            "data": {**section, **data},
            "recipe": {**recipe, "milestones": ()},
            "seeds": 1,
            "saving": {"every_s": 1e9},
            "stages": {"expert": {"model": tiny.TEACHER}},
        }
    )


def test_a_folder_is_trained_on_and_found_again_elsewhere(photos, tmp_path, capsys):
    results = Run(experiment(photos), tmp_path / "run", Interrupt()).run()
    shutil.copytree(photos, tmp_path / "copy")
    capsys.readouterr()
    moved = experiment(tmp_path / "copy")
    again = Run(moved, tmp_path / "run", Interrupt()).run()
    found, first = (each["stages"]["expert"] for each in (again, results))
    assert found["fingerprint"] == first["fingerprint"]
    assert "expert seed 0  found in" in capsys.readouterr().out
    # What would run is told without training.
    dry_run.show(experiment(photos, test_size=8), tmp_path / "run")
    out = capsys.readouterr().out
    assert "folder, 24 images" in out
    stages = (tmp_path / "run" / "stages").glob("expert-*/stage.json")
    (written,) = (json.loads(path.read_text()) for path in stages)
    assert written["data"]["name"] == "folder"
    assert written["augment"]["area"] == [0.5, 1.0]


def test_memory_or_stream_train_the_same_network(photos, tmp_path):
    """Without augmentation the images are equal, and so is what is learned."""
    found = []
    for share in (0.25, 0.0):
        parsed = experiment(photos, augment={}, memory_share=share, workers=0)
        run = Run(parsed, tmp_path / str(share), Interrupt())
        found.append(run.run()["stages"]["expert"])
    assert found[0]["test_loss"] == pytest.approx(found[1]["test_loss"], rel=1e-3)
    assert found[0]["fingerprint"] != found[1]["fingerprint"]


def test_what_is_known_beforehand(photos):
    parsed = experiment(photos, train_size=20)
    source = sources.expected(**parsed.data)
    data = open_data(parsed)
    for name in ("num_classes", "image_shape", "train_size", "test_size", "classes"):
        assert getattr(source, name) == getattr(data, name), name
    assert source.in_memory
    with pytest.raises(UserError, match="no such folder"):
        dry_run.show(experiment("nowhere"), photos)


def test_a_data_set_beyond_memory_is_not_compiled_ahead(photos):
    parsed = experiment(photos, memory_share=0.0)
    with pytest.raises(UserError, match=r"one's own data within data\.memory_share"):
        compiling._program(parsed, parsed.stages["expert"], None)


def test_a_sweep_keeps_a_tenth_for_validation(photos, tmp_path):
    config = tmp_path / "own.py"
    config.write_text(
        "from kdjax.experiment import builders\n"
        "from kdjax.data.own.vary import Vary\n"
        "from kdjax.train.recipe import Recipe\n"
        "def get_config(arg=''):\n"
        "    known = {**builders.SHRINK, 'lr': float}\n"
        "    _, values = builders.parse_arg(arg, ('own',), known)\n"
        "    recipe = Recipe(learning_rate=values.get('lr', 0.1))\n"
        "    setting = builders.Setting(dataset='folder', recipe=recipe,\n"
        f"        augment=Vary(flip=True), data={{'path': {str(photos)!r}}})\n"
        "    stages = {'student': builders.stage('plain-2')}\n"
        "    return builders.experiment(setting, values, stages)\n"
    )
    argv = ["sweep", f"--config={config}", f"--workdir={tmp_path / 'w'}"]
    sweep, _ = parse([*argv, "--search=lr=0.01:0.1"])
    assert sweep.validation == 2


def test_builders_know_how_many_steps_an_epoch_has(photos):
    setting = builders.Setting(
        dataset="folder", recipe=tiny.RECIPE, augment=None, data={"path": str(photos)}
    )
    assert builders.steps_per_epoch(setting, {}) == 24 // 8
    assert builders.steps_per_epoch(setting, {"batch_size": 5}) == 4


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A data set that is none of kdjax's, and its images by split."""
    folder = tmp_path_factory.mktemp("tfds")
    rng = np.random.default_rng(0)
    images = {
        split: np.stack([pixels(rng, 16, 16) for _ in range(count)])
        for split, count in (("train", 12), ("validation", 6))
    }
    with registered.skip_registration():

        class Insects(tfds.core.GeneratorBasedBuilder):
            VERSION = tfds.core.Version("2.1.0")
            BUILDER_CONFIGS = [tfds.core.BuilderConfig(name="small")]  # noqa: RUF012

            def _info(self):
                features = {
                    "picture": tfds.features.Image(encoding_format="png"),
                    "kind": tfds.features.ClassLabel(names=CLASSES),
                    "id": tfds.features.Text(),
                }
                return tfds.core.DatasetInfo(
                    builder=self, features=tfds.features.FeaturesDict(features)
                )

            def _split_generators(self, manager):
                return {split: self._generate_examples(split) for split in images}

            def _generate_examples(self, split):
                for i, image in enumerate(images[split]):
                    picture = io.BytesIO(encoded(image))
                    yield i, {"picture": picture, "kind": i % 3, "id": str(i)}

    with tfds_files.quiet_tfds():
        tfds.disable_progress_bar()
        builder = Insects(config="small", data_dir=folder, file_format="array_record")
        builder.download_and_prepare()
    return folder, images


class TestTfds:
    def options(self, folder, **options):
        return {
            "name": "tfds",
            "path": "insects/small",
            "dir": str(folder),
            "image_size": 16,
            "image_column": "picture",
            "label_column": "kind",
            **options,
        }

    @staticmethod
    def rows(images):
        return sorted(image.tobytes() for image in images)

    @pytest.mark.parametrize("path", ["insects/small", "insects/small:2.1.0"])
    def test_any_prepared_data_set(self, prepared, path):
        folder, images = prepared
        data = own.open_own(self.options(folder, path=path))
        # TFDS shuffles what it prepares.
        assert self.rows(data.train.images) == self.rows(images["train"])
        assert self.rows(data.test.images) == self.rows(images["validation"])
        for image, label in zip(data.train.images, data.train.labels, strict=True):
            (i,) = np.flatnonzero((images["train"] == image).all((1, 2, 3)))
            assert label == i % 3
        assert data.classes == CLASSES

    def test_streamed(self, prepared):
        folder, _ = prepared
        data = own.open_own(self.options(folder))
        options = self.options(folder, memory_share=0.0, workers=1)
        with own.open_own(options) as other:
            (batch,) = other.train(np.arange(12), 0, 0, 12)
            np.testing.assert_array_equal(batch.images, data.train.images)
            np.testing.assert_array_equal(batch.labels, data.train.labels)
            np.testing.assert_array_equal(other.labels, data.train.labels)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"image_column": "image"}, "Image feature .*'image'; choices: picture"),
            ({"label_column": "id"}, "ClassLabel feature .*'id'; choices: kind"),
            ({"path": "moths"}, "'moths' not found in .*/moths; .*tfds build moths "),
            ({"path": "insects/small:1.0.0"}, "'insects/small:1.0.0' not found in"),
        ],
    )
    def test_mistakes(self, prepared, options, message):
        with pytest.raises(UserError, match=message):
            own.open_own(self.options(prepared[0], **options))

    def test_damaged(self, prepared, tmp_path):
        shutil.copytree(prepared[0], tmp_path / "copy")
        folder = tmp_path / "copy" / "insects" / "small" / "2.1.0"
        next(folder.glob("*train*")).unlink()
        message = rf"is damaged \(train.*--data_dir {tmp_path}/copy \("
        with pytest.raises(UserError, match=message):
            own.open_own(self.options(tmp_path / "copy"))
        (folder / "features.json").write_text("{}")
        with pytest.raises(UserError, match=r"is damaged \(features.json"):
            own.open_own(self.options(tmp_path / "copy"))


def test_levels_are_listed_from_outside_in():
    paths = ["stem", "stem.drop"]
    for number in range(4):
        paths += [f"blocks.{number}.conv", f"blocks.{number}"]
    listed = dry_run._outline([*paths, "pair.0", "pair.1", "pair", "fc"])
    assert listed == (
        "stem, blocks.0 to blocks.3, pair.0, pair.1, pair, fc; 5 inside them, such as "
        "blocks.1.conv"
    )
