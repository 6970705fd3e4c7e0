"""The recipes' data: what is held out, which order it comes in, how it resumes, what bad input says."""

from __future__ import annotations

import io
import multiprocessing
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_gluon.cli.count_epochs import CountEpochs
from lightning_gluon.tasks import ImageData, ResumableLoader, TextData
from lightning_gluon.tasks.data.cache import atomic_write, digest
from lightning_gluon.tasks.data.image_sources import read_parquet, resize
from lightning_gluon.tasks.data.images import random_crop
from lightning_gluon.tasks.data.loader import EpochSampler
from lightning_gluon.tasks.data.text import PackedTokens
from lightning_gluon.tasks.data.text_sources import read_files, read_python
from lightning_gluon.tasks.data.tokenizer import ByteTokenizer, train_bpe

pa = pytest.importorskip("pyarrow")
import pyarrow.parquet as pq  # noqa: E402


def png(value: int, size: tuple[int, int] = (4, 4)) -> bytes:
    """Return an encoded image of one colour."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", size, (value, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def write_parquet(path: Path, values: list[int], *, image: str = "img", label: str = "label") -> None:
    """Write images of one colour each, their label the colour modulo 3."""
    images = [{"bytes": png(v), "path": None} for v in values]
    pq.write_table(pa.table({image: images, label: [v % 3 for v in values]}), path)


# ---------------------------------------------------------------------------------------------------- order and resume


def test_sampler_is_a_function_of_seed_and_epoch() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        sampler = EpochSampler(range(50), shuffle=True, seed=seed)
        sampler.set_epoch(epoch)
        torch.rand(3)  # the global generator has no say
        return list(sampler)

    orders = {(s, e): order(s, e) for s in (0, 1) for e in (0, 1)}
    assert all(sorted(o) == list(range(50)) for o in orders.values())
    assert len({tuple(o) for o in orders.values()}) == 4  # also seed 0 epoch 1 against seed 1 epoch 0
    assert order(1, 1) == orders[1, 1]


def test_processes_share_an_epoch_without_overlap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_gluon.tasks.data.loader.dist.is_initialized", lambda: True)
    monkeypatch.setattr("lightning_gluon.tasks.data.loader.dist.get_world_size", lambda: 2)
    parts = []
    for rank in (0, 1):
        monkeypatch.setattr("lightning_gluon.tasks.data.loader.dist.get_rank", lambda rank=rank: rank)
        parts.append([b.tolist() for b in ResumableLoader(range(12), batch_size=3, seed=0)])
    assert sorted(x for part in parts for batch in part for x in batch) == list(range(12))


@pytest.mark.parametrize("workers", [0, 2])
def test_loader_resumes_inside_an_epoch(workers: int) -> None:
    def loader(num_workers: int) -> ResumableLoader:
        return ResumableLoader(range(20), batch_size=3, seed=1, num_workers=num_workers)

    full = loader(0)
    full.sampler.set_epoch(2)
    expected = [b.tolist() for b in full]
    assert len(expected) == 6  # the last, partial batch is dropped

    first = loader(workers)
    first.sampler.set_epoch(2)
    iterator = iter(first)
    head = [next(iterator).tolist() for _ in range(4)]
    state = first.state_dict()
    assert state == {"epoch": 2, "batches": 4}  # batches handed out, not those that workers have prefetched
    iterator.close()

    second = loader(workers)
    second.load_state_dict(state)
    assert head + [b.tolist() for b in second] == expected
    second.sampler.set_epoch(3)
    assert len(list(second)) == 6  # the offset is used once


def test_workers_shut_down() -> None:
    loader = ResumableLoader(range(20), batch_size=2, num_workers=2)
    iterator = iter(loader)
    next(iterator)
    assert len(multiprocessing.active_children()) >= 2
    iterator.close()
    assert not multiprocessing.active_children()


class Recorder(LightningModule):
    """A module that writes down what it is trained on."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.seen: list[list[int]] = []

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        self.seen.append(batch.tolist())
        return self.layer(batch[:, None].float()).sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-6)


