import pytest
import torch

from mambar.analysis.measure.added_registers import RegisterNeurons
from mambar.analysis.measure.added_registers import TestTimeRegisters as AddedRegisters
from mambar.analysis.measure.norms import token_norms
from mambar.errors import InputError
from mambar.models import TokenModel, VisionMamba, VisionMambaConfig

CONFIG = VisionMambaConfig(
    img_size=16, patch_size=4, embed_dim=16, depth=3, num_registers=1, placement="middle", head="token", num_classes=3
)
IMAGES = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def vim():
    torch.manual_seed(0)
    return VisionMamba(CONFIG).eval()


def test_it_is_a_token_model_of_more_registers(vim):
    model = AddedRegisters(vim, 2)
    assert isinstance(model, TokenModel) and (model.num_layers, model.patch_size, model.embed_dim) == (3, 4, 16)
    tokens = model.tokens(IMAGES, [0, -1])
    assert [found.registers.shape for found in tokens] == [(2, 3, 16)] * 2
    assert tokens[0].grid == (4, 4) and model(IMAGES).shape == (2, 3)
    assert token_norms(model, IMAGES, tensor="normed").shape == (3, 2, 4, 4)


@pytest.mark.parametrize("placement", ["evenly", "spread", "begin", "middle", "end"])
def test_copies_of_a_register_equal_a_model_that_was_built_with_them(vim, placement):
    # The same network built with the added register in its own table, read in the order of the longer sequence.
    model = AddedRegisters(vim, 2, placement=placement, fill="copy").double()
    layout = model._layout(17, (4, 4))
    sequence, _ = vim.embed(IMAGES.double())
    longer = torch.zeros(2, 19, 16, dtype=torch.float64)
    longer[:, list(layout.own)] = sequence
    longer[:, list(layout.added)] = vim.registers.split(sequence, (4, 4)).registers[:, :1]
    for block in vim.blocks:
        longer = block(longer)
    found = model.tokens(IMAGES.double(), [-1])[0]
    assert torch.allclose(found.patches, longer[:, list(layout.patches)])
    assert torch.allclose(found.registers[:, 1:], longer[:, list(layout.added)])
    assert torch.allclose(model(IMAGES.double()), vim.forward_head(vim.norm(longer[:, list(layout.own)])))


def test_tensors_are_those_of_the_stream(vim):
    model = AddedRegisters(vim, 1, fill="mean")
    first, second = model.tokens(IMAGES, [0, 1])
    (added,) = model.tokens(IMAGES, [1], tensor="mixer")
    (normed,) = model.tokens(IMAGES, [1], tensor="normed")
    assert torch.allclose(first.patches + added.patches, second.patches, atol=1e-6)
    assert torch.allclose(normed.patches, vim.norm(second.patches), atol=1e-6)


def test_added_registers_of_zeros_stay_zero_until_something_is_moved(vim):
    plain = AddedRegisters(vim, 2).tokens(IMAGES, [-1])[0]
    assert plain.registers[:, 1:].abs().max() == 0
    neurons = RegisterNeurons(channels=((0, 5), (0, 7), (2, 1)), scores=(3.0, 2.0, 1.0))
    moved = AddedRegisters(vim, 2, neurons=neurons).tokens(IMAGES, [-1])[0]
    assert moved.registers[:, 1:].abs().max() > 0


def test_activations_leave_the_patches_for_the_registers(vim):
    seen = []
    neurons = RegisterNeurons(channels=((1, 5), (1, 7)), scores=(2.0, 1.0))
    before = AddedRegisters(vim, 2)
    after = AddedRegisters(vim, 2, neurons=neurons)
    plain = vim.blocks[1].mixer.out_proj.register_forward_hook(lambda module, given, out: seen.append(given[0]))
    before.tokens(IMAGES, [1])
    after.tokens(IMAGES, [1])
    plain.remove()
    layout = after._layout(17, (4, 4))
    old, new = seen
    patches, added = list(layout.patches), list(layout.added)
    assert new[:, patches][..., [5, 7]].abs().max() == 0
    largest = old[:, patches][..., [5, 7]].abs().amax(1)
    for place in added:
        assert torch.allclose(new[:, place, [5, 7]].abs(), largest)
    rest = [channel for channel in range(old.shape[2]) if channel not in (5, 7)]
    assert torch.equal(old[..., rest], new[..., rest])
    assert not vim.blocks[1].mixer.out_proj._forward_pre_hooks


def test_wrong_choices_are_refused(vim):
    with pytest.raises(InputError, match="adds nothing"):
        AddedRegisters(vim, 0)
    with pytest.raises(InputError, match="fill='noise'"):
        AddedRegisters(vim, 1, fill="noise")
    bare = VisionMamba(CONFIG.replace(num_registers=0, head="avg"))
    with pytest.raises(InputError, match="trained register"):
        AddedRegisters(bare, 1, fill="copy")
    assert AddedRegisters(bare, 1)(IMAGES).shape == (2, 3)
