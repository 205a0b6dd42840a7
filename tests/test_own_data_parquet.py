"""One's own data in parquet files."""

import json
import sys

import numpy as np
import pytest
from own_images import encoded, pixels
from own_opened import SIZE, opened, streamed

from kdjax.data import own
from kdjax.runtime.errors import UserError


def rows(rng, count, **options):
    """Rows of the hub's image data sets, and their images."""
    images = [pixels(rng, SIZE, SIZE) for _ in range(count)]
    cells = [
        {"bytes": encoded(image), "path": f"{i}.png"} for i, image in enumerate(images)
    ]
    return cells, np.stack(images)


class TestParquet:
    pa = pytest.importorskip("pyarrow", reason="pyarrow reads parquet")

    def table(self, cells, labels, names=None):
        table = self.pa.table({"image": cells, "label": labels})
        if names:
            features = {"label": {"names": names, "_type": "ClassLabel"}}
            text = json.dumps({"info": {"features": features}})
            table = table.replace_schema_metadata({"huggingface": text})
        return table

    def write(self, table, path, **options):
        from pyarrow import parquet

        path.parent.mkdir(parents=True, exist_ok=True)
        parquet.write_table(table, path, **options)

    @pytest.mark.parametrize("below", ["data", "."])
    def test_the_hubs_files(self, rng, tmp_path, below, capsys):
        cells, images = rows(rng, 12)
        labels = np.array([0, 1, 2] * 4)
        names, folder = ["ant", "bee", "cow"], tmp_path / below
        for part in range(2):
            cut = slice(5 * part, 5 + 7 * part)
            self.write(
                self.table(cells[cut], labels[cut], names),
                folder / f"train-0000{part}-of-00002.parquet",
                row_group_size=2,
            )
        test_cells, test_images = rows(rng, 4)
        hidden = self.table(test_cells, [-1] * 4, names)
        self.write(hidden, folder / "test-00000-of-00001.parquet")
        shown = self.table(test_cells, [2, 1, 0, 0], names)
        self.write(shown, folder / "validation-00000-of-00001.parquet")
        assert own.find_kind(str(tmp_path)) == "parquet"
        data = opened(tmp_path, "parquet")
        np.testing.assert_array_equal(data.train.images, images)
        np.testing.assert_array_equal(data.train.labels, labels)
        # The labels of the test images are secret.
        np.testing.assert_array_equal(data.test.images, test_images)
        np.testing.assert_array_equal(data.test.labels, [2, 1, 0, 0])
        assert data.classes == ("ant", "bee", "cow")
        assert "test is not read: its labels are secret" in capsys.readouterr().out
        with streamed(tmp_path, "parquet", workers=1) as other:
            (batch,) = other.train(np.arange(12)[::-1], 0, 0, 12)
            np.testing.assert_array_equal(batch.images, images[::-1])

    def test_one_file_of_bytes_with_names(self, rng, tmp_path, monkeypatch, capsys):
        cells, _ = rows(rng, 10)
        contents = [cell["bytes"] for cell in cells]
        contents[3] = None
        path = tmp_path / "all.parquet"
        self.write(self.table(contents, ["x", "y"] * 5), path)
        data = opened(path, "parquet")
        assert data.classes == ("x", "y")
        assert (data.train_size, data.test_size) == (7, 2)
        assert (
            "skipped train record 3: cannot identify image" in capsys.readouterr().out
        )
        # From the cache: the images' column is not read again.
        monkeypatch.setattr("kdjax.data.own.parquet._rows", None)
        again = opened(path, "parquet")
        np.testing.assert_array_equal(again.train.images, data.train.images)

    def test_mistakes(self, rng, tmp_path, monkeypatch):
        cells, _ = rows(rng, 4)
        path = tmp_path / "train.parquet"
        self.write(self.table(cells, [0, 1, 0, 1]), path)
        for column in ("image", "label"):
            with pytest.raises(
                UserError, match=r"column of .*'x'; choices: image, label"
            ):
                opened(path, "parquet", **{f"{column}_column": "x"})
        self.write(self.table(cells, [0, None, 0, 1]), path)
        with pytest.raises(UserError, match="1 rows have no label"):
            opened(path, "parquet")
        self.write(self.table([1, 2, 3, 4], [0, 1, 0, 1]), path)
        with pytest.raises(UserError, match="'image' holds int, not encoded images"):
            opened(path, "parquet")
        self.write(self.table(cells, [[0], [1], [0], [1]]), path)
        with pytest.raises(UserError, match="'label' holds list, not integers or"):
            opened(path, "parquet")
        path.write_bytes(b"no parquet")
        with pytest.raises(UserError, match=r"train\.parquet cannot be read: "):
            opened(path, "parquet")
        with pytest.raises(UserError, match="no such folder or file"):
            opened(tmp_path / "none", "parquet")
        (tmp_path / "empty").mkdir()
        with pytest.raises(UserError, match="no parquet files in it"):
            opened(tmp_path / "empty", "parquet")
        monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
        with pytest.raises(UserError, match=r"pip install 'kdjax\[parquet\]'"):
            opened(path, "parquet")