def run(tmp_path: Path, workers: int, **kwargs: Any) -> list[list[int]]:
    """Fit three epochs of five batches, or what `kwargs` say, and return the data in the order it was seen."""
    ckpt_path = kwargs.pop("ckpt_path", None)
    save_at = kwargs.pop("save_at", None)
    module = Recorder()
    saver = (
        ModelCheckpoint(tmp_path, filename="{step}", save_top_k=-1, every_n_train_steps=save_at) if save_at else None
    )
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=save_at is not None,
        callbacks=[CountEpochs(), saver] if saver else [CountEpochs()],
        enable_progress_bar=False,
        enable_model_summary=False,
        **kwargs,
    )
    trainer.fit(module, ResumableLoader(range(11), batch_size=2, seed=0, num_workers=workers), ckpt_path=ckpt_path)
    return module.seen


@pytest.mark.parametrize("stop", [{"max_epochs": 3}, {"max_steps": 15}], ids=["epochs", "steps"])
@pytest.mark.parametrize(("at", "workers"), [(3, 0), (5, 0), (7, 0), (10, 0), (7, 2), (10, 2)])
def test_trainer_resumes_with_the_batches_that_remain(tmp_path: Path, stop: dict, at: int, workers: int) -> None:
    expected = run(tmp_path, 0, **stop)
    assert len(expected) == 15
    assert expected[:5] != expected[5:10]
    first = run(tmp_path, workers, save_at=at, **stop)
    assert first == expected
    resumed = run(tmp_path, workers, ckpt_path=tmp_path / f"step={at}.ckpt", **stop)
    assert resumed == expected[at:]


@pytest.mark.parametrize("stop", [{"max_epochs": 3}, {"max_steps": 15}], ids=["epochs", "steps"])
def test_a_chain_of_resumes_sees_every_batch_once(tmp_path: Path, stop: dict) -> None:
    expected = run(tmp_path, 0, **stop)
    run(tmp_path, 0, save_at=5, **stop)
    (tmp_path / "step=10.ckpt").unlink()
    middle = run(tmp_path, 0, save_at=5, ckpt_path=tmp_path / "step=5.ckpt", **stop)
    assert middle == expected[5:]
    assert run(tmp_path, 0, ckpt_path=tmp_path / "step=10.ckpt", **stop) == expected[10:]


@pytest.mark.parametrize("workers", [0, 1])
def test_overfit_batches_repeats_the_first(tmp_path: Path, workers: int) -> None:
    assert run(tmp_path, workers, overfit_batches=2, max_epochs=2) == 2 * [[0, 1], [2, 3]]
    persistent = ResumableLoader(range(4), batch_size=2, num_workers=workers, persistent_workers=workers > 0)
    assert [len(list(persistent)) for _ in range(2)] == [2, 2]


# --------------------------------------------------------------------------------------------------------------- images


def test_digits_are_split_without_overlap() -> None:
    data = ImageData(batch_size=32, val_fraction=0.2, seed=3)
    data.setup("fit")
    sizes = {name: len(split) for name, split in data.splits.items()}
    assert sizes == {"train": 1150, "val": 287, "test": 360}
    assert data.num_classes == 10
    images_of = {n: {bytes(i) for i in s.pixels.flatten(1).numpy()} for n, s in data.splits.items()}
    assert not images_of["train"] & images_of["test"]
    assert not images_of["train"] & images_of["val"]
    x, y = next(iter(data.train_dataloader()))
    assert x.shape == (32, 1, 8, 8)
    assert y.dtype == torch.int64
    assert abs(x.mean()) < 0.2  # standardised
    assert abs(x.std() - 1) < 0.2


def test_another_seed_holds_out_other_images() -> None:
    first, second, again = (ImageData(seed=s) for s in (0, 1, 0))
    for data in (first, second, again):
        data.setup("fit")
    assert torch.equal(first.splits["val"].pixels, again.splits["val"].pixels)
    assert not torch.equal(first.splits["val"].pixels, second.splits["val"].pixels)


def test_limit_and_no_validation_split() -> None:
    data = ImageData(limit=100, val_fraction=0.0)
    data.setup("fit")
    assert len(data.splits["train"]) == 100
    assert data.splits["val"] is data.splits["test"]


