"""A recipe in a file of your own: `mambar train recipe.py`, with any field changed as `epochs=2`."""

from mambar.recipes import RecipeEntry, get_recipe

RECIPE = get_recipe("digits").replace(
    name="digits_12_registers",
    config={"patch_size": 2, "embed_dim": 32, "depth": 2, "num_registers": 12, "register_reduction": 4},
    epochs=2,
    lr=1e-3,
)

ENTRY = RecipeEntry(
    recipe=RECIPE,
    title="A smaller Mamba-R with 12 registers on handwritten digits",
    source="ours",
    command="mambar train recipe.py",
    expected="not run",
    not_published={"config.num_registers": "12, as many as the published models"},
)
