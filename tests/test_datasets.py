import errno
import gzip
import hashlib
import io
import os
import pickle
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from plywise.compressors.errors import ConfigurationError, DataError
from plywise.env.storage.cache import CacheDamageWarning, cache_folder
from plywise.experiments.commands.study import samples
from plywise.experiments.data import image_folder
from plywise.experiments.data.cached_tensors import read_tensors, write_tensors
from plywise.experiments.data.cifar_batches import CLASSES, TEST_FILES, TRAIN_FILES
from plywise.experiments.data.dataset import Split
from plywise.experiments.data.datasets import CIFAR10_USUAL, load_dataset
from plywise.experiments.data.preprocessing import CHANNELS, MEASURED, Preprocessing, make_preprocessing
from plywise.experiments.data.resizing import resized
from plywise.experiments.data.splits import LabelledImages, assemble, channel_moments, stratified


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PLYWISE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def real_data():
    folder = Path(os.environ.get("PLYWISE_DATA", Path(__file__).resolve().parents[1] / "../shared/data"))
    if not folder.is_dir():
        pytest.skip("no real data: set PLYWISE_DATA to the folder that holds mnist/ and cifar10-jpeg.zip")
    return folder


def encoded(color, size=(6, 4), mode="RGB"):
    buffer = io.BytesIO()
    Image.new(mode, size, color).save(buffer, "PNG")
    return buffer.getvalue()


def write_folder(root, splits=("train", "test"), per_class=6, size=(6, 4)):
    for split in splits:
        for label, name in enumerate(("cat", "dog")):
            folder = root / split / name
            folder.mkdir(parents=True)
            for index in range(per_class):
                (folder / f"{index}.png").write_bytes(encoded((100 * label, index, 7), size))
    return root


def same(a, b):
    return torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels)


# The digits and the cut


def test_digits_have_the_promised_splits():
    data = load_dataset("digits")
    assert [len(data.train), len(data.validation), len(data.test)] == [1077, 360, 360]
    assert data.input_shape == (1, 8, 8)
    assert data.num_classes == 10
    assert int(data.train.images.max()) == 255
    for split in (data.train, data.validation, data.test):
        shares = torch.bincount(split.labels, minlength=10) / len(split)
        assert shares.min() > 0.09


def test_splits_never_change():
    data = load_dataset("digits")
    digest = hashlib.sha256(b"".join(s.images.numpy().tobytes() for s in (data.train, data.validation, data.test)))
    assert digest.hexdigest()[:16] == "277827cc0d1ba83a"


def test_seed_moves_the_validation_split_but_not_the_test_split():
    zero, again, one = load_dataset("digits"), load_dataset("digits", 0), load_dataset("digits", 1)
    assert same(zero.validation, again.validation)
    assert not torch.equal(zero.validation.images, one.validation.images)
    assert same(zero.test, one.test)


def test_cut_is_a_stratified_partition():
    labels = torch.tensor([0] * 50 + [1] * 30 + [2] * 23)
    images = torch.arange(103, dtype=torch.uint8).view(-1, 1, 1, 1)
    rest, chosen = LabelledImages(images, labels).cut(21, seed=3)
    assert torch.bincount(chosen.labels).tolist() == [10, 6, 5]
    assert sorted(torch.cat([rest.images, chosen.images]).flatten().tolist()) == list(range(103))
    assert torch.equal(labels[chosen.images.flatten().long()], chosen.labels)
    assert len(stratified(labels, 21, 3).unique()) == 21


def test_normalisation_and_batches():
    split = load_dataset("digits").train
    inputs = split.inputs()
    assert inputs.dtype == torch.float32
    assert inputs.mean().abs() < 1e-4
    assert abs(inputs.std() - 1) < 1e-3
    batches = list(split.batches(500))
    assert [len(labels) for _, labels in batches] == [500, 500, 77]
    assert torch.equal(torch.cat([images for images, _ in batches]), inputs)
    picked = split.select(torch.tensor([5, 2]))
    assert torch.equal(picked.inputs(), inputs[[5, 2]])
    assert torch.equal(split.inputs(3, 5), inputs[3:5])


