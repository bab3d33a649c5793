"""Image arrays, digits, splits, augmentation and batches.

Sets read from files: test_data_files.py and test_data_folders.py.
"""

import pickle
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch

from rlprune.config import DataConfig
from rlprune.data import (
    ImageArrays,
    ImageSet,
    augment,
    channel_statistics,
    epoch_order,
    iterate_batches,
    load_image_set,
    normalize,
    stratified_split,
    subsample,
)
from rlprune.errors import DataError


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def one_hot(count: int, channels: int, side: int, row: int, column: int) -> np.ndarray:
    images = np.zeros((count, channels, side, side), dtype=np.uint8)
    images[:, :, row, column] = 200
    images.flags.writeable = False
    return images


def some_arrays(count: int = 10) -> ImageArrays:
    """Image i is filled with the value i; its label is i % 3. Read-only, as Ray's are."""
    images = np.repeat(np.arange(count, dtype=np.uint8), 3 * 8 * 8).reshape(count, 3, 8, 8)
    labels = np.arange(count, dtype=np.int64) % 3
    images.flags.writeable = labels.flags.writeable = False
    return ImageArrays(images, labels)


@pytest.fixture(scope="module")
def digits() -> ImageSet:
    return load_image_set(DataConfig(name="digits"), seed=0)


# --- digits -----------------------------------------------------------------


def test_digits_sizes_and_description(digits: ImageSet) -> None:
    # 1797 images, classes of 178 182 177 183 181 182 181 179 174 180; a fifth of each,
    # rounded, is 36 36 35 37 36 36 36 36 35 36 = 359 for testing.
    assert len(digits.test) == 359
    assert np.bincount(digits.test.labels).tolist() == [36, 36, 35, 37, 36, 36, 36, 36, 35, 36]
    # A tenth of the remaining 142 146 142 146 145 146 145 143 139 144 is
    # 14 15 14 15 14 15 14 14 14 14 = 143 (142 -> 14.2, 145 -> 14.5 -> 14, half to even).
    assert len(digits.validation) == 143
    assert len(digits.train) == 1797 - 359 - 143
    assert digits.num_classes == 10
    assert digits.input_shape == (1, 8, 8)
    assert digits.class_names == tuple("0123456789")
    assert digits.augmentation == "shift"


def test_digits_pixels_are_the_originals_scaled(digits: ImageSet) -> None:
    from sklearn.datasets import load_digits

    originals = {
        np.rint(image * 255 / 16).astype(np.uint8).tobytes() for image in load_digits().images
    }
    splits = [digits.train, digits.validation, digits.test]
    found = [image.tobytes() for split in splits for image in split.images]
    assert len(found) == 1797
    assert set(found) == originals
    assert digits.train.images.max() == 255


def test_digits_statistics_are_those_of_the_training_split(digits: ImageSet) -> None:
    pixels = digits.train.images / 255.0
    assert digits.mean == pytest.approx([pixels.mean()], abs=1e-12)
    assert digits.std == pytest.approx([pixels.std()], abs=1e-12)


def test_test_images_are_the_same_for_all_seeds_and_validation_is_not(digits: ImageSet) -> None:
    other = load_image_set(DataConfig(name="digits"), seed=1)
    same = load_image_set(DataConfig(name="digits"), seed=0)
    assert np.array_equal(other.test.images, digits.test.images)
    assert not np.array_equal(other.validation.images, digits.validation.images)
    assert np.array_equal(same.validation.images, digits.validation.images)
    assert np.array_equal(same.train.images, digits.train.images)


def test_max_train_images_leaves_test_alone_and_counts_validation(digits: ImageSet) -> None:
    config = DataConfig(name="digits", max_train_images=200, validation_fraction=0.25)
    small = load_image_set(config, seed=0)
    assert len(small.train) + len(small.validation) == 200
    assert np.all(np.bincount(small.train.labels) >= 14)
    assert np.array_equal(small.test.images, digits.test.images)


def test_too_few_training_images_for_the_classes() -> None:
    with pytest.raises(DataError) as caught:
        load_image_set(DataConfig(name="digits", max_train_images=19), seed=0)
    assert str(caught.value) == (
        "data.max_train_images is 19, too few for 10 classes: 2 of each are needed (to train on "
        "and to validate). Set data.max_train_images to 20 or more."
    )


