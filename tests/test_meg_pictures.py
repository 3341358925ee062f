"""Folders of pictures and captions: which are found, the split, and data sets in Arrow form."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from picture_folders import numbered, picture, refused, write

from common.parameters import ParameterError
from meg.picture_folder import find_pictures
from meg.pictures import open_pictures


def of(folder: Path) -> list[tuple[str, str]]:
    """Names and captions."""
    return [(p.name, p.caption) for p in find_pictures(folder, "pictures")]


# --- what is found ---


def test_captions_come_from_metadata_and_from_text_files_in_the_order_of_names(tmp_path):
    lines = [{"file_name": "b.png", "text": "bee\n bumble"}, {"file_name": "./in/c.png", "text": None, "label": 3}]
    more = {"file_name": "a.png", "captions": ["first", "second"], "text\u2028": 1}
    files = {
        "b.png": picture(),
        "b.txt": "not this one",
        "a.png": picture(),
        "in/c.png": picture(),
        "in/c.txt": b"\xef\xbb\xbf  see\r\n\tit ",
        "Z.JPG": picture(),
        "csv/d.e.webp": picture(),
        "csv/f.png": picture(),
        "csv/metadata.csv": '\ufefffile_name,prompt\nd.e.webp,"dee, ""D"""\n',
        "csv/f.txt": "eff",
        "metadata.jsonl": "\n".join(map(json.dumps, [*lines, more])) + "\n\n",
        "notes.txt": "no caption",
        ".hidden.png": picture(),
        ".git/g.png": picture(),
    }
    assert of(write(tmp_path, files)) == [
        *(("Z.JPG", ""), ("a.png", "first"), ("b.png", "bee bumble"), ("csv/d.e.webp", 'dee, "D"')),
        *(("csv/f.png", "eff"), ("in/c.png", "see it")),
    ]


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, "it holds no files"),
        ({"a.heic": "x", "b.txt": "y"}, "it holds 2 other files, such as a.heic"),
        ({"a.png": picture(), "a.txt": b"\xff\xfe\xff"}, "a.txt: must be a text file"),
        ({"metadata.jsonl": '{"file_name": "a.png"}\n'}, "line 1: names 'a.png', which is no file in this folder"),
        ({"a.png": picture(), "metadata.jsonl": "\n{'file_name'}\n"}, "metadata.jsonl: line 2: must be a JSON object"),
        ({"a.png": picture(), "metadata.jsonl": "[1]"}, "line 1: must be a JSON object"),
        ({"a.png": picture(), "metadata.jsonl": '{"text": "a"}'}, "line 1: must have the picture's file_name"),
        ({"a.png": picture(), "metadata.jsonl": '{"file_name": "a.png", "text": 5}'}, "must be text, not '5'"),
        ({"a.png": picture(), "metadata.jsonl": '{"file_name": "a.png"}\n' * 2}, "line 2: names 'a.png' a second"),
        ({"a.png": picture(), "metadata.jsonl": '{"file_name": "../a.png"}'}, "names '../a.png', which is no file"),
        ({"a.png": picture(), "metadata.csv": "name,text\na.png,x\n"}, "lacks file_name"),
        ({"a.png": picture(), "metadata.csv": "file_name,text\na.png\n"}, "line 2: has 1 values"),
        ({"a.png": picture(), "metadata.csv": "file_name", "metadata.jsonl": ""}, "must hold one of"),
        ({"a.png": picture(), "metadata.parquet": "x"}, "metadata.parquet: is not read"),
        ({"dataset_dict.json": "{", "a.png": picture()}, "dataset_dict.json"),
    ],
)
def test_folders_that_cannot_be_used_are_refused_in_one_line(tmp_path, files, words, monkeypatch):
    monkeypatch.setattr("meg.arrow_folder.find_spec", lambda name: True)
    message = refused(lambda: find_pictures(write(tmp_path, files), "pictures"))
    assert message.startswith(f"--pictures={tmp_path}") and words in message


def test_no_folder_is_refused(tmp_path):
    for path in (tmp_path / "nowhere", write(tmp_path, {"a.png": picture()}) / "a.png"):
        assert f"--pictures={path}: must be a folder" in refused(lambda path=path: find_pictures(path, "pictures"))


# --- the split ---


def test_the_split_is_by_the_files_hashes_and_lasts_when_pictures_come_or_are_renamed(tmp_path):
    folder = numbered(tmp_path, 60)
    train, test = (open_pictures(folder, split, 0.25) for split in ("train", "test"))
    hashes = {p.name: hashlib.sha256((folder / p.name).read_bytes()).hexdigest() for p in find_pictures(folder, "f")}
    expected = [name for name, h in hashes.items() if int(h, 16) / 2**256 < 0.25]
    assert [p.name for p in test.pictures] == expected and 5 <= len(expected) <= 25
    assert [p.name for p in train.pictures] == [name for name in hashes if name not in expected]
    (folder / expected[0]).rename(folder / "renamed.png")
    write(folder, {"copy.png": (folder / expected[1]).read_bytes()})
    numbered(folder / "more", 0)
    write(folder, {f"more/{i}.png": picture(1000 + i) for i in range(20)})
    after = open_pictures(folder, "test", 0.25)
    names = [p.name for p in after.pictures if not p.name.startswith("more/")]
    assert sorted(names) == sorted([*expected[1:], "renamed.png", "copy.png"])
    assert not set(after.digests) & set(open_pictures(folder, "train", 0.25).digests)
    few = [p.name for p in train.first(5).pictures]
    lowest = sorted((p.name for p in train.pictures), key=hashes.__getitem__)[:5]
    assert few == sorted(lowest) != [p.name for p in train.pictures][:5]