def test_moments_are_those_of_each_channel():
    images = torch.randint(0, 256, (9, 2, 5, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    mean, std = channel_moments(images)
    scaled = images.double().transpose(0, 1).flatten(1) / 255
    assert mean == pytest.approx(scaled.mean(1).tolist())
    assert std == pytest.approx(scaled.std(1, unbiased=False).tolist())
    assert channel_moments(torch.zeros(2, 1, 2, 2, dtype=torch.uint8)) == ((0.0,), (1.0,))


def test_too_few_images_to_cut_from():
    few = LabelledImages(torch.zeros(3, 1, 2, 2, dtype=torch.uint8), torch.tensor([0, 0, 1]))
    with pytest.raises(DataError, match="3 training images, 1 in its smallest class"):
        assemble("folder", ("a", "b"), few, few)


def test_the_least_that_is_named_can_be_cut():
    five = LabelledImages(torch.zeros(5, 1, 2, 2, dtype=torch.uint8), torch.tensor([0, 0, 0, 1, 1]))
    with pytest.raises(DataError, match=r"5 training images, 2 in its smallest class.* at least 6, and 2 in each"):
        assemble("folder", ("a", "b"), five, five)
    six = LabelledImages(torch.zeros(6, 1, 2, 2, dtype=torch.uint8), torch.tensor([0, 0, 0, 1, 1, 1]))
    assert len(assemble("folder", ("a", "b"), six, six).validation) == 1


# Specs


@pytest.mark.parametrize("spec", ["digit", "cifar", "imagenet:/x", ""])
def test_unknown_dataset(spec):
    with pytest.raises(ConfigurationError, match="unknown dataset"):
        load_dataset(spec)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("digits:/x", "take no path"),
        ("mnist", "a path is missing"),
        ("folder:", "a path is missing"),
        ("cifar10:/not/there", "/not/there does not exist"),
    ],
)
def test_bad_location(spec, message):
    with pytest.raises(DataError, match=message):
        load_dataset(spec)


# Image folders


def test_folder_zip_and_cache_agree(tmp_path, monkeypatch):
    root = write_folder(tmp_path / "pets")
    archive = tmp_path / "pets.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in root.rglob("*.png"):
            file.write(path, Path("pets") / path.relative_to(root))
    data, zipped = load_dataset(f"folder:{root}"), load_dataset(f"folder:{archive}")
    assert data.classes == zipped.classes == ("cat", "dog")
    assert data.input_shape == (3, 4, 6)
    assert [len(data.train), len(data.validation), len(data.test)] == [11, 1, 12]
    assert same(data.train, zipped.train)
    assert data.test.images[0, :, 0, 0].tolist() == [0, 0, 7]
    monkeypatch.setattr(image_folder, "decode", None)
    assert same(load_dataset(f"folder:{root}").test, data.test)


def test_changed_folder_is_decoded_again(tmp_path):
    root = write_folder(tmp_path / "pets")
    load_dataset(f"folder:{root}")
    (root / "test" / "cat" / "0.png").write_bytes(encoded((9, 9, 9)) + b" ")
    assert load_dataset(f"folder:{root}").test.images[0, 0, 0, 0] == 9


def test_damaged_cache_is_made_again(tmp_path):
    root = write_folder(tmp_path / "pets")
    before = load_dataset(f"folder:{root}")
    (cached,) = cache_folder("images").iterdir()
    cached.write_bytes(cached.read_bytes()[:50])
    with pytest.warns(CacheDamageWarning, match="made again"):
        after = load_dataset(f"folder:{root}")
    assert same(after.train, before.train)


def test_own_validation_folder_is_used(tmp_path):
    data = load_dataset(f"folder:{write_folder(tmp_path / 'pets', ('train', 'val', 'test'))}")
    assert [len(data.train), len(data.validation), len(data.test)] == [12, 12, 12]
    only_val = load_dataset(f"folder:{write_folder(tmp_path / 'two', ('train', 'val'))}")
    assert [len(only_val.train), len(only_val.validation), len(only_val.test)] == [11, 1, 12]


def test_images_of_one_size_stay_as_they_are(tmp_path):
    data = load_dataset(f"folder:{write_folder(tmp_path / 'large', size=(448, 300))}")
    assert data.input_shape == (3, 300, 448)
    assert data.preprocessing == Preprocessing(data.mean, data.std, (300, 448), 1.0, "rgb", MEASURED)
    again = load_dataset(f"folder:{tmp_path / 'large'}", preprocessing=data.preprocessing)
    assert same(again.test, data.test)
    named = load_dataset(f"folder:{tmp_path / 'large'}", preprocessing=make_preprocessing(size="300x448"))
    assert named.preprocessing == data.preprocessing
    assert same(named.test, data.test)