def test_no_augmentation_on_request() -> None:
    assert load_image_set(DataConfig(augment="none"), seed=0).augmentation == "none"


def test_image_set_travels_by_reference(digits: ImageSet) -> None:
    """Ray pickles arrays out of band and hands workers read-only memory."""
    buffers: list[pickle.PickleBuffer] = []
    rest = pickle.dumps(digits, protocol=5, buffer_callback=buffers.append)
    assert len(rest) < 2000
    frozen = [memoryview(bytes(buffer)) for buffer in buffers]
    copy = pickle.loads(rest, buffers=frozen)
    assert not copy.train.images.flags.writeable
    assert np.array_equal(copy.train.images, digits.train.images)
    assert copy.mean == digits.mean
    batches = iterate_batches(copy.train, 500, rng(), copy.mean, copy.std, copy.augmentation)
    assert sum(len(labels) for _, labels in batches) == len(digits.train)


def test_importing_the_package_loads_no_readers() -> None:
    code = (
        "import sys, rlprune.data; "
        "heavy = {'ray', 'torchvision', 'sklearn', 'PIL', 'pyarrow'}; "
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --- arrays -----------------------------------------------------------------


def test_take_copies_in_the_given_order() -> None:
    arrays = some_arrays()
    taken = arrays.take([4, 0, 4])
    assert taken.images[:, 0, 0, 0].tolist() == [4, 0, 4]
    assert taken.labels.tolist() == [1, 0, 1]
    taken.images[0] = 99
    assert arrays.images[4, 0, 0, 0] == 4


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (np.zeros((2, 8, 8), np.uint8), np.zeros(2, np.int64), r"got uint8 \[2, 8, 8\]"),
        (np.zeros((2, 1, 8, 8)), np.zeros(2, np.int64), r"got float64 \[2, 1, 8, 8\]"),
        (np.zeros((2, 1, 8, 8), np.uint8), np.zeros(3, np.int64), r"2 images \(got int64 \[3\]"),
        (np.zeros((2, 1, 8, 8), np.uint8), np.zeros(2), "one integer label"),
    ],
)
def test_wrong_arrays_are_refused(images: np.ndarray, labels: np.ndarray, message: str) -> None:
    with pytest.raises(DataError, match=message):
        ImageArrays(images, labels)


def test_statistics_by_hand() -> None:
    images = np.zeros((4, 3, 2, 2), dtype=np.uint8)
    images[:2, 0] = 255  # half black, half white: mean 1/2, deviation 1/2
    images[:, 1] = 51  # constant 0.2
    images[0, 2] = 255  # a quarter white: mean 1/4, deviation sqrt(3)/4
    mean, std = channel_statistics(images)
    assert mean == pytest.approx([0.5, 0.2, 0.25], abs=1e-12)
    assert std == pytest.approx([0.5, 1.0, 0.75**0.5 / 2], abs=1e-12)


# --- splits -----------------------------------------------------------------


def test_split_counts_by_hand() -> None:
    labels = np.array([0] * 10 + [1] * 3 + [2] * 2, dtype=np.int64)
    kept, held_out = stratified_split(labels, 0.3, seed=5)
    # 10 -> 3, 3 -> round(0.9) = 1, 2 -> round(0.6) = 1
    assert np.bincount(labels[held_out]).tolist() == [3, 1, 1]
    assert sorted([*kept, *held_out]) == list(range(15))
    # the extremes leave one image on each side
    assert np.bincount(labels[stratified_split(labels, 0.99, 0)[0]]).tolist() == [1, 1, 1]
    assert np.bincount(labels[stratified_split(labels, 0.01, 0)[1]]).tolist() == [1, 1, 1]


def test_split_depends_on_the_seed_only() -> None:
    labels = np.arange(100, dtype=np.int64) % 4
    first, second, other = (stratified_split(labels, 0.2, seed)[1] for seed in (0, 0, 1))
    assert np.array_equal(first, second)
    assert not np.array_equal(first, other)


