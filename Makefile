# The commands of daily work.
RUN = uv run

.PHONY: check format shapes test soak test-gpu bench docs pictures

check:           ## about 4 minutes on two cores: format, lint, types, fast tests (architecture included)
	$(RUN) ruff format --check .
	$(RUN) ruff check .
	$(RUN) pyright
	$(RUN) pytest -q -m "not slow"

format:          ## formats and mends what can be mended
	$(RUN) ruff format .
	$(RUN) ruff check --fix .

shapes:          ## the fast tests with every array shape checked
	MAMBAR_SHAPES=1 $(RUN) pytest -q -m "not slow and not wrong_shapes"

test:            ## every test
	$(RUN) pytest

soak:            ## the long counts behind the promises
	$(RUN) pytest --soak -m soak

test-gpu:        ## on a machine with an NVIDIA GPU
	$(RUN) pytest -m gpu

docs:            ## the site of the documents in site/, without a network; a warning is an error
	$(RUN) zensical build --clean --strict

pictures:        ## remakes the pictures of the documents that need no GPU, with the commit of each
	$(RUN) python benchmarks/pictures.py