def test_random_crop_and_flip_move_whole_images() -> None:
    image = torch.arange(16, dtype=torch.uint8).view(1, 1, 4, 4) + 1
    images = image.expand(64, 1, 4, 4)
    out = random_crop(images, 1, torch.Generator().manual_seed(0))
    padded = torch.nn.functional.pad(image, [1] * 4)[0, 0]
    crops = {bytes(padded[i : i + 4, j : j + 4].flatten().tolist()) for i in range(3) for j in range(3)}
    assert {bytes(o.flatten().tolist()) for o in out} == crops  # all nine places, nothing else


def test_augmentation_is_a_function_of_seed_and_epoch() -> None:
    data = ImageData(crop_padding=1, flip=True, seed=0)
    data.setup("fit")
    dataset = data.dataset("train")
    first = dataset.__getitems__([1, 2, 3])[0]
    torch.rand(5)
    assert torch.equal(first, dataset.__getitems__([1, 2, 3])[0])
    dataset.set_epoch(1)
    assert not torch.equal(first, dataset.__getitems__([1, 2, 3])[0])
    plain = data.dataset("val")
    assert (plain.crop_padding, plain.flip) == (0, False)


def test_parquet_in_the_hubs_layout(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train-00000.parquet", list(range(8)))
    write_parquet(tmp_path / "train-00001.parquet", list(range(8, 12)))
    write_parquet(tmp_path / "test.parquet", [200, 201], image="image", label="fine_label")
    splits = read_parquet(tmp_path)
    assert set(splits) == {"train", "test"}
    assert splits["train"].pixels[:, 0, 0, 0].tolist() == list(range(12))  # type: ignore[index]
    assert splits["train"].labels.tolist() == [v % 3 for v in range(12)]
    assert splits["test"].pixels[:, 0, 0, 0].tolist() == [200, 201]  # type: ignore[index]
    data = ImageData("parquet", str(tmp_path), batch_size=2, image_size=8, val_fraction=0.25)
    data.setup("fit")
    assert next(iter(data.val_dataloader()))[0].shape == (2, 3, 8, 8)


def test_folder_of_images(tmp_path: Path) -> None:
    for split, count in (("train", 4), ("val", 2)):
        for label in ("cat", "dog"):
            folder = tmp_path / split / label
            folder.mkdir(parents=True)
            for i in range(count):
                (folder / f"{i}.png").write_bytes(png(i, size=(6, 4 + i)))
    data = ImageData("folder", str(tmp_path), batch_size=4, image_size=4)
    data.setup("fit")
    assert {n: len(s) for n, s in data.splits.items()} == {"train": 8, "val": 4, "test": 4}
    images, labels = next(iter(data.train_dataloader()))
    assert images.shape == (4, 3, 4, 4)
    assert set(labels.tolist()) <= {0, 1}
    ragged = ImageData("folder", str(tmp_path), batch_size=8)
    ragged.setup("fit")
    with pytest.raises(ValueError, match="images of one shape"):
        next(iter(ragged.train_dataloader()))


def test_resize_keeps_constant_images_and_crops_the_middle() -> None:
    images = torch.full((1, 3, 8, 12), 7, dtype=torch.uint8)
    assert torch.equal(resize(images, 4), torch.full((1, 3, 4, 4), 7, dtype=torch.uint8))
    assert resize(images, None) is images


# ----------------------------------------------------------------------------------------------------------------- text


def test_packed_windows_predict_every_token_once() -> None:
    tokens = np.arange(101, dtype=np.uint32)
    packed = PackedTokens(tokens, 10)
    targets = torch.cat([packed[i][1:] for i in range(len(packed))])
    assert targets.tolist() == list(range(1, 101))


def test_the_end_of_a_single_file_is_held_out() -> None:
    corpus = read_python(500, 0.2)  # of any Python, the first file alone
    assert corpus == read_python(500, 0.2) and all(map(any, (corpus.train, corpus.val)))
    assert 100 <= len("".join(corpus.val)) < 500 and len("".join(corpus.train + corpus.val)) <= 500


def test_python_sources_are_stable_and_disjoint() -> None:
    small, large = read_python(200_000, 0.1), read_python(600_000, 0.1)
    assert small == read_python(200_000, 0.1)
    assert not set(large.train) & set(large.val)
    assert small.train == large.train[: len(small.train)]  # more text is the same text and some more
    assert set(small.val) <= set(large.val)
    assert 200_000 <= sum(map(len, small.train + small.val)) < 600_000


def test_one_file_is_cut_at_a_line(tmp_path: Path) -> None:
    lines = [f"line {i}\n" for i in range(100)]
    (tmp_path / "a.txt").write_text("".join(lines))
    corpus = read_files(str(tmp_path / "a.txt"), None, 0.1)
    (train,), (val,) = corpus.train, corpus.val
    assert train + val == "".join(lines)
    assert train.endswith("\n")
    assert 0.05 < len(val) / len(train + val) < 0.15


def test_a_folder_is_split_by_file_and_copies_count_once(tmp_path: Path) -> None:
    for i in range(40):
        (tmp_path / f"{i}.txt").write_text(f"text {i % 30}")
    corpus = read_files(str(tmp_path), None, 0.3)
    assert len(corpus.train) + len(corpus.val) == 30
    assert not set(corpus.train) & set(corpus.val)
    assert corpus.val
    named = read_files(str(tmp_path / "0.txt"), None, 0.3, val_path=str(tmp_path / "1.txt"))
    assert (named.train, named.val) == (["text 0"], ["text 1"])


@pytest.mark.parametrize("max_bytes", [None, 500])
def test_two_files_are_cut_like_one(tmp_path: Path, max_bytes: int | None) -> None:
    for name in ("test", "valid"):  # the checksums of both names say the same
        (tmp_path / f"{name}.txt").write_text("".join(f"{name} {i}\n" for i in range(100)))
    corpus = read_files(str(tmp_path), max_bytes, 0.1)
    (train,), (val,) = corpus.train, corpus.val
    whole = (tmp_path / "test.txt").read_text() + (tmp_path / "valid.txt").read_text()
    assert train + val == whole[:max_bytes]
    assert train.endswith("\n")
    assert 0.05 < len(val) / len(train + val) < 0.15


def test_bpe_round_trips_and_is_cached(tmp_path: Path) -> None:
    documents = ["def f(x):\n    return x + 1\n" * 5, "größer 😀\n"]
    cache = tmp_path / "bpe.json"
    bpe = train_bpe(documents, 300, cache)
    stamp = cache.stat().st_mtime_ns
    tokens = list(train_bpe(["other"], 300, cache).encode(documents))
    assert cache.stat().st_mtime_ns == stamp
    assert [bpe.decode(t[:-1]) for t in tokens] == documents
    assert all(t[-1] == bpe.end for t in tokens)
    assert max(t.max() for t in tokens) < bpe.vocab_size <= 300
    assert len(tokens[0]) < len(documents[0])  # it compresses
    fresh = train_bpe(documents, 300, tmp_path / "again.json")
    assert [t.tolist() for t in fresh.encode(documents)] == [t.tolist() for t in tokens]


def test_bytes_round_trip() -> None:
    tokenizer = ByteTokenizer()
    (tokens,) = tokenizer.encode(["größer"])
    assert tokenizer.decode(tokens.tolist()) == "größer"


def test_text_data_reads_its_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def data() -> TextData:
        made = TextData(max_bytes=100_000, seq_len=32, batch_size=4, vocab_size=300, cache_dir=str(tmp_path), seed=0)
        made.prepare_data()
        return made

    first = data()
    first.setup("fit")
    files = sorted(p.name for p in tmp_path.iterdir())
    assert len(files) == 3  # a tokenizer and two splits, no temporary file
    monkeypatch.setattr("lightning_gluon.tasks.data.text.np.save", lambda *_: pytest.fail("tokenized twice"))
    second = data()
    second.setup("fit")
    batch = next(iter(first.train_dataloader()))
    assert batch.shape == (4, 33)
    assert batch.max() < first.vocab_size
    assert torch.equal(batch, next(iter(second.train_dataloader())))
    train, val = (first.tokens[s] for s in ("train", "val"))
    assert val.tobytes() not in train.tobytes()


def test_atomic_write_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), atomic_write(tmp_path / "a"):
        raise RuntimeError
    assert not list(tmp_path.iterdir())
    assert digest(["a"]) != digest(["a", ""])