def test_split_names_the_class_with_too_few_images() -> None:
    labels = np.array([0, 0, 1], dtype=np.int64)
    with pytest.raises(DataError, match=r"class 'dog' \(label 1\) has only 1 image; .* at least 2"):
        stratified_split(labels, 0.5, 0, class_names=["cat", "dog"])
    with pytest.raises(DataError, match="class 1 has only 1 image"):
        stratified_split(labels, 0.5, 0)


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, float("nan")])
def test_split_refuses_empty_sides(fraction: float) -> None:
    with pytest.raises(DataError, match="strictly between 0 and 1"):
        stratified_split(np.array([0, 0], dtype=np.int64), fraction, 0)


def test_subsample_by_hand() -> None:
    labels = np.array([0] * 60 + [1] * 30 + [2] * 10, dtype=np.int64)
    # 25 of 100: quotas 15, 7.5, 2.5 -> the first of the equal remainders gets the one left
    assert np.bincount(labels[subsample(labels, 25, 0)]).tolist() == [15, 8, 2]
    # 8 of 100: quotas 4.8, 2.4, 0.8; the third is raised to 2, the rest shares 6
    assert np.bincount(labels[subsample(labels, 8, 0)]).tolist() == [4, 2, 2]
    assert subsample(labels, 100, 0).tolist() == list(range(100))


# --- normalize --------------------------------------------------------------


@pytest.mark.parametrize("kind", ["array", "tensor"])
def test_normalize_by_hand(kind: str) -> None:
    images = np.array([0, 255, 51, 0], dtype=np.uint8).reshape(1, 2, 1, 2)
    images.flags.writeable = False
    given = images if kind == "array" else torch.tensor(images)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # torch warns about read-only arrays
        result = normalize(given, mean=(0.5, 0.2), std=(0.25, 0.1))
    assert result.dtype == torch.float32
    # (0 - .5)/.25, (1 - .5)/.25; (.2 - .2)/.1, (0 - .2)/.1
    assert result.flatten().tolist() == pytest.approx([-2.0, 2.0, 0.0, -2.0], abs=1e-6)
    assert images.flatten().tolist() == [0, 255, 51, 0]


def test_normalized_training_images_have_mean_0_and_deviation_1(digits: ImageSet) -> None:
    pixels = normalize(digits.train.images, digits.mean, digits.std)
    assert pixels.mean().item() == pytest.approx(0.0, abs=1e-5)
    assert pixels.std(correction=0).item() == pytest.approx(1.0, abs=1e-5)


def test_normalize_refuses_other_input() -> None:
    with pytest.raises(DataError, match=r"got torch.float32 \[1, 1, 2, 2\]"):
        normalize(torch.zeros(1, 1, 2, 2), (0.5,), (0.5,))
    with pytest.raises(DataError, match="3 channels but 1 means and 1 standard deviations"):
        normalize(some_arrays().images, (0.5,), (0.5,))


# --- augment ----------------------------------------------------------------


@pytest.mark.parametrize(("side", "most"), [(8, 1), (28, 2)])
def test_shift_moves_one_pixel_as_drawn(side: int, most: int) -> None:
    images = one_hot(200, 1, side, 4, 5)
    draws = rng(3)
    rows = draws.integers(0, 2 * most + 1, size=200)
    columns = draws.integers(0, 2 * most + 1, size=200)
    moved = augment(images, "shift", rng(3))
    where = np.argwhere(moved)
    assert len(where) == 200  # the pixel is in every image exactly once
    assert where[:, 2].tolist() == (4 + most - rows).tolist()
    assert where[:, 3].tolist() == (5 + most - columns).tolist()
    assert {*where[:, 2].tolist()} == set(range(4 - most, 4 + most + 1))
    assert moved[moved > 0].tolist() == [200] * 200


def test_shift_moves_zeros_in_at_the_border() -> None:
    images = np.full((300, 1, 8, 8), 9, dtype=np.uint8)
    sums = augment(images, "shift", rng())[:, 0].sum(axis=(1, 2), dtype=int)
    # nothing lost, one edge lost, or one row and one column lost
    assert set(sums.tolist()) == {9 * 64, 9 * 56, 9 * 49}
    assert np.all(images == 9)


