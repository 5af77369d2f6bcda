"""Each reader on tiny archives in its real container."""

import io
import pickle
import zipfile

import numpy as np
import pytest

from harness.catalogue.data import archive, formats, pickles
from harness.errors import UserError

IDX = {"train_x": "d/train-images", "train_y": "d/train-labels", "test_x": "d/t10k-images", "test_y": "d/t10k-labels"}


def same(found, wanted):
    assert set(found) == set(wanted)
    for key, array in wanted.items():
        assert found[key].dtype == array.dtype, key
        np.testing.assert_array_equal(found[key], array)


def test_png_strips(strips, pixels):
    members = {
        "train_x": ["package/a.png", "package/b.png"], "train_y": ["package/train.json"],
        "test_x": ["package/t.png"], "test_y": ["package/test.json"],
    }  # fmt: skip
    with archive.opened(strips, "tiny") as source:
        same(formats.png_strips(source, {"side": 32, "members": members})[0], pixels)
        with pytest.raises(UserError, match="RGB strip 256 wide, is RGB 1024 wide"):
            formats.png_strips(source, {"side": 16, "members": members})
        with pytest.raises(UserError, match=r"no member 'package/c.png'"):
            formats.png_strips(source, {"side": 32, "members": {**members, "test_x": ["package/c.png"]}})


def test_cifar_pickles(pickled, pixels):
    fields = {"labels": "labels", "members": {"train": ["data_batch_1", "data_batch_2"], "test": ["test_batch"]}}
    for root in (pickled, pickled / "cifar-10-batches-py"):
        same(formats.cifar_pickles(archive.folder(root, "user"), fields)[0], pixels)
    with pytest.raises(UserError, match="MD5 0000, has"):
        formats.cifar_pickles(archive.folder(pickled, "user"), {**fields, "md5": {"test_batch": "0000"}})


def test_a_pickle_runs_no_code():
    class Evil:
        def __reduce__(self):
            return (print, ("gotcha",))

    with pytest.raises(UserError, match="only numpy arrays"):
        pickles.loads(pickle.dumps(Evil()))
    with pytest.raises(UserError, match="not the pickle"):
        pickles.loads(b"no pickle at all")
    with pytest.raises(UserError, match="not the pickle"):
        pickles.loads(pickle.dumps({"a": 1})[:-4])
    old = pickle.dumps({"a": np.arange(3)}, protocol=2).replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    np.testing.assert_array_equal(pickles.loads(old)["a"], [0, 1, 2])


@pytest.mark.parametrize("zip_members", [False, True])
def test_idx_plain_and_gzipped_in_tarball_and_debian_package(idx_files, tarball, deb, gz, tmp_path, zip_members):
    raw, arrays = idx_files
    members = {IDX[key] + (".gz" if zip_members else ""): gz(raw[key]) if zip_members else raw[key] for key in raw}
    for path in (tarball(tmp_path / "idx.tgz", members), deb(members)):
        with archive.opened(path, "idx") as source:
            same(formats.idx(source, {"members": IDX})[0], arrays)


def test_idx_refuses_what_is_cut_or_something_else(idx_files, tmp_path):
    raw, _ = idx_files
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "a").write_bytes(raw["train_x"][:-1])
    (tmp_path / "x" / "b").write_bytes(b"\x89PNG and so on")
    source = archive.folder(tmp_path / "x", "there")
    with pytest.raises(UserError, match=r"should hold \[4, 5, 3\] values, holds 59"):
        formats.idx(source, {"members": {"train_x": "a"}})
    with pytest.raises(UserError, match="not an IDX file"):
        formats.idx(source, {"members": {"train_x": "b"}})