# ------------------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda _: ImageData("digitz"), r"`source` to be one of \['digits', 'folder', 'hub', 'parquet'\]"),
        (lambda _: ImageData("parquet"), r"`path` with source='parquet'"),
        (lambda _: TextData("pithon"), r"`source` to be one of python, packages, files, hub"),
        (lambda _: TextData("hub"), r"`path` with source='hub': a hub id"),
        (lambda _: ResumableLoader(range(3), batch_size=4), r"at least one full batch .* 3 samples for batch_size=4"),
        (lambda p: train_bpe([], 10, p / "x"), r"`vocab_size` >= 257 .* got 10"),
        (lambda p: read_parquet(p), r"`train\*.parquet` in .* no parquet file.*source='digits'"),
        (lambda p: ImageData("folder", str(p / "none")).setup("fit"), r"one folder of images per class"),
        (lambda p: read_files(str(p / "none"), None, 0.1), r"to be a text file or a folder .* source='python'"),
    ],
)
def test_bad_input(tmp_path: Path, make: Any, message: str) -> None:
    with pytest.raises((ValueError, OSError, ModuleNotFoundError), match=message):
        make(tmp_path)


def test_unreadable_parquet(tmp_path: Path) -> None:
    (tmp_path / "train.parquet").write_bytes(b"not parquet")
    with pytest.raises(ValueError, match="readable parquet file"):
        read_parquet(tmp_path)
    pq.write_table(pa.table({"x": [1], "label": [0]}), tmp_path / "train.parquet")
    with pytest.raises(ValueError, match=re.escape("a column out of ('img', 'image')")):
        read_parquet(tmp_path)
    pq.write_table(pa.table({"img": [{"bytes": b"junk"}], "label": [0]}), tmp_path / "train.parquet")
    with pytest.raises(ValueError, match="an encoded image"):
        read_parquet(tmp_path)
    pq.write_table(
        pa.table({"img": pa.array([], pa.binary()), "label": pa.array([], pa.int64())}), tmp_path / "train.parquet"
    )
    with pytest.raises(ValueError, match="have no rows"):
        read_parquet(tmp_path)


