"""transformers' ways of making, loading, running and training our models."""

import numpy as np
import pytest
import torch
from PIL import Image

transformers = pytest.importorskip("transformers", reason="transformers is the extra hf")

import mambar  # noqa: E402
from mambar.data import EvalTransform, Preprocessing, read_image  # noqa: E402
from mambar.errors import InputError  # noqa: E402
from mambar.evaluation.prediction import predict_image  # noqa: E402
from mambar.hub import huggingface as hf  # noqa: E402
from mambar.models import VisionMamba, VisionMambaConfig  # noqa: E402

TINY = VisionMambaConfig(
    img_size=32, patch_size=8, embed_dim=16, depth=4, num_registers=3, register_reduction=2, num_classes=5, d_state=4
)


@pytest.fixture(scope="module")
def model() -> VisionMamba:
    torch.manual_seed(0)
    model = VisionMamba(TINY).eval()
    with torch.no_grad():
        model.head.classifier.weight.mul_(30)
    model.classes = ("ant", "bee", "cat", "dog", "<e>")
    model.preprocessing = Preprocessing(img_size=32, crop_pct=0.9, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))
    return model


@pytest.fixture(scope="module")
def directory(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("hf") / "model"
    hf.export_transformers(model, path)
    return path


@pytest.fixture
def photograph():
    pixels = torch.randint(0, 256, (3, 50, 70), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    return pixels, Image.fromarray(pixels.permute(1, 2, 0).numpy())


IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_weights_and_names_come_back_exactly(model, directory):
    loaded = transformers.AutoModelForImageClassification.from_pretrained(directory).eval()
    assert isinstance(loaded, hf.MambarForImageClassification)
    assert loaded.model.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in loaded.model.state_dict().items())
    with torch.no_grad():
        assert torch.equal(loaded(IMAGES).logits, model(IMAGES))
    assert loaded.config.id2label == dict(enumerate(model.classes)) and loaded.config.num_labels == 5
    again = hf.from_transformers(loaded)
    assert again.config == model.config and again.classes == model.classes
    assert torch.equal(again(IMAGES), model(IMAGES))


def test_saved_again_nothing_changes(directory, tmp_path):
    loaded = hf.MambarForImageClassification.from_pretrained(directory)
    loaded.save_pretrained(tmp_path / "again")
    again = hf.MambarForImageClassification.from_pretrained(tmp_path / "again")
    described = [{**each.config.to_dict(), "_name_or_path": ""} for each in (again, loaded)]
    assert described[0] == described[1]
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), loaded.parameters(), strict=True))


def test_the_plain_model_gives_tokens_and_features(model, directory):
    loaded = transformers.AutoModel.from_pretrained(directory).eval()
    assert isinstance(loaded, hf.MambarModel)
    with torch.no_grad():
        output = loaded(IMAGES, output_hidden_states=True)
        tokens = model.forward_features(IMAGES)
        assert torch.equal(output.last_hidden_state, tokens)
        assert torch.equal(output.pooler_output, model.forward_head(tokens, pre_logits=True))
    assert len(output.hidden_states) == 5
    assert isinstance(loaded(IMAGES, return_dict=False), tuple)


def test_hidden_size_and_its_like_are_named_as_everywhere(directory):
    config = transformers.AutoConfig.from_pretrained(directory)
    assert isinstance(config, hf.MambarConfig)
    assert (config.hidden_size, config.num_hidden_layers, config.num_channels) == (16, 4, 3)
    assert hf.MambarConfig(hidden_size=24, num_labels=7).model_config().embed_dim == 24
    assert hf.MambarConfig().model_config() == VisionMambaConfig()
    with pytest.raises(InputError, match="placement"):
        hf.MambarModel(hf.MambarConfig(placement="nowhere", depth=1))


def test_a_new_classifier_starts_fresh_and_the_rest_is_kept(model, directory):
    torch.manual_seed(3)
    loaded = hf.MambarForImageClassification.from_pretrained(directory, num_labels=9, ignore_mismatched_sizes=True)
    weight = loaded.model.head.classifier.weight
    assert weight.shape[0] == 9 and 0.01 < weight.std().item() < 0.03
    assert torch.equal(loaded.model.head.classifier.bias, torch.zeros(9))
    assert torch.equal(loaded.model.blocks[3].mixer.in_proj.weight, model.blocks[3].mixer.in_proj.weight)


