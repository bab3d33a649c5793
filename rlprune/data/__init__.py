"""Image sets: reading, splitting, augmenting and batching them."""

from rlprune.data.batches import augment, epoch_order, iterate_batches, normalize
from rlprune.data.images import Augmentation, ImageArrays, Images, ImageSet, channel_statistics
from rlprune.data.load import load_image_set
from rlprune.data.source import Progress
from rlprune.data.split import stratified_split, subsample
from rlprune.data.stored import StoredImages

__all__ = [
    "Augmentation",
    "ImageArrays",
    "ImageSet",
    "Images",
    "Progress",
    "StoredImages",
    "augment",
    "channel_statistics",
    "epoch_order",
    "iterate_batches",
    "load_image_set",
    "normalize",
    "stratified_split",
    "subsample",
]