def test_empty_or_short_text(tmp_path: Path) -> None:
    empty = tmp_path / "a.txt"
    empty.write_text("")
    with pytest.raises(ValueError, match=r"split is empty.*source='python'"):
        read_files(str(empty), None, 0.1)
    with pytest.raises(ValueError, match="share no file"):
        read_files(str(tmp_path), None, 0.1, val_path=str(empty))
    empty.write_text("short\n" * 10)
    data = TextData("files", str(empty), tokenizer="bytes", seq_len=64, cache_dir=str(tmp_path / "cache"))
    with pytest.raises(ValueError, match=r"at least `seq_len` \+ 1 = 65 tokens in the train split"):
        data.setup("fit")


def test_hub_ids_without_a_network(tmp_path: Path) -> None:
    with pytest.raises(ConnectionError, match="tokenizer='bpe'"):
        TextData(tokenizer="Qwen/Qwen2.5-0.5B", max_bytes=1000, cache_dir=str(tmp_path)).setup("fit")


class NoNetwork:
    """Stands in for the `datasets` package on a machine without a network."""

    @staticmethod
    def load_dataset(*args: Any, **kwargs: Any) -> None:
        raise OSError("no route to host")


def test_hub_datasets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", NoNetwork)
    with pytest.raises(ConnectionError, match=r"Salesforce/wikitext.*source='python' \(embedded"):
        TextData("hub", "Salesforce/wikitext", hub_config="wikitext-103-raw-v1").setup("fit")
    with pytest.raises(ConnectionError, match=r"uoft-cs/cifar10.*source='digits' \(embedded"):
        ImageData("hub", "uoft-cs/cifar10").setup("fit")
