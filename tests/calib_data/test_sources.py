"""Every kind of data source: what it reads, in which order, and how it refuses bad folders."""

from __future__ import annotations

import io
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from source_protocol import check_protocol

from clipq.calib_data.source import DEFAULT_TEMPLATES, MAX_ENCODED_BYTES
from clipq.calib_data.table import SOURCES, open_source
from clipq.errors import ClipqError, DataError, MissingRuntimeError, UsageError


def refused(data_id: str, kind: type[ClipqError], *words: str, split: str | None = None) -> None:
    """Assert that a data id is refused with one line that holds these words."""
    with pytest.raises(kind) as caught:
        open_source(data_id, split=split)
    line = str(caught.value)
    assert "\n" not in line
    assert caught.value.exit_code == kind.exit_code
    for word in words:
        assert word in line


# --- the table ---


@pytest.mark.parametrize(("data_id", "near"), [("wdss:x", "wds"), ("imagefoldr:x", "imagefolder"), ("synthetc:scenes", "synthetic")])
def test_unknown_kind_suggests_the_nearest(data_id: str, near: str) -> None:
    """A misspelt kind of data id is a usage error that names the nearest."""
    refused(data_id, UsageError, f"Did you mean {near!r}?")


@pytest.mark.parametrize("scheme", sorted(SOURCES))
def test_nothing_after_the_colon(scheme: str) -> None:
    """An empty path is never taken for the current folder."""
    refused(f"{scheme}:", UsageError, "nothing follows the colon")


@pytest.mark.parametrize("scheme", ["wds", "imagefolder", "imglist"])
def test_missing_folder(scheme: str, tmp_path: Path) -> None:
    """A path that does not exist is a usage error that names it."""
    refused(f"{scheme}:{tmp_path}/none", UsageError, f"no data set at {tmp_path.resolve()}/none")


@pytest.mark.parametrize(("scheme", "words"), [("wds", "no webdataset"), ("imagefolder", "no class folders"), ("hf", "no parquet files")])
def test_empty_folder(scheme: str, words: str, tmp_path: Path) -> None:
    """A folder with nothing in it is a data error that says what should be there."""
    refused(f"{scheme}:{tmp_path}", DataError, words, "expected")


def test_a_file_where_a_folder_belongs(tmp_path: Path) -> None:
    """A file given as a folder, or a folder given as a list, is said so."""
    (tmp_path / "file").write_text("x")
    refused(f"wds:{tmp_path}/file", UsageError, "is not a folder")
    refused(f"imglist:{tmp_path}", UsageError, "is not a file")


# --- wds ---


def test_wds_reads_in_order(make_wds: Callable[..., Path], image: Callable[..., bytes]) -> None:
    """Shards are read in order, with labels, names, templates and the bytes as they were packed."""
    folder = make_wds(shards=((2, 0), (1,)))
    source = open_source(f"wds:{folder}")
    samples = list(source.read())
    assert source.id == f"wds:{folder.resolve()}:test"
    assert (len(source), source.classnames, source.templates) == (3, ("cat", "dog", "owl"), ("a photo of a {c}.", "a {c}."))
    assert [sample.id for sample in samples] == ["0.tar/s0000.jpg", "0.tar/s0001.jpg", "1.tar/s0002.jpg"]
    assert [sample.label for sample in samples] == source.labels.tolist() == [2, 0, 1]
    assert [sample.data for sample in samples] == [image(0), image(1), image(2)]


def test_wds_reads_chosen_positions(make_wds: Callable[..., Path]) -> None:
    """Chosen positions give the same samples as a full pass, across shards."""
    source = open_source(f"wds:{make_wds(shards=((0, 1), (2, 0), (1, 2)))}")
    everything = list(source.read())
    for positions in ([0], [1, 2, 5], [3, 4], [], list(range(6))):
        assert list(source.read(positions)) == [everything[position] for position in positions]


def test_wds_splits(make_wds: Callable[..., Path]) -> None:
    """The split comes from the id, the caller's overrides it, and an unknown one is named with the nearest."""
    folder = make_wds(split="train")
    assert open_source(f"wds:{folder}:train").id == f"wds:{folder.resolve()}:train"
    assert open_source(f"wds:{folder}:other", split="train").id == f"wds:{folder.resolve()}:train"
    refused(f"wds:{folder}", UsageError, "unknown split", "'test'", "expected one of train")
    refused(f"wds:{folder}:trian", UsageError, "Did you mean 'train'?")


