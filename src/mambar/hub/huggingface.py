"""Models for transformers; importing this module registers them with the Auto classes and pipelines (extra `hf`).

Also conversion between `VisionMamba` and transformers' models, and upload to the Hugging Face hub.
"""

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from mambar.data.transforms.preprocessing import Preprocessing
from mambar.errors import DiskError, InputError
from mambar.hub.card import model_card
from mambar.hub.files import save_model
from mambar.messages import needs_package
from mambar.models.vision_mamba import VisionMamba

if importlib.util.find_spec("transformers") is None:
    raise ImportError(needs_package("mambar.hub.huggingface", "transformers", extra="hf"))

from transformers import AutoBackbone, AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageClassification

from mambar.hub.huggingface_config import MODEL_TYPE as MODEL_TYPE
from mambar.hub.huggingface_config import MambarConfig as MambarConfig
from mambar.hub.huggingface_config import MambarImageProcessor as MambarImageProcessor
from mambar.hub.huggingface_models import MambarBackbone as MambarBackbone
from mambar.hub.huggingface_models import MambarForImageClassification as MambarForImageClassification
from mambar.hub.huggingface_models import MambarModel as MambarModel

AutoConfig.register(MODEL_TYPE, MambarConfig, exist_ok=True)
AutoModel.register(MambarConfig, MambarModel, exist_ok=True)
AutoModelForImageClassification.register(MambarConfig, MambarForImageClassification, exist_ok=True)
AutoBackbone.register(MambarConfig, MambarBackbone, exist_ok=True)
AutoImageProcessor.register(MambarConfig, slow_image_processor_class=MambarImageProcessor, exist_ok=True)


def to_transformers(model: VisionMamba) -> MambarForImageClassification:
    """A transformers image classifier with a copy of the weights, and class names in its configuration."""
    if model.num_classes < 1:
        raise InputError("The model has no classifier (num_classes=0); give it one with reset_classifier.")
    converted = MambarForImageClassification(MambarConfig.from_model_config(model.config, classes=model.classes))
    converted.model.to(next(model.parameters()).dtype)
    converted.model.load_state_dict(model.state_dict())
    return converted.train(model.training)


def from_transformers(model: MambarForImageClassification) -> VisionMamba:
    """A `VisionMamba` with a copy of the classifier's weights and its class names."""
    ours = VisionMamba(model.config.model_config())
    ours.to(next(model.parameters()).dtype).load_state_dict(model.model.state_dict())
    names: Mapping[int, str] = model.config.id2label or {}  # type: ignore[assignment]
    ours.classes = tuple(names[index] for index in sorted(names)) or None
    return ours.train(model.training)


def export_transformers(
    model: VisionMamba, directory: Path | str, *, name: str | None = None, force: bool = False
) -> None:
    """Writes a directory for `AutoModelForImageClassification.from_pretrained` and for pipelines.

    The files are config.json, model.safetensors, preprocessor_config.json and README.md (a model card). Import
    `mambar.hub.huggingface` before loading them. name: the title of the card, by default the directory's name.
    Raises `InputError` for a directory that is not empty unless `force`.
    """
    directory = Path(directory)
    if directory.exists() and any(directory.iterdir()) and not force:
        raise InputError(f"{directory} is not empty; choose another directory or give --force.")
    preprocessing = model.preprocessing or Preprocessing(img_size=model.config.img_size)
    try:
        to_transformers(model).save_pretrained(directory)
        MambarImageProcessor(preprocessing=preprocessing.to_dict()).save_pretrained(directory)
        (directory / "README.md").write_text(model_card(model, name=name or directory.resolve().name), "utf-8")
    except OSError as error:
        raise DiskError(f"{directory} could not be written: {error.strerror or error}.") from error


def push_to_hub(
    model: VisionMamba,
    repository: str,
    *,
    recipe: Mapping[str, Any] | None = None,
    results: Mapping[str, float | str | None] | None = None,
    private: bool = True,
    dry_run: bool = False,
) -> list[str]:
    """Uploads the model directory and a model card to the Hugging Face hub; returns the names of the files.

    repository: "owner/name"; it is created if it does not exist. timm loads it as `hf-hub:owner/name`.
    private: visibility of a new repository. dry_run: writes the files to a temporary directory and uploads
    nothing. huggingface_hub reads the credentials that `hf auth login` stored.
    """
    if repository.count("/") != 1 or not all(repository.split("/")):
        raise InputError(f"repository={repository!r} must be owner/name.")
    with TemporaryDirectory(prefix="mambar-hub-") as directory:
        folder = Path(directory)
        with torch.no_grad():
            save_model(folder, model)
        card = model_card(model, name=repository.split("/")[1], recipe=recipe, results=results)
        (folder / "README.md").write_text(card, "utf-8")
        names = sorted(path.name for path in folder.iterdir())
        if not dry_run:
            from huggingface_hub import HfApi

            api = HfApi()
            api.create_repo(repository, private=private, exist_ok=True)
            api.upload_folder(repo_id=repository, folder_path=str(folder), commit_message="Add model")
    return names
