"""Hostile and mistaken data: one sentence that names the option, or the file and the row."""

from __future__ import annotations

import io
import os
import re
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lightning_gluon.tasks import ImageData, TextData
from lightning_gluon.tasks.data.encoded import EncodedImage, ImageFile
from lightning_gluon.tasks.data.image_sources import read_folder, read_parquet
from lightning_gluon.tasks.data.text_files import read_text
from lightning_gluon.tasks.data.text_sources import read_files
from lightning_gluon.tasks.data.tokenizer import train_bpe

pa = pytest.importorskip("pyarrow")
Image = pytest.importorskip("PIL.Image")
import pyarrow.parquet as pq  # noqa: E402


def says(error: type[Exception], message: str, make: Callable[[], Any]) -> None:
    """Assert that a call says something in one line."""
    with pytest.raises(error, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


# -------------------------------------------------------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("batch_size", 0),
        ("image_size", 0),
        ("crop_padding", -1),
        ("val_fraction", -0.1),
        ("val_fraction", 1.0),
        ("val_fraction", float("nan")),
        ("limit", -1),
        ("limit", 0),
        ("num_workers", -1),
        ("std", [0.0]),
        ("std", [0.2, -0.2, 0.2]),
        ("mean", [float("nan")]),
    ],
)
def test_options_of_images(option: str, value: Any) -> None:
    says(ValueError, f"^Expected `{option}` to .* but got ", lambda: ImageData(**{option: value}))


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("seq_len", 0),
        ("batch_size", -1),
        ("val_fraction", -0.1),
        ("val_fraction", 1.5),
        ("max_bytes", 0),
        ("max_val_sequences", 0),
        ("num_workers", -1),
        ("vocab_size", 10),
    ],
)
def test_options_of_text(option: str, value: Any) -> None:
    says(ValueError, f"^Expected `{option}` .* but got {value}", lambda: TextData(**{option: value}))


def test_means_that_do_not_fit_the_channels() -> None:
    says(ValueError, "one `mean` per channel, 1 in all, but got 3", lambda: ImageData(mean=[0.5] * 3).setup("fit"))
    ImageData(mean=[0.5], std=[0.5]).setup("fit")


# --------------------------------------------------------------------------------------------------------------- images


