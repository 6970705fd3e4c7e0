"""The recipes' sources at their edges: unusual images, classes, documents, tokenizers and hub datasets."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lightning_gluon.tasks import ImageData, TextData
from lightning_gluon.tasks.data.image_sources import read_folder, read_hub_images
from lightning_gluon.tasks.data.text_sources import Corpus, read_files, read_hub_text, read_python
from lightning_gluon.tasks.data.tokenizer import BPETokenizer, load_tokenizer, train_bpe

Image = pytest.importorskip("PIL.Image")


def encoded(image: Any, kind: str = "PNG") -> bytes:
    """Return the bytes of a file."""
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def write_classes(folder: Path, classes: Sequence[str], count: int = 3) -> None:
    """Write images of one colour per class."""
    for name in classes:
        (folder / name).mkdir(parents=True)
        for i in range(count):
            (folder / name / f"{i}.png").write_bytes(encoded(Image.new("RGB", (4, 4), (ord(name[0]), i, 0))))


# --------------------------------------------------------------------------------------------------------------- images


def test_a_split_that_lacks_a_class_keeps_the_labels(tmp_path: Path) -> None:
    write_classes(tmp_path / "train", ["ant", "bee", "cat"])
    write_classes(tmp_path / "val", ["bee", "cat"])
    val = read_folder(tmp_path)["val"]
    assert val.labels.tolist() == [1, 1, 1, 2, 2, 2]
    assert val.images([0, 5], None)[:, 0, 0, 0].tolist() == [ord("b"), ord("c")]
    write_classes(tmp_path / "test", ["bee", "dog"])
    with pytest.raises(ValueError, match=r"the classes of `train` in .*test', but it also has \['dog'\]"):
        read_folder(tmp_path)


def test_a_folder_with_splits_but_no_training_split(tmp_path: Path) -> None:
    write_classes(tmp_path / "val", ["bee", "cat"])
    with pytest.raises(FileNotFoundError, match=r"a folder `train` in .* beside \['val'\]"):
        read_folder(tmp_path)


def test_training_images_are_not_validated_on(tmp_path: Path) -> None:
    write_classes(tmp_path, ["ant", "bee"])
    with pytest.raises(ValueError, match=r"`val_fraction` > 0 since '.*' has no other split than `train`"):
        ImageData("folder", str(tmp_path), val_fraction=0).setup("fit")


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_images_of_sixteen_bits_are_scaled(tmp_path: Path, kind: str) -> None:
    values = np.array([[0, 257, 300], [32896, 65535, 65535]], np.uint16)
    write_classes(tmp_path, ["ant", "bee"])
    (tmp_path / "ant" / "0.png").write_bytes(encoded(Image.fromarray(values), kind))
    image = read_folder(tmp_path)["train"].images([0], None)[0]
    assert image.dtype == torch.uint8
    assert image.tolist() == [[[0, 1, 1], [128, 255, 255]]] * 3
    (tmp_path / "ant" / "0.png").write_bytes(encoded(Image.fromarray(values.astype(np.float32)), "TIFF"))
    with pytest.raises(ValueError, match=r"0.png' cannot be decoded: .* floating-point numbers"):
        read_folder(tmp_path)["train"].images([0], None)


# ----------------------------------------------------------------------------------------------------------------- text


def test_installed_packages_are_the_same_text_in_another_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(environment: Path) -> Corpus:
        packages = environment / "site-packages"
        for i in range(40):
            (packages / f"package{i}").mkdir(parents=True)
            (packages / f"package{i}" / "module.py").write_text(f"x = {i}\n")
        (packages / "folder.py").mkdir()
        (packages / "gone.py").symlink_to(packages / "nowhere.py")
        paths = {"stdlib": str(tmp_path / "python"), "purelib": str(packages)}
        monkeypatch.setattr("sysconfig.get_paths", lambda: paths)
        return read_python(None, 0.3, packages=True)

    first = read(tmp_path / "here")
    assert first == read(tmp_path / "a longer path")
    assert len(first.train) + len(first.val) == 40


def test_one_long_line_is_cut(tmp_path: Path) -> None:
    (tmp_path / "text8.txt").write_text("word " * 200)
    corpus = read_files(str(tmp_path / "text8.txt"), None, 0.1)
    assert [len(corpus.train[0]), len(corpus.val[0])] == [900, 100]


def test_a_copy_of_a_held_out_file_is_not_trained_on(tmp_path: Path) -> None:
    for name, text in (("train/a", "same"), ("train/b", "other"), ("val/c", "same")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.txt").write_text(text)
    corpus = read_files(str(tmp_path / "train"), None, 0.1, val_path=str(tmp_path / "val"))
    assert (corpus.train, corpus.val) == (["other"], ["same"])


def pretrained(folder: Path, words: str, **special: str) -> str:
    """Write a tokenizer with one id per word, as a model's folder has it, and return the folder."""
    tokenizers = pytest.importorskip("tokenizers")
    vocabulary = {word: i for i, word in enumerate(words.split())}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="?"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    wrapped = pytest.importorskip("transformers").PreTrainedTokenizerFast(tokenizer_object=made, **special)
    wrapped.save_pretrained(folder)
    return str(folder)