@pytest.mark.parametrize(("side", "pad"), [(8, 1), (28, 4), (32, 4), (224, 28)])
def test_crop_flip_moves_and_mirrors_as_drawn(side: int, pad: int) -> None:
    count = 40
    row, column = side // 2, side // 2 + 2
    images = one_hot(count, 3, side, row, column)
    draws = rng(7)
    rows = draws.integers(0, 2 * pad + 1, size=count)
    columns = draws.integers(0, 2 * pad + 1, size=count)
    mirrored = draws.integers(0, 2, size=count)
    assert 0 < mirrored.sum() < count
    moved = augment(images, "crop_flip", rng(7))
    for image, up, left, mirror in zip(moved, rows, columns, mirrored, strict=True):
        new_row, new_column = row + pad - up, column + pad - left
        if mirror:
            new_column = side - 1 - new_column
        expected = np.zeros((3, side, side), dtype=np.uint8)
        if 0 <= new_column < side:
            expected[:, new_row, new_column] = 200
        assert np.array_equal(image, expected)


def test_augment_of_a_tensor_equals_that_of_an_array() -> None:
    images = rng().integers(0, 256, size=(16, 3, 32, 32)).astype(np.uint8)
    tensor = augment(torch.tensor(images), "crop_flip", rng(1))
    assert isinstance(tensor, torch.Tensor)
    assert np.array_equal(tensor.numpy(), augment(images, "crop_flip", rng(1)))
    assert not np.array_equal(tensor.numpy(), augment(images, "crop_flip", rng(2)))


def test_no_augmentation_draws_nothing() -> None:
    generator = rng(1)
    images = some_arrays().images
    assert augment(images, "none", generator) is images
    assert generator.random() == rng(1).random()


def test_unknown_augmentation_is_refused() -> None:
    with pytest.raises(DataError, match="unknown augmentation 'blur'; use 'none', 'shift'"):
        augment(some_arrays().images, "blur", rng())  # type: ignore[arg-type]


# --- batches ----------------------------------------------------------------

IDENTITY = {"mean": (0.0,) * 3, "std": (1 / 255,) * 3}  # normalised value = pixel value


def test_epoch_order_is_a_reproducible_permutation() -> None:
    order = epoch_order(50, rng(4))
    assert sorted(order.tolist()) == list(range(50))
    assert order.tolist() == epoch_order(50, rng(4)).tolist() != list(range(50))


def test_batches_in_order_without_generator() -> None:
    batches = list(iterate_batches(some_arrays(), 4, None, **IDENTITY))
    assert [len(labels) for _, labels in batches] == [4, 4, 2]
    values = torch.cat([images[:, 0, 0, 0] for images, _ in batches])
    assert values.tolist() == pytest.approx(list(range(10)), abs=1e-4)
    assert torch.cat([labels for _, labels in batches]).tolist() == [i % 3 for i in range(10)]
    assert batches[0][0].shape == (4, 3, 8, 8)
    assert batches[0][1].dtype == torch.int64


def test_shuffled_batches_visit_every_image_once_with_its_label() -> None:
    batches = list(iterate_batches(some_arrays(), 3, rng(0), **IDENTITY))
    values = torch.cat([images[:, 0, 0, 0] for images, _ in batches]).round().int().tolist()
    labels = torch.cat([labels for _, labels in batches]).tolist()
    assert values != list(range(10)) and sorted(values) == list(range(10))
    assert labels == [value % 3 for value in values]


def test_same_generator_state_gives_the_same_bits(digits: ImageSet) -> None:
    def epoch(seed: int) -> torch.Tensor:
        batches = iterate_batches(
            digits.train, 128, rng(seed), digits.mean, digits.std, "crop_flip"
        )
        return torch.cat([images for images, _ in batches])

    assert torch.equal(epoch(3), epoch(3))
    assert not torch.equal(epoch(3), epoch(4))


def test_drop_last_leaves_out_the_incomplete_batch_unless_it_is_the_only_one() -> None:
    sizes = [
        len(y) for _, y in iterate_batches(some_arrays(), 4, rng(), **IDENTITY, drop_last=True)
    ]
    assert sizes == [4, 4]
    only = [
        len(y) for _, y in iterate_batches(some_arrays(), 64, rng(), **IDENTITY, drop_last=True)
    ]
    assert only == [10]


def test_batches_refuse_impossible_requests_at_once() -> None:
    with pytest.raises(DataError, match="batches of 0 from 10 images"):
        iterate_batches(some_arrays(), 0, None, **IDENTITY)
    with pytest.raises(DataError, match="'shift' draws random numbers but no generator"):
        iterate_batches(some_arrays(), 4, None, **IDENTITY, augmentation="shift")