def test_wds_without_labels_is_for_ood(tmp_path: Path, image: Callable[..., bytes], tar_of: Callable[..., None]) -> None:
    """Images without .cls have label -1, and no class names are needed."""
    tar_of(tmp_path / "test" / "0.tar", {"a.png": image(0, kind="PNG"), "b.webp": image(1, kind="WEBP"), "b.json": b"{}"})
    (tmp_path / "test" / "nshards.txt").write_text("1")
    source = open_source(f"wds:{tmp_path}")
    assert (source.labels.tolist(), source.classnames, source.templates) == ([-1, -1], (), DEFAULT_TEMPLATES)


def test_label_outside_range(make_wds: Callable[..., Path]) -> None:
    """A label without a class name is named with its place."""
    refused(f"wds:{make_wds(shards=((0, 1, 2, 3),))}", DataError, "label outside range", "found 3 at image 3", "0 to 2")


def test_class_without_images(make_wds: Callable[..., Path]) -> None:
    """A class name without images is named, with both counts."""
    refused(f"wds:{make_wds(shards=((0, 2),))}", DataError, "class 'dog'", "has no images", "3 class names but images of 2")


def test_wds_needs_class_names_for_labels(make_wds: Callable[..., Path]) -> None:
    """Labels without names cannot be scored."""
    folder = make_wds()
    (folder / "classnames.txt").unlink()
    refused(f"wds:{folder}", DataError, "labels but no class names")


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("classnames.txt", "cat\n\nowl\n", "empty line"),
        ("classnames.txt", "", "empty line"),
        ("zeroshot_classification_templates.txt", "a photo\n", "without a class name"),
        ("test/nshards.txt", "two", "cannot read"),
        ("test/nshards.txt", "0", "names no tar file"),
        ("test/nshards.txt", "3", "cannot read"),
    ],
)
def test_wds_broken_text_files(make_wds: Callable[..., Path], file: str, content: str, words: str) -> None:
    """Each text file of the layout is checked, and the line names it."""
    folder = make_wds()
    (folder / file).write_text(content)
    refused(f"wds:{folder}", DataError, words, str(folder.resolve()))


@pytest.mark.parametrize("keep", [0.3, 0.6, 0.95])
def test_truncated_tar(make_wds: Callable[..., Path], keep: float) -> None:
    """A tar file that was cut anywhere is refused, never read as a shorter one."""
    folder = make_wds()
    path = folder / "test" / "1.tar"
    with tarfile.open(path) as tar:
        end = tar.getmembers()[-1].offset_data + tarfile.BLOCKSIZE
    path.write_bytes(path.read_bytes()[: int(end * keep)])
    refused(f"wds:{folder}", DataError, f"cannot read {path.resolve()}", "expected a whole tar file")


def test_tar_cut_between_two_members(make_wds: Callable[..., Path]) -> None:
    """A cut exactly between two images leaves no broken member, and is still refused."""
    folder = make_wds()
    path = folder / "test" / "0.tar"
    with tarfile.open(path) as tar:
        cut = tar.getmembers()[2].offset
    path.write_bytes(path.read_bytes()[:cut])
    refused(f"wds:{folder}", DataError, "the end of the archive is missing")


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ({"../a.jpg": b"x"}, "leaves the archive"),
        ({"/etc/a.jpg": b"x"}, "leaves the archive"),
        ({"a.jpg": b"x", "a.cls": b"cat"}, "no number"),
        ({"a.jpg": b"x", "a.cls": b"0", "b.cls": b"1"}, "labels without an image"),
        ({"a.jpg": b"x", "a.cls": b"0", "b.jpg": b"1"}, "images without a label"),
        ({"readme.txt": b"x"}, "no images"),
    ],
)
def test_wds_wrong_members(make_wds: Callable[..., Path], tar_of: Callable[..., None], members: dict[str, bytes], words: str) -> None:
    """Members that would be dropped in silence, or lead out of the archive, are errors."""
    folder = make_wds(shards=((0,),))
    tar_of(folder / "test" / "0.tar", members)
    refused(f"wds:{folder}", DataError, words)


