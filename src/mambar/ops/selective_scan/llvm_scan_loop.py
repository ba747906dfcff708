"""One walk of a block of channels through time: its activations, and its parameters in scratch."""

from llvmlite import ir

from mambar.ops.llvm.functions import Scratch
from mambar.ops.llvm.memory_layout import Place, Rows, Tile
from mambar.ops.llvm.vectors import LOG2_E, Block, Vectors, int64

CHECKPOINT_EVERY = 16
# A is taken as at least this (and -Inf with it): far below any that leaves something of a state.
LEAST_DECAY = -1e9


class Walk:
    """What a walk reads: rows of u, delta, B and C, and tiles of A (times log2(e)), D and the bias.

    Parameters that are not given are 0, and so are lanes without a channel.
    """

    def __init__(self, place: Place, vectors: Vectors, scratch: Scratch):
        self.place = place
        self.function = place.function
        self.builder = place.builder
        self.vectors = vectors
        self.scratch = scratch
        self.length = place.read("length")
        self.state = place.read("state")
        self.u, self.delta = place.rows("u"), place.rows("delta")
        self.B, self.C = (place.rows(name, by_channel=False, dtype="float32") for name in ("B", "C"))
        self.A = self.tile()
        self.D, self._bias = self.tile(1), self.tile(1)
        self._fill()

    def tile(self, num_rows: ir.Value | int | None = None) -> Tile:
        """A new tile; a row for each state unless told otherwise."""
        return Tile(self.function, self.vectors, self.scratch, self.state if num_rows is None else num_rows)

    def read_states(self, name: str, tile: Tile) -> None:
        """Fills a tile from a (batch, inner, state) tensor, with 0 where it is not given."""
        tile.clear()
        with self.builder.if_then(self.place.given(name)):
            tile.read(self._states(name))

    def write_states(self, name: str, tile: Tile) -> None:
        """Writes a tile to a (batch, inner, state) tensor, if it is given."""
        with self.builder.if_then(self.place.given(name)):
            tile.write(self._states(name))

    def checkpoint(self, first: ir.Value) -> Rows:
        """The kept states before step `first`, a multiple of CHECKPOINT_EVERY: a row of channels for each state."""
        chunks = self.builder.udiv(padded_length(self.place), int64(CHECKPOINT_EVERY))
        number = self.builder.udiv(first, int64(CHECKPOINT_EVERY))
        rows_per_item = self.builder.mul(chunks, self.state)
        return self.place.item_rows("checkpoints", rows_per_item, self.builder.mul(number, self.state))

    def chunk_end(self, first: ir.Value) -> ir.Value:
        """The step after the last one of the chunk that begins with step `first`."""
        end = self.builder.add(first, int64(CHECKPOINT_EVERY))
        return self.builder.select(self.builder.icmp_signed("<", end, self.length), end, self.length)

    def step_size(self, step: ir.Value) -> Block:
        """dt of a step."""
        raw = self._raw_step_size(step)
        return self.function.choose(self.place.given("delta_softplus"), lambda: self.vectors.softplus(raw), raw)

    def step_size_and_slope(self, step: ir.Value) -> tuple[Block, Block]:
        """dt of a step, and its derivative."""
        vectors, raw = self.vectors, self._raw_step_size(step)

        def soft() -> Block:
            dt, slope = vectors.softplus_and_slope(raw)
            return dt + slope

        both = self.function.choose(self.place.given("delta_softplus"), soft, raw + vectors.constant(1.0))
        return both[: vectors.count], both[vectors.count :]

    def _raw_step_size(self, step: ir.Value) -> Block:
        delta = self.vectors.load(self.delta.at(step), self.delta.dtype)
        return self.vectors.add(delta, self._bias.load())

    def _states(self, name: str) -> ir.Value:
        row = self.builder.add(self.builder.mul(self.place.item, self.place.read("inner")), self.place.channel)
        return self.place.shifted(name, self.builder.mul(row, self.state))

    def _fill(self) -> None:
        vectors, place = self.vectors, self.place
        log2_e = vectors.constant(LOG2_E)
        self.A.clear()
        self.A.read(place.shifted("A", self.builder.mul(place.channel, self.state)))

        def scale(row: ir.Value) -> None:
            self.A.store(vectors.at_least(LEAST_DECAY, vectors.mul(self.A.load(row), log2_e)), row)

        self.function.loop(self.state, scale)
        for tile, name in ((self.D, "D"), (self._bias, "delta_bias")):
            address = place.shifted(name, place.channel)
            values = self.function.choose(
                place.given(name), lambda address=address: vectors.load(address), vectors.constant(0.0)
            )
            tile.store(values)


def padded(length: int) -> int:
    """A length in whole chunks."""
    return -(-length // CHECKPOINT_EVERY) * CHECKPOINT_EVERY


def padded_length(place: Place) -> ir.Value:
    """The walk's length in whole chunks."""
    up = place.builder.add(place.read("length"), int64(CHECKPOINT_EVERY - 1))
    return place.builder.and_(up, int64(-CHECKPOINT_EVERY))