def test_weights_a_checkpoint_lacks_start_as_our_constructor_has_them(model, directory, tmp_path):
    import safetensors.torch

    partial = hf.MambarForImageClassification.from_pretrained(directory)
    partial.save_pretrained(tmp_path)
    state = safetensors.torch.load_file(tmp_path / "model.safetensors")
    kept = {name: value for name, value in state.items() if ".blocks.2." not in name and "registers" not in name}
    safetensors.torch.save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    scan = hf.MambarForImageClassification.from_pretrained(tmp_path).model.blocks[2].mixer.forward_scan
    step = torch.nn.functional.softplus(scan.dt_proj.bias)
    assert step.min() >= 9e-4 and step.max() <= 0.11
    assert torch.equal(scan.D, torch.ones(32)) and torch.allclose(scan.A_log[0], torch.log(torch.arange(1.0, 5.0)))


def test_start_values_are_our_constructors():
    config = hf.MambarConfig.from_model_config(TINY)
    torch.manual_seed(4)
    ours = VisionMamba(TINY)
    torch.manual_seed(4)
    theirs = hf.MambarForImageClassification(config).model
    assert all(torch.equal(a, b) for a, b in zip(theirs.parameters(), ours.parameters(), strict=True))


@pytest.mark.parametrize("stages", [["stage4"], ["stem", "stage2"], ["stage1", "stage3"]])
def test_backbone_maps_are_the_streams(model, directory, stages):
    backbone = hf.MambarBackbone.from_pretrained(directory, out_features=stages).eval()
    with torch.no_grad():
        maps = backbone(IMAGES).feature_maps
        stream, grid = model.embed(IMAGES)
        expected = {"stem": model.registers.split(stream, grid)}
        expected |= {f"stage{index + 1}": tokens for index, tokens in enumerate(model.tokens(IMAGES))}
    assert backbone.channels == [16] * len(stages)
    for found, name in zip(maps, stages, strict=True):
        assert torch.equal(found, expected[name].map())


def test_auto_backbone_from_a_configuration(directory):
    config = hf.MambarConfig.from_pretrained(directory, out_indices=[1, 2, 3, 4], pyramid=True)
    backbone = transformers.AutoBackbone.from_config(config)
    shapes = [tuple(each.shape) for each in backbone(IMAGES).feature_maps]
    assert shapes == [(2, 16, 8, 8), (2, 16, 4, 4), (2, 16, 2, 2), (2, 16, 1, 1)]
    with pytest.raises(InputError, match="takes 4 stages"):
        hf.MambarBackbone(hf.MambarConfig.from_pretrained(directory, pyramid=True))


def test_upernet_learns_through_every_parameter(directory, tmp_path):
    config = hf.MambarConfig.from_pretrained(directory, out_indices=[1, 2, 3, 4], pyramid=True)
    upernet = transformers.UperNetForSemanticSegmentation(
        transformers.UperNetConfig(
            backbone_config=config, hidden_size=16, auxiliary_channels=8, auxiliary_in_channels=16, num_labels=3
        )
    )
    output = upernet(IMAGES, labels=torch.randint(0, 3, (2, 32, 32)))
    assert output.logits.shape == (2, 3, 32, 32)
    output.loss.backward()
    assert [name for name, parameter in upernet.named_parameters() if parameter.grad is None] == []
    upernet.eval().save_pretrained(tmp_path / "upernet")
    again = transformers.UperNetForSemanticSegmentation.from_pretrained(tmp_path / "upernet").eval()
    with torch.no_grad():
        torch.testing.assert_close(again(IMAGES).logits, upernet(IMAGES).logits)


def test_the_loss_and_gradient_checkpointing(directory):
    loaded = hf.MambarForImageClassification.from_pretrained(directory).double().train()
    images, labels = IMAGES.double(), torch.tensor([1, 4])
    plain = loaded(images, labels=labels)
    torch.testing.assert_close(plain.loss, torch.nn.functional.cross_entropy(plain.logits, labels))
    plain.loss.backward()
    gradient = loaded.model.blocks[0].norm.weight.grad.clone()
    calls = []
    for block in loaded.model.blocks:
        block.mixer.register_forward_pre_hook(lambda *_: calls.append(1))
    for options in ({}, {"every_n_layers": 2}, {"offload": True}, {"gradient_checkpointing_kwargs": REENTRANT}):
        loaded.zero_grad()
        loaded.gradient_checkpointing_enable(**options)
        assert loaded.is_activation_checkpointing
        calls.clear()
        loaded(images, labels=labels).loss.backward()
        assert len(calls) == 4 + 4 // options.get("every_n_layers", 1), options
        torch.testing.assert_close(loaded.model.blocks[0].norm.weight.grad, gradient)
    loaded.gradient_checkpointing_disable()
    assert not loaded.is_activation_checkpointing
    loaded.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False, "unknown": 1})
    with pytest.raises((TypeError, ValueError), match="unknown"):
        loaded(images, labels=labels)