def test_images_of_several_sizes_need_one(tmp_path):
    root = write_folder(tmp_path / "photos")
    (root / "test" / "cat" / "0.png").write_bytes(encoded(40, (3, 5), "L"))
    with pytest.raises(DataError, match=r"photos: the images differ in size: 4x6 \(23 of them\), 5x3 .*--size 224"):
        load_dataset(f"folder:{root}")
    data = load_dataset(f"folder:{root}", preprocessing=make_preprocessing(size=4))
    assert data.input_shape == (3, 4, 4)
    assert data.preprocessing.crop == 0.875
    assert data.test.images[0].unique().tolist() == [40]


def test_more_images_than_memory_holds_are_told(tmp_path, monkeypatch):
    root = write_folder(tmp_path / "pets")
    monkeypatch.setattr(image_folder.os, "sysconf", lambda _: 10)
    with pytest.raises(DataError, match=r"pets: 24 images of 4x6 take .*--size 224"):
        load_dataset(f"folder:{root}")


def gradient(width, height):
    """Each pixel says where it lies: red its column, green its row."""
    columns, rows = np.meshgrid(np.arange(width), np.arange(height))
    return np.stack([columns, rows, np.full_like(rows, 7)], 2).astype(np.uint8)


@pytest.mark.parametrize(
    ("size", "crop", "corner", "shape"),
    [
        ("30x40", 1.0, (0, 0), (30, 40)),
        ("30x30", 1.0, (5, 0), (30, 30)),
        ("24x32", 0.8, (4, 3), (24, 32)),
        ("15x30", 0.5, (5, 8), (15, 30)),  # round half to even, as torchvision does
    ],
)
def test_the_middle_is_cut_out(size, crop, corner, shape):
    to = make_preprocessing(size=size, crop=crop).for_images({(30, 40): 1, (1, 1): 1}, colour=True)
    wide = 60 if size == "15x30" else 40
    found = resized(Image.fromarray(gradient(wide, 30)), to)
    assert found.shape == (3, *shape)
    assert found[:2, 0, 0].tolist() == [corner[0] + (10 if wide == 60 else 0), corner[1]]
    assert found[0].diff(dim=1).unique().tolist() == [1]
    assert found[1].diff(dim=0).unique().tolist() == [1]


@pytest.mark.parametrize(("width", "height", "across", "down"), [(500, 375, 341, 256), (375, 500, 256, 341)])
def test_photos_are_resized_as_torchvision_does(width, height, across, down):
    """`Resize(256)` gives 256 x int(256 * long / short), `CenterCrop(224)` the middle of that."""
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))
    to = make_preprocessing(size=224).for_images({(height, width): 1}, colour=True)
    left, top = round((across - 224) / 2), round((down - 224) / 2)
    whole = photo.resize((across, down), Image.Resampling.BILINEAR)
    expected = np.array(whole.crop((left, top, left + 224, top + 224)))
    assert np.array_equal(resized(photo, to).permute(1, 2, 0).numpy(), expected)


def test_channels_come_in_the_order_that_is_asked_for(tmp_path):
    spec = f"folder:{write_folder(tmp_path / 'pets')}"
    rgb, bgr, gray = (load_dataset(spec, preprocessing=make_preprocessing(channels=name)) for name in CHANNELS)
    assert same(rgb.test, load_dataset(spec).test)
    assert torch.equal(bgr.test.images, rgb.test.images.flip(1))
    assert (bgr.mean, bgr.std) == (rgb.mean[::-1], rgb.std[::-1])
    assert gray.input_shape == (1, 4, 6)
    assert [data.preprocessing.channels for data in (rgb, bgr, gray)] == ["rgb", "bgr", "gray"]


def test_built_in_images_take_size_and_channels_too():
    whole, data = (
        load_dataset("digits"),
        load_dataset("digits", preprocessing=make_preprocessing(size=12, channels="rgb")),
    )
    assert data.input_shape == (3, 12, 12)
    assert data.preprocessing.covering == (14, 14)
    assert torch.equal(data.test.images[:, 0], data.test.images[:, 2])
    assert torch.equal(data.test.labels, whole.test.labels)
    assert data.mean[0] == pytest.approx(whole.mean[0], abs=0.1)


