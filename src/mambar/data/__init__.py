"""Datasets, image decoding, augmentation and loading; independent of models."""

from mambar.data.dataset import ImageDataset as ImageDataset
from mambar.data.dataset import Sample as Sample
from mambar.data.dataset import Subset as Subset
from mambar.data.dataset import stratified_split as stratified_split
from mambar.data.keys import key as key
from mambar.data.loading.images import read_image as read_image
from mambar.data.loading.loaders import Batch as Batch
from mambar.data.loading.loaders import evaluation_batches as evaluation_batches
from mambar.data.loading.loaders import training_batches as training_batches
from mambar.data.loading.samplers import epoch_order as epoch_order
from mambar.data.loading.samplers import steps_per_epoch as steps_per_epoch
from mambar.data.registry import DATASETS as DATASETS
from mambar.data.registry import has_test_split as has_test_split
from mambar.data.registry import open_dataset as open_dataset
from mambar.data.registry import open_evaluation_dataset as open_evaluation_dataset
from mambar.data.registry import register_dataset as register_dataset
from mambar.data.shards.pack import pack_folder as pack_folder
from mambar.data.synthetic.photographs import photographs as photographs
from mambar.data.synthetic.shapes import Shapes as Shapes
from mambar.data.transforms.classification import EvalTransform as EvalTransform
from mambar.data.transforms.classification import Preprocessing as Preprocessing
from mambar.data.transforms.classification import TrainTransform as TrainTransform
from mambar.data.transforms.mixup import Mixup as Mixup