def test_folders_named_for_the_parts_are_the_split_and_no_file_is_in_both(tmp_path):
    def names(split: str) -> list[str]:
        return [p.name for p in open_pictures(tmp_path, split, 0.5).pictures]

    numbered(tmp_path / "train", 6)
    by_hash = names("train"), names("test")  # of a folder that has only one part
    assert sorted(by_hash[0] + by_hash[1]) == [f"train/{i:03}.png" for i in range(6)] and all(by_hash)
    write(tmp_path, {"val/x.png": picture(3), "val/y.png": picture(50)})
    assert names("test") == ["val/x.png", "val/y.png"]
    assert names("train") == [f"train/{i:03}.png" for i in (0, 1, 2, 4, 5)]
    write(tmp_path, {"test/z.png": picture(60)})
    assert names("test") == ["test/z.png"] and len(names("train")) == 6 and len(names("all")) == 9
    write(tmp_path, {"loose.png": picture(70)})  # so that the folders' names say nothing
    assert len(names("test")) + len(names("train")) == 10


def test_a_split_without_pictures_is_refused(tmp_path):
    folder = write(tmp_path, {"a.png": picture()})
    words = {split: "" for split in ("train", "test")}
    for split in words:
        try:
            assert len(open_pictures(folder, split, 0.5)) == 1
        except ParameterError as error:
            words[split] = str(error)
    assert sorted(map(bool, words.values())) == [False, True] and "--split all" in "".join(words.values())


# --- data sets in Arrow form ---


def arrow_part(folder: Path, columns: dict[str, list], shards: int = 1) -> None:
    """A part of a data set as datasets.save_to_disk writes it."""
    import pyarrow

    folder.mkdir(parents=True)
    rows, names = len(next(iter(columns.values()))), []
    for i in range(shards):
        table = pyarrow.table({n: v[i * rows // shards : (i + 1) * rows // shards] for n, v in columns.items()})
        names.append({"filename": f"data-{i:05}-of-{shards:05}.arrow"})
        with pyarrow.ipc.new_stream(folder / names[-1]["filename"], table.schema) as file:
            file.write_table(table)
    write(folder, {"state.json": json.dumps({"_data_files": names}), "dataset_info.json": "{}"})


def test_a_data_set_in_arrow_form_is_read_as_its_files_are(tmp_path):
    pytest.importorskip("pyarrow")
    files = numbered(tmp_path / "files", 6)
    images = [{"bytes": (files / f"{i:03}.png").read_bytes(), "path": f"{i}.png"} for i in range(6)]
    captions = [f"number {i}" for i in range(6)]
    arrow_part(tmp_path / "one", {"label": [*range(6)], "pic": images, "text": captions}, shards=3)
    found, same = (open_pictures(tmp_path / name, "train", 0.4) for name in ("one", "files"))
    assert (found.captions, found.digests) == (same.captions, same.digests) and len(found) > 1
    assert torch.equal(found.load([1], 32), same.load([1], 32))
    arrow_part(tmp_path / "two/train", {"image": images[:4], "caption": [[c, "other"] for c in captions[:4]]})
    arrow_part(tmp_path / "two/test", {"image": images[3:], "caption": [[c] for c in captions[3:]]})
    write(tmp_path / "two", {"dataset_dict.json": '{"splits": ["train", "test"]}'})
    assert open_pictures(tmp_path / "two", "train", 0.4).captions == captions[:3]
    assert open_pictures(tmp_path / "two", "test", 0.4).captions == captions[3:]
    arrow_part(tmp_path / "bare", {"image": [{"bytes": None, "path": "a.png"}], "text": [None]})
    assert "bare: row 0: must be an image" in refused(lambda: open_pictures(tmp_path / "bare", "all", 0.4))
    arrow_part(tmp_path / "none", {"text": captions})
    assert "must have a column of pictures; its columns are text" in refused(
        lambda: find_pictures(tmp_path / "none", "pictures")
    )
    state = json.loads((tmp_path / "one" / "state.json").read_text())
    for name in ("_indices_data_files", "_indices_files"):  # which say that the rows are others
        write(tmp_path / "one", {"state.json": json.dumps(state | {name: [{"filename": "indices.arrow"}]})})
        assert "without a file of indices" in refused(lambda: find_pictures(tmp_path / "one", "pictures"))
    write(tmp_path / "one", {"state.json": json.dumps(state)})
    for path in (tmp_path / "one").glob("*.arrow"):
        path.write_bytes(path.read_bytes()[:100])
    assert "must be whole" in refused(lambda: find_pictures(tmp_path / "one", "pictures"))


def test_arrow_form_without_its_package_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("meg.arrow_folder.find_spec", lambda name: None)
    for files in ({"dataset_dict.json": "{}"}, {"state.json": "{}", "dataset_info.json": "{}"}):
        folder = write(tmp_path / str(len(files)), files)
        words = refused(lambda folder=folder: find_pictures(folder, "pictures"))
        assert (
            words == f"--pictures={folder}: is a data set in Arrow form, which needs the package pyarrow (or datasets)"
        )