def test_wds_refuses_links(make_wds: Callable[..., Path]) -> None:
    """A link in an archive is not followed."""
    folder = make_wds(shards=((0,),))
    with tarfile.open(folder / "test" / "0.tar", "w") as tar:
        info = tarfile.TarInfo("a.jpg")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(info, io.BytesIO())
    refused(f"wds:{folder}", DataError, "holds a link")


@pytest.mark.shared
@pytest.mark.parametrize(("name", "n", "classes"), [("cifar10", 5000, 10), ("tiny_imagenet", 5000, 200), ("pneumoniamnist", 1584, 2)])
def test_wds_shared_photographs(shared_data: Path, name: str, n: int, classes: int) -> None:
    """The shared photographs open with as many images and classes as they have."""
    source = open_source(f"wds:{shared_data / name}")
    assert (len(source), len(source.classnames)) == (n, classes)
    assert [sample.id for sample in source.read([n - 1])] == [f"0.tar/s{n - 1:07d}.{'png' if name.startswith('p') else 'jpg'}"]


# --- imagefolder ---


def test_imagefolder(make_imagefolder: Callable[..., Path]) -> None:
    """Classes are sorted folders, images are found at any depth and sorted, other files are left out."""
    folder = make_imagefolder()
    (folder / "cat" / "notes.txt").write_text("x")
    (folder / ".cache").mkdir()
    source = open_source(f"imagefolder:{folder}")
    samples = list(source.read())
    assert (source.id, source.classnames, source.templates) == (f"imagefolder:{folder.resolve()}", ("cat", "dog"), DEFAULT_TEMPLATES)
    assert [(sample.id, sample.label) for sample in samples] == [("cat/a.png", 0), ("cat/b.jpg", 0), ("dog/deep/c.jpg", 1)]
    assert all(sample.data == (folder / sample.id).read_bytes() for sample in samples)
    assert list(source.read([1])) == samples[1:2]


def test_imagefolder_classnames(make_imagefolder: Callable[..., Path]) -> None:
    """``classnames.txt`` names the sorted folders, and must name each."""
    folder = make_imagefolder()
    (folder / "classnames.txt").write_text("a cat\na dog\n")
    assert open_source(f"imagefolder:{folder}").classnames == ("a cat", "a dog")
    (folder / "classnames.txt").write_text("a cat\n")
    refused(f"imagefolder:{folder}", DataError, "found 1 names and 2 class folders")


def test_imagefolder_class_without_images(make_imagefolder: Callable[..., Path]) -> None:
    """An empty class folder is named."""
    refused(f"imagefolder:{make_imagefolder({'cat': ['a.jpg'], 'dog': []})}", DataError, "class 'dog'", "has no images")


def test_file_too_large_or_gone_is_still_a_sample(make_imagefolder: Callable[..., Path]) -> None:
    """A file that vanishes is empty, and of a giant one no more is read than shows its size."""
    folder = make_imagefolder({"cat": ["a.jpg", "b.jpg"]})
    source = open_source(f"imagefolder:{folder}")
    (folder / "cat" / "a.jpg").unlink()
    with (folder / "cat" / "b.jpg").open("r+b") as stream:
        stream.truncate(MAX_ENCODED_BYTES + 1000)
    gone, giant = source.read()
    assert (gone.data, len(giant.data)) == (b"", MAX_ENCODED_BYTES + 1)


# --- imglist ---


def test_imglist(make_imagefolder: Callable[..., Path], tmp_path: Path) -> None:
    """Order and labels are those of the list; names may hold blanks; the root is the list's folder or the one that is named."""
    folder = make_imagefolder({"cat": ["a.jpg", "b 2.jpg"], "dog": ["c.jpg"]})
    text = "dog/c.jpg 1\ncat/b 2.jpg 0\ncat/a.jpg 0\n"
    (folder / "list.txt").write_text(text)
    (tmp_path / "elsewhere.txt").write_text(text)
    for data_id in (f"imglist:{folder}/list.txt", f"imglist:{tmp_path}/elsewhere.txt@{folder}"):
        source = open_source(data_id)
        assert source.id == data_id
        assert [(sample.id, sample.label) for sample in source.read()] == [("dog/c.jpg", 1), ("cat/b 2.jpg", 0), ("cat/a.jpg", 0)]
    assert source.classnames == ()
    (folder / "classnames.txt").write_text("cat\ndog\n")
    assert open_source(f"imglist:{folder}/list.txt").classnames == ("cat", "dog")