def test_usual_numbers_follow_the_order_of_channels(tmp_path):
    spec = f"cifar10:{write_python_batches(tmp_path / 'py')}"
    found = load_dataset(spec, preprocessing=make_preprocessing(channels="bgr"))
    assert found.mean == (0.406, 0.456, 0.485)
    assert torch.equal(found.test.images, load_dataset(spec).test.images.flip(1))
    assert load_dataset(spec, preprocessing=make_preprocessing(channels="gray")).preprocessing.source == MEASURED


@pytest.mark.parametrize(("name", "channels"), [("train/dog/5.png", 3), ("test/dog/5.png", 1)])
def test_colour_in_any_training_image_decides(tmp_path, name, channels):
    root = write_folder(tmp_path / "grey")
    for path in root.rglob("*.png"):
        path.write_bytes(encoded(40, mode="L"))
    (root / name).write_bytes(encoded((9, 8, 7)))
    assert load_dataset(f"folder:{root}").input_shape == (channels, 4, 6)


def test_images_of_16_bits_keep_their_levels(tmp_path):
    root = write_folder(tmp_path / "deep")
    levels = np.array([[0, 257, 257 * 100], [30_000, 65_000, 65_535]], np.uint16)
    for path in root.rglob("*.png"):
        Image.fromarray(levels).save(path)
    data = load_dataset(f"folder:{root}")
    assert data.train.images[0].tolist() == [[[0, 1, 100], [117, 253, 255]]]


@pytest.mark.parametrize("content", [b"", b"no image", encoded((1, 2, 3))[:45]])
@pytest.mark.parametrize("name", ["train/cat/0.png", "test/dog/3.png"])
def test_damaged_image_is_named(tmp_path, name, content):
    root = write_folder(tmp_path / "pets")
    (root / name).write_bytes(content)
    with pytest.raises(DataError, match=f"image {name} cannot be decoded"):
        load_dataset(f"folder:{root}")


def test_classes_must_agree(tmp_path):
    root = write_folder(tmp_path / "pets")
    (root / "test" / "dog").rename(root / "test" / "hamster")
    with pytest.raises(DataError, match="'dog', 'hamster'"):
        load_dataset(f"folder:{root}")


def test_several_datasets_are_not_mixed(tmp_path):
    for name in ("a/pets", "b"):
        write_folder(tmp_path / name)
    with pytest.raises(DataError, match="several datasets, for example at a/pets/test/ and b/test/; name the folder"):
        load_dataset(f"folder:{tmp_path}")
    assert load_dataset(f"folder:{tmp_path / 'a'}").num_classes == 2


@pytest.mark.parametrize("zipped", [False, True])
def test_class_folders_without_images_are_told(tmp_path, zipped):
    root = write_folder(tmp_path / "pets")
    (root / "train" / "bird").mkdir()
    (root / "train" / "fish").mkdir()
    (root / "train" / "fish" / "0.tif").write_bytes(b"")
    (root / "train" / ".notes").mkdir()
    if zipped:
        root = Path(shutil.make_archive(str(root), "zip", root))
    with pytest.warns(UserWarning, match=r"no images .* directly in train/bird/, train/fish/, so"):
        assert load_dataset(f"folder:{root}").classes == ("cat", "dog")


def test_no_images(tmp_path):
    (tmp_path / "train" / "cat").mkdir(parents=True)
    (tmp_path / "train" / "cat" / "notes.txt").write_text("none")
    with pytest.raises(DataError, match="found no image"):
        load_dataset(f"folder:{tmp_path}")
    with pytest.raises(DataError, match="found train/"):
        load_dataset(f"folder:{write_folder(tmp_path / 'one', ('train',))}")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 and no more"])
def test_bad_archive(tmp_path, content):
    (tmp_path / "images.zip").write_bytes(content)
    with pytest.raises(DataError, match=r"images\.zip is no readable zip archive"):
        load_dataset(f"folder:{tmp_path / 'images.zip'}")


# MNIST


def write_idx(path, array):
    header = bytes((0, 0, 8, array.ndim)) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    path.write_bytes(gzip.compress(header + array.astype(np.uint8).tobytes()))