REENTRANT = {"use_reentrant": True}


@pytest.mark.parametrize("kind", [hf.MambarModel, hf.MambarForImageClassification, hf.MambarBackbone])
def test_a_bfloat16_model_takes_the_pixels_of_its_processor(directory, photograph, kind):
    loaded = kind.from_pretrained(directory, dtype=torch.bfloat16)
    pixels = hf.MambarImageProcessor.from_pretrained(directory)(photograph[0], return_tensors="pt")
    assert pixels["pixel_values"].dtype == torch.float32
    assert loaded(**pixels) is not None


@pytest.mark.parametrize("offload", ["from_pretrained", "disk_offload", "cpu_offload"])
def test_weights_may_stay_on_the_disk(model, directory, tmp_path, offload):
    accelerate = pytest.importorskip("accelerate", reason="transformers offloads with accelerate")
    kind = hf.MambarForImageClassification
    if offload == "from_pretrained":
        loaded = kind.from_pretrained(directory, device_map={"": "disk"}, offload_folder=str(tmp_path))
    elif offload == "disk_offload":
        loaded = kind.from_pretrained(directory)
        accelerate.disk_offload(loaded, str(tmp_path), execution_device="cpu")
    else:
        loaded = kind.from_pretrained(directory)
        accelerate.cpu_offload(loaded, execution_device="cpu")
    assert any(parameter.device.type == "meta" for parameter in loaded.parameters())
    with torch.no_grad():
        torch.testing.assert_close(loaded.eval()(IMAGES).logits, model(IMAGES))


def test_the_processor_converts_pictures_as_predict_does(model, directory, tmp_path):
    processor = hf.MambarImageProcessor.from_pretrained(directory)
    loaded = hf.MambarForImageClassification.from_pretrained(directory).eval()
    draw = np.random.default_rng(0)
    colors = draw.integers(0, 256, (40, 50, 4), dtype=np.uint8)
    rgb = Image.fromarray(colors[..., :3])
    exif = Image.Exif()
    exif[0x0112] = 6
    pictures = {
        "rgba.png": Image.fromarray(colors, "RGBA"),
        "gray.png": rgb.convert("L"),
        "gray_alpha.png": Image.fromarray(colors[..., :2], "LA"),
        "16bit.png": Image.fromarray(draw.integers(0, 65536, (40, 50), dtype=np.uint16)),
        "palette.png": rgb.quantize(16),
        "cmyk.jpg": rgb.convert("CMYK"),
        "rotated.jpg": rgb,
    }
    for name, picture in pictures.items():
        picture.save(tmp_path / name, **({"exif": exif} if name == "rotated.jpg" else {}))
        expected = predict_image(model, read_image(tmp_path / name), top=5)
        with Image.open(tmp_path / name) as opened, torch.no_grad():
            logits = loaded(**processor(opened, return_tensors="pt")).logits
        found = sorted(logits[0].softmax(0).tolist(), reverse=True)
        assert found == pytest.approx([guess.probability for guess in expected], abs=1e-6), name
    card = (directory / "README.md").read_text("utf-8")
    assert "mambar.data.read_image" in card


def test_the_processor_names_size_and_normalization_as_transformers_does(model, directory):
    processor = transformers.AutoImageProcessor.from_pretrained(directory)
    assert processor.size == {"height": 32, "width": 32}
    assert (processor.image_mean, processor.image_std) == ([0.4, 0.5, 0.6], [0.2, 0.3, 0.4])


def test_the_image_processor_is_the_evaluation_transform(model, directory, photograph):
    pixels, image = photograph
    processor = transformers.AutoImageProcessor.from_pretrained(directory)
    assert isinstance(processor, hf.MambarImageProcessor)
    expected = EvalTransform(preprocessing=model.preprocessing)(pixels)
    for given in (image, pixels, pixels.permute(1, 2, 0).numpy()):
        assert torch.equal(processor(given, return_tensors="pt")["pixel_values"][0], expected)
    assert processor([image, image], return_tensors="np")["pixel_values"].shape == (2, 3, 32, 32)
    for wrong in ("picture.png", torch.zeros(3, 4, 4), pixels[0]):
        with pytest.raises(InputError, match="An image is"):
            processor(wrong)
    with pytest.raises(InputError, match="no option do_resize"):
        processor(image, do_resize=False)