def picture(size: tuple[int, int] = (4, 4)) -> bytes:
    """Return an encoded image of one colour."""
    buffer = io.BytesIO()
    Image.new("RGB", size, (7, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def write_rows(path: Path, images: list[Any], labels: list[Any]) -> Path:
    """Write a table of encoded images."""
    pq.write_table(pa.table({"img": [{"bytes": image} for image in images], "label": labels}), path)
    return path


@pytest.mark.parametrize("label", [-1, 0.5, 10**9, None, "cat", float("nan")])
def test_a_label_that_is_no_class_is_named(tmp_path: Path, label: Any) -> None:
    labels = ["a", "b", label] if isinstance(label, str) else [0, 1, label]
    file = write_rows(tmp_path / "train.parquet", [picture()] * 3, labels)
    row = 0 if isinstance(label, str) else 2
    says(ValueError, f"label in row {row} of '{file}' is", lambda: read_parquet(tmp_path))


def test_too_few_images_to_hold_some_out(tmp_path: Path) -> None:
    write_rows(tmp_path / "train.parquet", [picture()], [0])
    data = ImageData("parquet", str(tmp_path))
    says(ValueError, "more images than the 1 that are held out, but got 1. Lower `val_fr", lambda: data.setup("fit"))


def test_whole_labels_may_be_floats(tmp_path: Path) -> None:
    write_rows(tmp_path / "train.parquet", [picture()] * 2, [0.0, 2.0])
    assert read_parquet(tmp_path)["train"].labels.tolist() == [0, 2]


@pytest.mark.parametrize(("image", "message"), [(b"junk", "cannot be decoded"), (None, "has none"), (b"", "cannot be")])
def test_an_image_that_is_none_is_named(tmp_path: Path, image: bytes | None, message: str) -> None:
    write_rows(tmp_path / "train-0.parquet", [picture()], [0])
    file = write_rows(tmp_path / "train-1.parquet", [picture(), image], [0, 1])
    says(ValueError, f"row 1 of '{file}' {message}", lambda: read_parquet(tmp_path))


def bomb(width: int, height: int) -> bytes:
    """Return a PNG of one bit per pixel that decodes to far more than it takes."""
    rows = zlib.compress(bytes(height * (width // 8 + 1)), 9)
    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([1, 0, 0, 0, 0])
    chunks = [(b"IHDR", header), (b"IDAT", rows), (b"IEND", b"")]
    blob = b"\x89PNG\r\n\x1a\n"
    for kind, data in chunks:
        blob += len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")
    return blob


@pytest.mark.parametrize("side", [7000, 20_000])
@pytest.mark.filterwarnings("ignore:.*decompression bomb.*")
def test_a_decompression_bomb_is_not_decoded(monkeypatch: pytest.MonkeyPatch, side: int) -> None:
    monkeypatch.setattr(Image.Image, "convert", lambda *_: pytest.fail("decoded"))
    blob = bomb(side, side)
    assert len(blob) < 60_000
    says(ValueError, "row 3 of 'a.parquet' cannot be decoded: .*pixels", EncodedImage(blob, "a.parquet", 3).pixels)


def test_a_format_that_runs_another_program_is_none(tmp_path: Path) -> None:
    script = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n%%EndComments\nshowpage\n%%EOF\n"
    says(ValueError, "cannot be decoded: its format is not known", EncodedImage(script, "a.parquet", 0).pixels)


def test_a_link_to_an_endless_device_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    link = tmp_path / "cat" / "0.png"
    link.symlink_to("/dev/zero")
    source = read_folder(tmp_path)["train"]
    says(ValueError, f"'{link}' is a device, a pipe or a link to nothing", lambda: source.images([0], None))
    (tmp_path / "train.parquet").symlink_to("/dev/zero")
    says(ValueError, "train.parquet' is a device, a pipe", lambda: read_parquet(tmp_path))
    (tmp_path / "text.txt").symlink_to("/dev/zero")
    says(FileNotFoundError, "text.txt' is a device, a pipe", lambda: read_files(str(tmp_path), None, 0.1))
    says(FileNotFoundError, "to be a text file or a fo", lambda: read_files(str(tmp_path / "text.txt"), None, 0.1))
    (tmp_path / "text.txt").unlink()
    os.mkfifo(tmp_path / "text.txt")
    says(FileNotFoundError, "text.txt' is a device, a pipe", lambda: read_files(str(tmp_path), None, 0.1))


def test_an_image_file_that_is_cut_off_is_named(tmp_path: Path) -> None:
    whole = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(whole, "PNG")
    for length in (0, 10, 40, 200, 2000):
        file = tmp_path / f"{length}.png"
        file.write_bytes(whole.getvalue()[:length])
        says(ValueError, f"'{file}' cannot be decoded", ImageFile(str(file)).pixels)


# ----------------------------------------------------------------------------------------------------------------- text


@pytest.mark.parametrize(
    "blob",
    [
        "plain words\n".encode("utf-16") * 50,
        "plain words\n".encode("utf-32-le") * 50,
        "漢字かな交じり文".encode("utf-16-le") * 50,
        "naïve café".encode("latin-1") * 50,
        zlib.compress(bytes(range(256)) * 20),
        np.random.default_rng(0).integers(1, 256, 5000, np.uint8).tobytes(),
        picture(),
    ],
    ids=["utf16", "utf32", "utf16-han", "latin1", "zlib", "random-without-nul", "png"],
)
def test_what_is_no_text_is_not_trained_on(tmp_path: Path, blob: bytes) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes(blob)
    for path in (file, tmp_path):
        says(ValueError, f"Expected .*text.* '{file}'", lambda path=path: read_files(str(path), None, 0.1))


def test_a_compressed_file_is_not_trained_on(tmp_path: Path) -> None:
    import gzip

    file = tmp_path / "a.jsonl.gz"
    file.write_bytes(gzip.compress(b'{"text": "words"}\n' * 100))
    data = TextData("files", str(file), cache_dir=str(tmp_path))
    says(ValueError, f"'{file}' .*Unpack it", data.prepare_data)


def test_text_with_a_stray_byte_is_text(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes(b"\xef\xbb\xbf" + b"plain words\n" * 100 + b"caf\xe9\n" + "\ufffd".encode() * 50)
    text = read_text(file)
    assert text.startswith("plain")
    assert text.count("\ufffd") == 51


def write_parquet(file: Path, rows: list[Any], column: str) -> None:
    pq.write_table(pa.table({column: rows, "other": [0] * len(rows)}), file)


def write_json(file: Path, rows: list[Any], column: str) -> None:
    import json

    file.write_text("".join(json.dumps({column: row, "other": 0}) + "\n" for row in rows))


TABLES = {".parquet": write_parquet, ".jsonl": write_json, ".ndjson": write_json}


@pytest.mark.parametrize("suffix", TABLES)
@pytest.mark.parametrize("column", ["text", "story"])
def test_tables_are_read_by_column(tmp_path: Path, suffix: str, column: str) -> None:
    rows = [f"größer {i}\nline" for i in range(100)]
    TABLES[suffix](tmp_path / f"a{suffix}", [*rows, None, "", rows[0]], column)
    for path in (tmp_path, tmp_path / f"a{suffix}"):
        corpus = read_files(str(path), None, 0.2, column=column)
        assert sorted(corpus.train + corpus.val) == sorted(rows)
        assert 5 < len(corpus.val) < 40


@pytest.mark.parametrize("suffix", TABLES)
def test_a_table_trains(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"a{suffix}"
    TABLES[suffix](file, [f"some text {i}" for i in range(200)], "text")
    data = TextData("files", str(file), tokenizer="bytes", seq_len=16, batch_size=2, cache_dir=str(tmp_path / "c"))
    data.setup("fit")
    decoded = data.tokenizer.decode(data.tokens["train"].tolist())
    assert re.fullmatch(r"(some text \d+)+", decoded)


@pytest.mark.parametrize("suffix", TABLES)
def test_a_table_without_the_column_is_named(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"a{suffix}"
    TABLES[suffix](file, ["words"], "story")
    says(ValueError, f"a column 'text'.*{re.escape(str(file))}.*story.*Set `column`", lambda: read_all(file))
    TABLES[suffix](file, [3], "text")
    says(ValueError, f"Expected text in column 'text', but (row 0|line 1) of '{file}' has 3", lambda: read_all(file))


def read_all(file: Path) -> Any:
    return read_files(str(file), None, 0.1)


@pytest.mark.parametrize("line", ['{"text": "cut o', "words", "[1]", "[" * 100_000])
def test_a_line_that_is_no_json_is_named(tmp_path: Path, line: str) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "words"}\n\n' + line)
    says(ValueError, f"one JSON object per line, but line 3 of '{file}' is", lambda: read_all(file))


def test_half_a_character_in_json_does_not_end_the_run(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a\\ud800b"}\n')
    corpus = read_files(str(tmp_path / "a.jsonl"), None, 0.4)
    assert "".join(corpus.train + corpus.val) == "a?b"


def test_a_parquet_file_that_is_cut_off_is_named(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    write_parquet(file, ["words"] * 100, "text")
    file.write_bytes(file.read_bytes()[:100])
    says(ValueError, f"a readable parquet file, but '{file}' is not", lambda: read_all(file))


def test_text_without_spaces_trains_in_seconds(tmp_path: Path) -> None:
    letters = np.random.default_rng(0).integers(97, 123, 300_000, np.uint8).tobytes().decode()
    start = time.process_time()
    bpe = train_bpe([letters], 1024, tmp_path / "bpe.json")
    (tokens,) = bpe.encode([letters])
    assert time.process_time() - start < 15  # about one second; it grew with the square of the length
    assert bpe.decode(tokens[:-1].tolist()) == letters
    assert len(tokens) < 0.6 * len(letters)


# ---------------------------------------------------------------------------------------------------------------- cache


@pytest.mark.parametrize("kept", [0, 20, -1])
@pytest.mark.parametrize("pattern", ["tokens-*-train.npy", "tokens-*-val.npy", "bpe-*.json"])
def test_a_cache_file_that_is_cut_off_is_named_and_made_anew(tmp_path: Path, pattern: str, kept: int) -> None:
    (tmp_path / "a.txt").write_text("some words of a text\n" * 400)

    def tokens() -> dict[str, list[int]]:
        data = TextData("files", str(tmp_path / "a.txt"), vocab_size=300, seq_len=16, cache_dir=str(tmp_path / "c"))
        data.setup("fit")
        return {split: array.tolist() for split, array in data.tokens.items()}

    whole = tokens()
    (file,) = (tmp_path / "c").glob(pattern)
    blob = file.read_bytes()
    file.write_bytes(blob[:kept])
    with pytest.warns(UserWarning, match=f"The file '{re.escape(str(file))}' of the cache cannot be read and is made"):
        assert tokens() == whole
    assert file.read_bytes() == blob
    assert tokens() == whole  # without a warning