@pytest.mark.parametrize("lines", ["cat/a.jpg\ncat/b.jpg", "cat/a.jpg -1\ncat/b.jpg -1"])
def test_imglist_without_labels(make_imagefolder: Callable[..., Path], lines: str) -> None:
    """No label, or -1, means that the images belong to no class."""
    folder = make_imagefolder({"cat": ["a.jpg", "b.jpg"]})
    (folder / "list.txt").write_text(lines)
    (folder / "classnames.txt").write_text("cat\n")
    source = open_source(f"imglist:{folder}/list.txt")
    assert (source.labels.tolist(), source.classnames) == ([-1, -1], ())


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("cat/a.jpg 0\ncat/none.jpg 0", "1 of 2 images"),
        ("../images/cat/a.jpg 0", "outside its folder"),
        ("/etc/passwd", "outside its folder"),
        ("cat/a.jpg 0\ncat/a.jpg 7", "label outside range"),
        ("cat/a.jpg 0\ncat/a.jpg", "label outside range"),
        ("", "empty line"),
    ],
)
def test_imglist_bad_lines(make_imagefolder: Callable[..., Path], lines: str, words: str) -> None:
    """A missing image, one outside the root, a label without a name and an empty list are errors."""
    folder = make_imagefolder({"cat": ["a.jpg"]})
    (folder / "list.txt").write_text(lines)
    (folder / "classnames.txt").write_text("cat\n")
    refused(f"imglist:{folder}/list.txt", DataError, words)


# --- hf (local parquet) ---


def test_parquet_folder(make_parquet: Callable[..., None], tmp_path: Path, image: Callable[..., bytes]) -> None:
    """A folder laid out as on the hub gives the files of the split in order, with the class names of its metadata."""
    make_parquet(tmp_path / "data" / "test-00001-of-00002.parquet", [1, 0])
    make_parquet(tmp_path / "data" / "test-00000-of-00002.parquet", [0, 1, 1, 0, 1])
    make_parquet(tmp_path / "data" / "train-00000-of-00001.parquet", [0, 1])
    source = open_source(f"hf:{tmp_path}")
    samples = list(source.read())
    assert (source.id, source.classnames) == (f"hf:{tmp_path.resolve()}:test", ("cat", "dog"))
    assert source.labels.tolist() == [sample.label for sample in samples] == [0, 1, 1, 0, 1, 1, 0]
    assert [sample.data for sample in samples] == [image(row) for row in (0, 1, 2, 3, 4, 0, 1)]
    assert samples[5].id == "test-00001-of-00002.parquet/00000005"
    for positions in ([6], [0, 3, 4], [1, 2, 5], []):
        assert list(source.read(positions)) == [samples[position] for position in positions]
    assert len(open_source(f"hf:{tmp_path}@main:train")) == 2
    assert open_source(f"hf:{tmp_path}@main:train").id == f"hf:{tmp_path.resolve()}@main:train"


@pytest.mark.parametrize("name", ["test.parquet", "test/0000.parquet", "data/test-00000-of-00001-0123abcd.parquet"])
def test_parquet_file_names(make_parquet: Callable[..., None], tmp_path: Path, name: str) -> None:
    """Every way the hub names the files of a split is found, and a single file can be given."""
    make_parquet(tmp_path / name, [0, 1])
    assert len(open_source(f"hf:{tmp_path}")) == 2
    assert open_source(f"hf:{tmp_path / name}").id == f"hf:{(tmp_path / name).resolve()}"