def test_pipelines(model, directory, photograph):
    pixels, image = photograph
    classify = transformers.pipeline("image-classification", model=str(directory))
    expected = predict_image(model, pixels, top=3)
    for given in (image, pixels):
        found = classify(given, top_k=3)
        assert [each["label"] for each in found] == [guess.name for guess in expected]
        assert [each["score"] for each in found] == pytest.approx([guess.probability for guess in expected], abs=1e-5)
    extract = transformers.pipeline("image-feature-extraction", model=str(directory))
    assert torch.tensor(extract(image)).shape == (1, 16 + 3, 16)
    assert torch.tensor(extract(image, pool=True)).shape == (1, 3 * 8)


@pytest.mark.slow
def test_a_run_directory_works_through_timms_wrapper(model, photograph, tmp_path):
    """Our own directories are timm's format too, which transformers reads once timm knows the architecture."""
    import mambar.hub.timm_register

    mambar.save_model(tmp_path / "run", model)
    pixels, image = photograph
    classify = transformers.pipeline("image-classification", model=str(tmp_path / "run"))
    found = classify(image, top_k=1)[0]
    expected = predict_image(model, pixels, top=1)[0]
    assert found["label"] == expected.name and found["score"] == pytest.approx(expected.probability, abs=1e-4)


@pytest.mark.slow
def test_trainer_on_a_folder(directory, tmp_path):
    pytest.importorskip("accelerate", reason="transformers' Trainer needs accelerate")
    for index in range(8):
        kind = tmp_path / "images" / ("ant" if index % 2 else "bee")
        kind.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 40), (255 * (index % 2), 30 * index, 90)).save(kind / f"{index}.png")
    processor = hf.MambarImageProcessor.from_pretrained(directory)
    paths = sorted((tmp_path / "images").rglob("*.png"))
    samples = [
        {
            "pixel_values": processor(read_image(path), return_tensors="pt")["pixel_values"][0],
            "labels": int(path.parent.name == "bee"),
        }
        for path in paths
    ]
    torch.manual_seed(0)
    learner = hf.MambarForImageClassification.from_pretrained(directory, num_labels=2, ignore_mismatched_sizes=True)
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path / "out"), num_train_epochs=8, per_device_train_batch_size=4, learning_rate=3e-3,
        report_to=[], use_cpu=True, save_strategy="epoch", save_total_limit=1, logging_steps=1, disable_tqdm=True,
    )  # fmt: skip
    trainer = transformers.Trainer(model=learner, args=arguments, train_dataset=samples)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < 0.5 * losses[0]
    assert list((tmp_path / "out").glob("checkpoint-*/model.safetensors"))


def test_nothing_is_overwritten_by_surprise(model, directory):
    with pytest.raises(InputError, match="is not empty"):
        hf.export_transformers(model, directory)
    with pytest.raises(InputError, match="no classifier"):
        hf.to_transformers(VisionMamba(TINY.replace(num_classes=0)))


def test_a_dry_run_writes_a_card_and_sends_nothing(model, monkeypatch):
    import huggingface_hub

    def unwanted(*_, **__):
        raise AssertionError("a dry run makes no client")

    monkeypatch.setattr(huggingface_hub, "HfApi", unwanted)
    names = hf.push_to_hub(model, "someone/model", dry_run=True)
    assert names == ["README.md", "config.json", "model.safetensors"]
    with pytest.raises(InputError, match="must be owner/name"):
        hf.push_to_hub(model, "model", dry_run=True)


def test_an_upload_is_one_private_folder(model, monkeypatch):
    import huggingface_hub

    calls = []

    class Api:
        def create_repo(self, name, **options):
            calls.append(("create", name, options))

        def upload_folder(self, *, repo_id, folder_path, **_):
            loaded = mambar.load(folder_path)
            calls.append(("upload", repo_id, loaded.classes))

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    hf.push_to_hub(model, "someone/model")
    assert calls == [
        ("create", "someone/model", {"private": True, "exist_ok": True}),
        ("upload", "someone/model", model.classes),
    ]