@pytest.fixture
def tiny_mnist(tmp_path):
    folder = tmp_path / "mnist"
    folder.mkdir()
    for part, count in (("train", 100), ("t10k", 20)):
        labels = np.arange(count) % 10
        write_idx(folder / f"{part}-images-idx3-ubyte.gz", np.tile(labels[:, None, None], (1, 4, 4)))
        write_idx(folder / f"{part}-labels-idx1-ubyte.gz", labels)
    return folder


def test_mnist_is_read(tiny_mnist):
    data = load_dataset(f"mnist:{tiny_mnist}")
    assert [len(data.train), len(data.validation), len(data.test)] == [90, 10, 20]
    for split in (data.train, data.validation, data.test):
        assert torch.equal(split.images[:, 0, 3, 3].long(), split.labels)


def test_missing_mnist_file_is_named(tiny_mnist):
    (tiny_mnist / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(DataError, match=r"lacks t10k-labels-idx1-ubyte\.gz"):
        load_dataset(f"mnist:{tiny_mnist}")


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:-12],
        lambda content: b"plain" + content,
        lambda content: gzip.compress(gzip.decompress(content)[:-1]),
        lambda content: gzip.compress(gzip.decompress(content)[:5]),
        lambda content: gzip.compress(b"\0\0\x0d\3" + gzip.decompress(content)[4:]),
    ],
)
def test_damaged_mnist_file_is_named(tiny_mnist, damage):
    path = tiny_mnist / "train-images-idx3-ubyte.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte\.gz"):
        load_dataset(f"mnist:{tiny_mnist}")


def test_mnist_parts_must_fit(tiny_mnist):
    write_idx(tiny_mnist / "t10k-labels-idx1-ubyte.gz", np.arange(19) % 10)
    with pytest.raises(DataError, match=r"20 images but .* 19 labels"):
        load_dataset(f"mnist:{tiny_mnist}")
    write_idx(tiny_mnist / "t10k-labels-idx1-ubyte.gz", np.arange(20))
    with pytest.raises(DataError, match="label 19"):
        load_dataset(f"mnist:{tiny_mnist}")


# CIFAR-10's original files


def batch_values(index):
    return np.random.default_rng(index).integers(0, 256, (20, 3072), np.uint8), np.arange(20) % 10


def write_python_batches(folder):
    folder.mkdir()
    for index, name in enumerate(TRAIN_FILES + TEST_FILES):
        values, labels = batch_values(index)
        (folder / name).write_bytes(pickle.dumps({b"data": values, b"labels": labels.tolist()}, protocol=4))
    return folder


def write_binary_batches(folder):
    folder.mkdir()
    for index, name in enumerate(TRAIN_FILES + TEST_FILES):
        values, labels = batch_values(index)
        rows = np.concatenate([labels[:, None].astype(np.uint8), values], 1)
        (folder / f"{name}.bin").write_bytes(rows.tobytes())
    return folder


def test_both_original_forms_agree(tmp_path):
    python = load_dataset(f"cifar10:{write_python_batches(tmp_path / 'cifar-10-batches-py')}")
    binary = load_dataset(f"cifar10:{write_binary_batches(tmp_path / 'bin')}")
    found = load_dataset(f"cifar10:{tmp_path}")
    assert python.classes == CLASSES
    assert (python.mean, python.std) == (CIFAR10_USUAL["rgb"].mean, CIFAR10_USUAL["rgb"].std)
    assert python.preprocessing.source == "usual for the dataset"
    assert [len(python.train), len(python.validation), len(python.test)] == [90, 10, 20]
    for other in (binary, found):
        assert same(python.train, other.train)
        assert same(python.test, other.test)
    assert np.array_equal(python.test.images.view(20, -1).numpy(), batch_values(5)[0])


def test_batch_written_by_python_2(tmp_path):
    folder = write_python_batches(tmp_path / "py")
    values, _ = batch_values(9)
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        b"(K\x01K\x02M\x00\x0c\x86cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R"
        b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
        b"T" + (2 * 3072).to_bytes(4, "little") + values[:2].tobytes() + b"tb"
    )
    (folder / "test_batch").write_bytes(b"\x80\x02}(U\x04data" + array + b"U\x06labels](K\x03K\x07eu.")
    test = load_dataset(f"cifar10:{folder}").test
    assert test.labels.tolist() == [3, 7]
    assert np.array_equal(test.images.view(2, -1).numpy(), values[:2])


