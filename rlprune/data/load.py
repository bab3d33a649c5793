"""From a configuration to an image set in memory."""

from __future__ import annotations

import logging

import numpy as np

from rlprune.config import DataConfig
from rlprune.data.cifar import read_cifar10
from rlprune.data.folder import read_image_folder
from rlprune.data.idx import read_fashion_mnist
from rlprune.data.images import Augmentation, ImageArrays, Images, ImageSet, channel_statistics
from rlprune.data.parquet import read_parquet
from rlprune.data.source import ImageSource, Progress, RawSet, array_source
from rlprune.data.split import stratified_split, subsample
from rlprune.data.stored import PORTION, StoredImages
from rlprune.errors import DataError

TEST_FRACTION = 0.2
"""Part of the images held out for testing where a set has no test images of its own."""

STATISTICS_IMAGES = 10_000
"""Training images whose mean and standard deviation are taken where not all are in memory."""

_TEST_SPLIT_SEED = 20221114
_STATISTICS_STREAM = 2
_DIGITS_LARGEST_VALUE = 16

logger = logging.getLogger(__name__)


def load_image_set(config: DataConfig, seed: int, progress: Progress | None = None) -> ImageSet:
    """Read an image set into memory (or, with ``streaming``, find its files) and split it.

    The test images never depend on ``seed``: they are the set's own, or a fixed stratified
    fifth where it has none (``digits``, folders without test images). Of the other images
    ``max_train_images`` are taken (all if None), and ``validation_fraction`` of those is
    held out for validation, both stratified and chosen by ``seed``. Images left out are
    not decoded. With ``streaming`` pixels are decoded when they are used, again each time;
    only the statistics are taken here, of at most 10,000 training images.

    Args:
        config: which set, where, and how it is split.
        seed: of the subsample and the validation split.
        progress: called with (what, images done, images in all) while images are decoded.

    Returns:
        The set with the training split's channel statistics.

    Raises:
        DataError: anything about the files, images, labels or classes that makes them
            unusable; the message names the file (and row) or class and the remedy.
    """
    raw = _read(config, None if config.streaming else progress)
    pool_source, test_source = _separate_test(raw, config.name)
    _check_classes(pool_source, "training", 2, raw.class_names)
    _check_classes(test_source, "test", 1, raw.class_names)
    if config.max_train_images is not None:
        chosen = subsample(pool_source.labels, config.max_train_images, seed)
        pool_source = pool_source.select(chosen)
    splits = _stored if config.streaming else _loaded
    train, validation, test = splits(
        pool_source, test_source, config.validation_fraction, seed, raw.class_names
    )
    mean, std = _statistics(train, seed)
    image_set = ImageSet(
        name=config.name,
        train=train,
        validation=validation,
        test=test,
        class_names=raw.class_names,
        mean=mean,
        std=std,
        augmentation=_augmentation(config, raw.grey),
    )
    _log_summary(image_set)
    return image_set


def _loaded(
    pool: ImageSource, test: ImageSource, fraction: float, seed: int, class_names: tuple[str, ...]
) -> tuple[Images, Images, Images]:
    """Training, validation and test images in memory."""
    images = pool.load()
    kept, held_out = stratified_split(images.labels, fraction, seed, class_names)
    return images.take(kept), images.take(held_out), test.load()


def _stored(
    pool: ImageSource, test: ImageSource, fraction: float, seed: int, class_names: tuple[str, ...]
) -> tuple[Images, Images, Images]:
    """Training, validation and test images in their files.

    Raises:
        DataError: the set has no files to stay in.
    """
    kept, held_out = stratified_split(pool.labels, fraction, seed, class_names)
    sources = (pool.select(kept), pool.select(held_out), test)
    found = []
    for source in sources:
        if source.files is None:
            raise DataError(
                f"data.streaming: {source.where} is read whole. Set data.streaming to false, or "
                "use data.name imagefolder or parquet."
            )
        found.append(StoredImages(source.files, source.positions, source.labels))
    return found[0], found[1], found[2]


def _statistics(train: Images, seed: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of the training images, or of a fixed choice of many."""
    if isinstance(train, ImageArrays):
        return channel_statistics(train.images)
    assert isinstance(train, StoredImages)
    generator = np.random.default_rng((seed, _STATISTICS_STREAM))
    chosen = np.arange(len(train))
    if len(train) > STATISTICS_IMAGES:
        chosen = train.shuffled(generator)[:STATISTICS_IMAGES]
    parts = (chosen[i : i + train.portion] for i in range(0, len(chosen), train.portion))
    return channel_statistics(
        found.images for part in parts for found in train.stream(part, PORTION)
    )


def _read(config: DataConfig, progress: Progress | None) -> RawSet:
    if config.name == "digits":
        return _read_digits()
    if config.name == "fashion_mnist":
        return read_fashion_mnist(config.root, config.download)
    if config.name == "cifar10":
        return read_cifar10(config.root, config.download)
    if config.name == "imagefolder":
        return read_image_folder(config.root, config.image_size, progress)
    return read_parquet(config.root, config.image_size, progress)


def _read_digits() -> RawSet:
    """Read scikit-learn's digits: 1797 grey 8x8 images, values 0-16 scaled to 0-255."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = np.rint(digits.images * (255 / _DIGITS_LARGEST_VALUE)).astype(np.uint8)
    labels = digits.target.astype(np.int64)
    source = array_source(pixels[:, None], labels, "scikit-learn's digits")
    names = tuple(str(name) for name in digits.target_names)
    return RawSet(train=source, test=None, class_names=names, grey=True)


def _separate_test(raw: RawSet, name: str) -> tuple[ImageSource, ImageSource]:
    """Return training and test images, holding out a fixed fifth where there is no test."""
    if raw.test is not None:
        return raw.train, raw.test
    kept, held_out = stratified_split(
        raw.train.labels, TEST_FRACTION, _TEST_SPLIT_SEED, raw.class_names
    )
    logger.info(
        "%s: no test images in %s, %d of %d images are held out for testing",
        name,
        raw.train.where,
        len(held_out),
        len(raw.train.labels),
    )
    return raw.train.select(kept), raw.train.select(held_out)


def _check_classes(
    source: ImageSource, split: str, minimum: int, class_names: tuple[str, ...]
) -> None:
    """Refuse a split that lacks images of a class."""
    counts = np.bincount(source.labels, minlength=len(class_names))
    scarce = np.flatnonzero(counts < minimum)
    if len(scarce) == 0:
        return
    label = int(scarce[0])
    others = f"; {len(scarce) - 1} more classes likewise" if len(scarce) > 1 else ""
    raise DataError(
        f"{source.where}: class {class_names[label]!r} (label {label}) has {counts[label]} "
        f"{split} images, at least {minimum} of each class are needed{others}. "
        "Add images of this class or remove the class."
    )


def _augmentation(config: DataConfig, grey: bool) -> Augmentation:
    """Choose the usual augmentation of a set.

    Clothes and colour images may be mirrored; digits and grey images of unknown kind
    only shifted.
    """
    if config.augment == "none":
        return "none"
    if config.name == "fashion_mnist" or not grey:
        return "crop_flip"
    return "shift"


def _log_summary(image_set: ImageSet) -> None:
    sizes: list[Images] = [image_set.train, image_set.validation, image_set.test]
    logger.info(
        "%s: %d training, %d validation, %d test images of shape %s, %d classes",
        image_set.name,
        *(len(arrays) for arrays in sizes),
        list(image_set.input_shape),
        image_set.num_classes,
    )