def test_tokens_of_a_tokenizer_that_has_changed_are_made_anew(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("cat mat\n" * 200)

    def decoded(words: str) -> str:
        folder = pretrained(tmp_path / "model", words, eos_token="END")
        data = TextData("files", str(tmp_path / "text.txt"), tokenizer=folder, seq_len=8, cache_dir=str(tmp_path / "c"))
        data.setup("fit")
        return data.tokenizer.decode(data.tokens["train"][:2].tolist())

    assert decoded("? END cat mat") == decoded("? END mat cat") == "cat mat"


def test_a_tokenizer_without_an_end(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"with an `eos_token`, which ends a document, but '.*model' has none"):
        load_tokenizer(pretrained(tmp_path / "model", "? cat"))


def test_the_vocabulary_holds_the_largest_id() -> None:
    tokenizers = pytest.importorskip("tokenizers")
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({"END": 0, "cat": 900}, unk_token="END"))
    assert BPETokenizer(made, "END").vocab_size == 901


def test_a_text_that_spells_the_end_of_a_document_goes_on(tmp_path: Path) -> None:
    bpe = train_bpe(["some text"], 300, tmp_path / "bpe.json")
    (tokens,) = bpe.encode(["a<|endoftext|>b"])
    assert tokens.tolist().index(bpe.end) == len(tokens) - 1
    assert bpe.decode(tokens[:-1].tolist()) == "a<|endoftext|>b"


# ------------------------------------------------------------------------------------------------------------------ hub


class Rows(list[Any]):
    """Some rows of a hub dataset."""

    @property
    def column_names(self) -> list[str]:
        return list(self[0])

    def __getitem__(self, key: Any) -> Any:
        return [row[key] for row in self] if isinstance(key, str) else super().__getitem__(key)

    def select_columns(self, name: str) -> Rows:
        return Rows({name: row[name]} for row in self)

    def cast_column(self, name: str, feature: dict[str, bool]) -> Rows:
        assert feature == {"decode": False}
        return self


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> dict[str, Rows]:
    """Return what the hub has, to be filled."""
    found: dict[str, Rows] = {}

    class Datasets:
        """Stands in for the `datasets` package."""

        Image = dict

        @staticmethod
        def load_dataset(*_: Any, trust_remote_code: bool) -> dict[str, Rows]:
            assert not trust_remote_code
            return found

    monkeypatch.setitem(sys.modules, "datasets", Datasets)
    return found


def test_empty_rows_of_a_hub_dataset_are_no_documents(hub: dict[str, Rows]) -> None:
    hub["train"] = Rows({"text": text} for text in ("", "one", None, "two", "three"))
    hub["validation"] = Rows({"text": text} for text in ("four", ""))
    corpus = read_hub_text("some/text", None, 7, 0.1)
    assert (corpus.train, corpus.val) == (["one", "two", "t"], ["four"])
    del hub["validation"]
    hub["train"] = Rows({"text": str(i % 50) if i % 3 else ""} for i in range(400))
    corpus = read_hub_text("some/text", None, None, 0.3)
    assert sorted(corpus.train + corpus.val) == sorted(map(str, range(50)))
    assert 5 < len(corpus.val) < 25


def stored(image: Any) -> dict[str, Any]:
    """Return an image as the hub stores it."""
    return {"bytes": encoded(image), "path": None}


def test_images_of_the_hub(hub: dict[str, Rows]) -> None:
    hub["train"] = Rows({"image": stored(Image.new("L", (6, 4), i)), "label": i % 2} for i in range(10))
    hub["valid"] = Rows({"image": stored(Image.new("RGB", (6, 4), (i, 0, 0))), "label": 1} for i in range(4))
    data = ImageData("hub", "some/images", batch_size=4, image_size=4, mean=[0.0] * 3, std=[1.0] * 3)
    data.setup("fit")
    assert {split: len(source) for split, source in data.splits.items()} == {"train": 10, "val": 4, "test": 4}
    images, labels = next(iter(data.train_dataloader()))
    assert images.shape == (4, 3, 4, 4)
    assert ((255 * images[:, 0, 0, 0]).round().long() % 2).tolist() == labels.tolist()


def test_hub_datasets_without_a_training_split(hub: dict[str, Rows]) -> None:
    hub["test"] = Rows([{"text": "a", "image": None, "label": 0}])
    for read in (lambda: read_hub_text("some/text", None, None, 0.1), lambda: read_hub_images("some/images")):
        with pytest.raises(ValueError, match=r"a split `train` in 'some/.*', but it has \['test'\]"):
            read()


def test_a_hub_image_that_cannot_be_decoded_is_named(hub: dict[str, Rows], tmp_path: Path) -> None:
    (tmp_path / "junk.png").write_bytes(b"junk")
    images = [{"bytes": b"junk", "path": None}, None, {"bytes": None, "path": str(tmp_path / "junk.png")}]
    hub["train"] = Rows({"image": image, "label": 0} for image in images)
    train = read_hub_images("some/images")["train"]
    for row, message in enumerate(
        ["row 0 of 'some/images .train.' cannot", "row 1 of 'some/i.* has none", "junk.png' c"]
    ):
        with pytest.raises(ValueError, match=message):
            train.images([row], None)
    hub["train"] = Rows([{"image": stored(Image.new("L", (6, 4))), "label": -1}])
    with pytest.raises(ValueError, match=r"the label in row 0 of 'some/images \(train\)' is -1"):
        read_hub_images("some/images")


def test_another_column_of_the_hub(hub: dict[str, Rows]) -> None:
    hub["train"] = Rows({"story": f"once {i}"} for i in range(50))
    with pytest.raises(ValueError, match=r"a column `text` in 'some/text', but it has \['story'\]. Set `column`"):
        read_hub_text("some/text", None, None, 0.1)
    assert len(read_hub_text("some/text", None, None, 0.2, column="story").train) > 30