class Hostile:
    def __reduce__(self):
        return os.mkdir, ("owned",)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_hostile_batch_is_refused_and_not_run(tmp_path, monkeypatch, protocol):
    monkeypatch.chdir(tmp_path)
    folder = write_python_batches(tmp_path / "py")
    (folder / "data_batch_2").write_bytes(pickle.dumps(Hostile(), protocol=protocol))
    with pytest.raises(DataError, match=r"data_batch_2 is refused: it asks for .*mkdir"):
        load_dataset(f"cifar10:{folder}")
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        pickle.dumps({b"data": np.zeros((2, 3072), np.uint8), b"labels": [1, 2]})[:-200],
        pickle.dumps([1, 2]),
        pickle.dumps({b"data": np.zeros((2, 3072), np.float32), b"labels": [1, 2]}, protocol=4),
        pickle.dumps({b"data": np.zeros((2, 3072), np.uint8), b"labels": [1, 12]}, protocol=4),
        pickle.dumps({b"data": np.zeros((2, 100), np.uint8), b"labels": [1, 2]}, protocol=4),
    ],
)
def test_damaged_batch_is_named(tmp_path, content):
    folder = write_python_batches(tmp_path / "py")
    (folder / "test_batch").write_bytes(content)
    with pytest.raises(DataError, match="test_batch"):
        load_dataset(f"cifar10:{folder}")


def test_damaged_or_missing_binary_batch_is_named(tmp_path):
    folder = write_binary_batches(tmp_path / "bin")
    (folder / "test_batch.bin").write_bytes(b"\0" * 3000)
    with pytest.raises(DataError, match=r"test_batch\.bin has 3000 bytes"):
        load_dataset(f"cifar10:{folder}")
    (folder / "test_batch.bin").unlink()
    with pytest.raises(DataError, match=r"lacks test_batch\.bin"):
        load_dataset(f"cifar10:{folder}")


def test_other_images_are_no_cifar10(tmp_path):
    with pytest.raises(DataError, match=r"2 classes of \(3, 4, 6\) images"):
        load_dataset(f"cifar10:{write_folder(tmp_path / 'pets')}")


# Files


def test_cache_folder_must_be_writable(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PLYWISE_CACHE", str(tmp_path / "file"))
    with pytest.raises(ConfigurationError, match="set PLYWISE_CACHE"):
        cache_folder("zoo")


def test_failed_write_leaves_the_old_file_alone(tmp_path, monkeypatch):
    path = tmp_path / "x.safetensors"
    write_tensors(path, {"a": torch.ones(2)})
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_tensors(path, {"a": torch.zeros(2)})
    tensors = read_tensors(path)
    assert tensors is not None
    assert tensors["a"].tolist() == [1, 1]
    assert list(tmp_path.iterdir()) == [path]


# Real data


def test_real_mnist(real_data):
    data = load_dataset(f"mnist:{real_data / 'mnist'}")
    assert [len(data.train), len(data.validation), len(data.test)] == [54000, 6000, 10000]
    assert data.mean == pytest.approx((0.1307,), abs=1e-3)
    assert data.std == pytest.approx((0.3081,), abs=1e-3)


def test_some_real_cifar10_images(real_data, tmp_path):
    with zipfile.ZipFile(real_data / "cifar10-jpeg.zip") as archive:
        for name in archive.namelist():
            if name.endswith(("/0000.jpg", "/0001.jpg", "/0002.jpg")):
                archive.extract(name, tmp_path / "some")
    data = load_dataset(f"cifar10:{tmp_path / 'some'}")
    assert data.classes == CLASSES
    assert data.input_shape == (3, 32, 32)
    assert len(data.test) == 30
    assert (data.mean, data.std) == (CIFAR10_USUAL["rgb"].mean, CIFAR10_USUAL["rgb"].std)


def test_a_choice_of_samples_is_not_the_first_class_only():
    labels = torch.arange(10).repeat_interleave(100)
    split = Split(torch.zeros(1000, 1, 2, 2, dtype=torch.uint8), labels, (0.0,), (1.0,))
    chosen = samples(split, 200).labels
    assert len(chosen) == 200
    assert len(chosen.unique()) == 10
    assert (samples(split, 200).labels == chosen).all()
    assert (samples(split).labels == labels).all()