def test_digits_table(tmp_path, gz):
    labels = [0, 1] * 5 + [0]
    rows = [[(i + j) % 17 for j in range(64)] + [label] for i, label in enumerate(labels)]
    (tmp_path / "t.csv.gz").write_bytes(gz("\n".join(",".join(map(str, row)) for row in rows).encode()))
    found, _ = formats.digits_csv(archive.folder(tmp_path, "table"), {"members": {"table": "t.csv.gz"}})
    assert found["train_x"].shape == (9, 8, 8, 1)
    assert found["test_y"].tolist() == [0, 1], "the fifth image of each class"
    np.testing.assert_array_equal(found["test_x"][0].reshape(-1), rows[8][:64])
    np.testing.assert_array_equal(found["test_x"][1].reshape(-1), rows[9][:64])


def test_texts_split_by_document_and_keep_every_character(tmp_path):
    folder = tmp_path / "p" / "data"
    folder.mkdir(parents=True)
    texts = [f"text {i} öß\n" for i in range(33)]
    for i, text in enumerate(texts):
        (folder / f"{1980 + i}_x.txt").write_text(text, encoding="utf-8")
    (folder / "1990_x.json").write_text("no")
    source = archive.folder(tmp_path, "texts")
    found, meta = formats.text_files(source, {"pattern": "p/data/*.txt"})
    letters = np.array(meta["vocabulary"])
    assert meta["vocabulary"] == sorted(set("".join(texts)))
    assert "".join(letters[found["test"]]) == texts[10] + "\n\n" + texts[30]
    assert "".join(letters[found["train"]]) == "\n\n".join(t for i, t in enumerate(texts) if i not in (10, 30))
    assert found["train"].dtype == np.uint8
    later, meta = formats.text_files(source, {"pattern": "p/data/*.txt", "since": "1990"})
    assert meta["documents"] == 23
    assert "".join(np.array(meta["vocabulary"])[later["test"]]) == texts[20]
    with pytest.raises(UserError, match="train text should have sha256 abc"):
        formats.text_files(source, {"pattern": "p/data/*.txt", "text_sha256": {"train": "abc"}})


def test_many_characters_need_two_bytes(tmp_path):
    (tmp_path / "a.txt").write_text("".join(chr(0x4E00 + i) for i in range(300)), encoding="utf-8")
    found, meta = formats.text_files(archive.folder(tmp_path, "texts"), {"pattern": "*.txt"})
    assert found["train"].dtype == np.uint16
    assert found["train"].tolist() == list(range(300))
    assert len(meta["vocabulary"]) == 300


def test_label_pickles(zipped):
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as saved:
        saved.writestr("archive/data.pkl", pickle.dumps({"worse_label": np.array([1, 2, 3])}, protocol=2))
    outer = io.BytesIO()
    with zipfile.ZipFile(outer, "w") as archive_:
        archive_.writestr("C/human.pt", inner.getvalue())
    fields = {"members": {"zip": "n/C.zip", "saved": "C/human.pt"}, "labels": {"worse": "worse_label"}}
    with archive.opened(zipped("n.whl", {"n/C.zip": outer.getvalue()}), "wheel") as source:
        same(formats.label_pickles(source, fields)[0], {"worse": np.array([1, 2, 3])})


def test_image_folder_lists_and_opens_nothing(tmp_path):
    for name in (
        "train/n02/b.JPEG",
        "train/n01/a.JPEG",
        "train/n01/c.jpg",
        "val/n01/v.png",
        "val/n02/w.JPEG",
        "train/n01/x.txt",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    found, meta = formats.image_folder(archive.folder(tmp_path, "tree"), {})
    assert found["train_path"].tolist() == [b"train/n01/a.JPEG", b"train/n01/c.jpg", b"train/n02/b.JPEG"]
    assert found["train_y"].tolist() == [0, 0, 1]
    assert found["test_path"].tolist() == [b"val/n01/v.png", b"val/n02/w.JPEG"]
    assert meta["class_names"] == ["n01", "n02"]
    (tmp_path / "val" / "n09").mkdir()
    (tmp_path / "val" / "n09" / "z.JPEG").write_bytes(b"")
    with pytest.raises(UserError, match="without training pictures: n09"):
        formats.image_folder(archive.folder(tmp_path, "tree"), {})
    with pytest.raises(UserError, match="found 0 training classes"):
        formats.image_folder(archive.folder(tmp_path / "val", "tree"), {})