def test_parquet_without_metadata(make_parquet: Callable[..., None], tmp_path: Path) -> None:
    """Without stated features the usual column names count, and ``classnames.txt`` can give the names."""
    make_parquet(tmp_path / "test.parquet", [0, 1], names=None)
    assert open_source(f"hf:{tmp_path}").classnames == ()
    (tmp_path / "classnames.txt").write_text("a\nb\n")
    assert open_source(f"hf:{tmp_path}").classnames == ("a", "b")


def test_parquet_hidden_labels(make_parquet: Callable[..., None], tmp_path: Path) -> None:
    """A test split whose labels are all -1 or missing has no classes."""
    make_parquet(tmp_path / "test.parquet", [-1, None])
    source = open_source(f"hf:{tmp_path}")
    assert (source.labels.tolist(), source.classnames) == ([-1, -1], ())


def test_parquet_refusals(make_parquet: Callable[..., None], tmp_path: Path) -> None:
    """A hub name, an unknown split, a file that is no parquet, and labels that do not fit are one line each."""
    refused("hf:org/name@main:test", UsageError, "not a local folder", "not downloaded", "fetch the parquet files first")
    make_parquet(tmp_path / "test.parquet", [0, 2])
    refused(f"hf:{tmp_path}:tset", UsageError, "Did you mean 'test'?")
    refused(f"hf:{tmp_path}", DataError, "label outside range", "found 2 at image 1")
    make_parquet(tmp_path / "test.parquet", [0, 0])
    refused(f"hf:{tmp_path}", DataError, "class 'dog'", "has no images")
    (tmp_path / "test.parquet").write_bytes(b"PAR1 no")
    refused(f"hf:{tmp_path}", DataError, "cannot read", "expected a parquet file")


def test_parquet_wrong_columns(tmp_path: Path) -> None:
    """No image column, two label columns and labels that are words are refused, with what was found."""
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    images = pa.array([{"bytes": b"x", "path": None}], pa.struct({"bytes": pa.binary(), "path": pa.string()}))
    path = tmp_path / "test.parquet"
    parquet.write_table(pa.table({"text": ["x"]}), path)
    refused(f"hf:{path}", DataError, "no image column", "found text (string)")
    parquet.write_table(pa.table({"image": images, "label": ["cat"]}), path)
    refused(f"hf:{path}", DataError, "'label'", "found string", "expected integers")
    parquet.write_table(pa.table({"image": ["x.jpg"], "label": [0]}), path)
    refused(f"hf:{path}", DataError, "no image column", "found image (string)", "the fields bytes and path")
    table = pa.table({"image": images, "fine": [0], "coarse": [0]}).replace_schema_metadata(
        {"huggingface": '{"info": {"features": {"fine": {"_type": "ClassLabel"}, "coarse": {"_type": "ClassLabel"}}}}'}
    )
    parquet.write_table(table, path)
    refused(f"hf:{path}", DataError, "several label columns", "fine, coarse")


def test_parquet_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without pyarrow the error names the extra that brings it."""
    monkeypatch.setattr("clipq.calib_data.parquet.find_spec", lambda _name: None)
    refused(f"hf:{tmp_path}", MissingRuntimeError, "clipq[report]")


# --- all ---


def test_sources_load_on_demand() -> None:
    """Opening the table loads no parquet library."""
    import subprocess

    code = "import sys, clipq.calib_data.table; print('pyarrow' in sys.modules, 'PIL' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False False\n"


@pytest.mark.parametrize(
    "scheme", ["hf", "imagefolder", "imglist", "synthetic", "wds"]
)  # published benchmarks have theirs beside their tests
def test_every_source_keeps_the_protocol(
    scheme: str,
    make_wds: Callable[..., Path],
    make_imagefolder: Callable[..., Path],
    make_parquet: Callable[..., None],
    tmp_path: Path,
) -> None:
    """Ids are unique, labels are known beforehand, positions choose, and the canonical id opens the same data again."""
    folder = make_imagefolder()
    (folder / "list.txt").write_text("cat/a.png 0\ndog/deep/c.jpg 1\n")
    make_parquet(tmp_path / "hub" / "test.parquet", [0, 1])
    places = {"hf": tmp_path / "hub", "imagefolder": folder, "imglist": folder / "list.txt", "synthetic": "scenes", "wds": make_wds()}
    check_protocol(f"{scheme}:{places[scheme]}")
