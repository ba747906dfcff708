"""The data of a scan over one block of channels: activations in memory, parameters in scratch."""

from llvmlite import ir

from mambar.ops.llvm.functions import Scratch
from mambar.ops.llvm.memory_layout import Rows, TaskTensors, Tile
from mambar.ops.llvm.vectors import LOG2_E, Block, Vectors, element_pointer, int64

CHECKPOINT_EVERY = 16
# Lower bound of A, also for -Inf: at this rate a state already decays to 0 in one step.
MIN_DECAY = -1e9


class ScanLoop:
    """Inputs of a scan: rows of u, delta, B and C, and tiles of A (times log2(e)), D and delta_bias.

    Parameters that are not given are 0, and lanes without a channel are 0. If `A_is_log` holds, the argument A is
    A_log, and the decay rates are -exp(A_log). If `rank` is not 0, delta is not given: it is the product of the
    argument dt_proj with the `rank` channels in front of B.
    """

    def __init__(
        self,
        tensors: TaskTensors,
        vectors: Vectors,
        scratch: Scratch,
        *,
        A_is_log: ir.Value | None = None,
        rank: ir.Value | None = None,
    ):
        self.tensors = tensors
        self.function = tensors.function
        self.builder = tensors.builder
        self.vectors = vectors
        self.scratch = scratch
        self.length = tensors.argument("length")
        self.state = tensors.argument("state")
        self.u, self.delta = tensors.rows("u"), tensors.rows("delta")
        self.B, self.C = (tensors.rows(name, by_channel=False, dtype="float32") for name in ("B", "C"))
        self.A = self.tile()
        self.D, self._bias = self.tile(1), self.tile(1)
        self._load_parameters(A_is_log)
        self._rank = rank
        if rank is not None:
            self._low = Rows(
                builder=self.builder,
                first=element_pointer(self.builder, self.B.first, self.builder.neg(rank)),
                stride=self.B.stride,
            )
            self._dt_proj = self.tile(rank)
            self._dt_proj.clear()
            offset = self.builder.mul(tensors.channel, rank)
            self._dt_proj.load_transposed(tensors.offset_pointer("dt_proj", offset))

    def tile(self, num_rows: ir.Value | int | None = None) -> Tile:
        """A new tile with `num_rows` rows, by default one per state."""
        return Tile(self.function, self.vectors, self.scratch, self.state if num_rows is None else num_rows)

    def read_states(self, name: str, tile: Tile) -> None:
        """Loads a tile from a (batch, d_inner, d_state) tensor, or fills it with 0 if the tensor is not given."""
        tile.clear()
        with self.builder.if_then(self.tensors.is_set(name)):
            tile.load_transposed(self._states(name))

    def write_states(self, name: str, tile: Tile) -> None:
        """Stores a tile to a (batch, d_inner, d_state) tensor, if it is given."""
        with self.builder.if_then(self.tensors.is_set(name)):
            tile.store_transposed(self._states(name))

    def checkpoint(self, first: ir.Value) -> Rows:
        """The saved states before step `first`, a multiple of CHECKPOINT_EVERY: one row of channels per state."""
        chunks = self.builder.udiv(padded_length(self.tensors), int64(CHECKPOINT_EVERY))
        number = self.builder.udiv(first, int64(CHECKPOINT_EVERY))
        rows_per_item = self.builder.mul(chunks, self.state)
        return self.tensors.item_rows("checkpoints", rows_per_item, self.builder.mul(number, self.state))

    def chunk_end(self, first: ir.Value) -> ir.Value:
        """The end (exclusive) of the chunk that starts at step `first`."""
        end = self.builder.add(first, int64(CHECKPOINT_EVERY))
        return self.builder.select(self.builder.icmp_signed("<", end, self.length), end, self.length)

    def step_size(self, step: ir.Value) -> Block:
        """dt of a step."""
        raw = self._raw_step_size(step)
        return self.function.choose(self.tensors.is_set("delta_softplus"), lambda: self.vectors.softplus(raw), raw)

    def step_size_and_derivative(self, step: ir.Value) -> tuple[Block, Block]:
        """dt of a step, and its derivative with respect to delta."""
        vectors, raw = self.vectors, self._raw_step_size(step)

        def through_softplus() -> Block:
            dt, derivative = vectors.softplus_and_derivative(raw)
            return dt + derivative

        both = self.function.choose(
            self.tensors.is_set("delta_softplus"), through_softplus, raw + vectors.constant(1.0)
        )
        return both[: vectors.count], both[vectors.count :]

    def _raw_step_size(self, step: ir.Value) -> Block:
        vectors, rank = self.vectors, self._rank
        if rank is None:
            return vectors.add(vectors.load(self.delta.at(step), self.delta.dtype), self._bias.load())
        delta = self.function.choose(
            self.builder.icmp_unsigned("==", rank, int64(0)),
            lambda: vectors.load(self.delta.at(step), self.delta.dtype),
            vectors.constant(0.0),
        )
        low, loop = self._low.at(step), self.function.loop

        def add(index: ir.Value, sums: Block) -> tuple[Block]:
            return (vectors.fma(self._dt_proj.load(index), vectors.broadcast_load(low, index), sums),)

        def add_two(index: ir.Value, even: Block, odd: Block) -> tuple[Block, Block]:
            return *add(index, even), *add(self.builder.add(index, int64(1)), odd)

        # Two sums, because each waits for its last addition.
        pairs = self.builder.and_(rank, int64(-2))
        start = vectors.add(delta, self._bias.load())
        even, odd = loop(pairs, add_two, start, vectors.constant(0.0), step=2)
        return loop(rank, add, vectors.add(even, odd), start=pairs)[0]

    def _states(self, name: str) -> ir.Value:
        row = self.builder.add(
            self.builder.mul(self.tensors.item, self.tensors.argument("inner")), self.tensors.channel
        )
        return self.tensors.offset_pointer(name, self.builder.mul(row, self.state))

    def _load_parameters(self, A_is_log: ir.Value | None) -> None:
        vectors, tensors = self.vectors, self.tensors
        log2_e = vectors.constant(LOG2_E)

        def decay(A_log: Block) -> Block:
            # At the bounds the exponential is already 0 and Inf.
            return vectors.neg(vectors.exp2(vectors.clamp_max(110.0, vectors.clamp_min(-110.0, A_log)), log2_e))

        self.A.clear()
        self.A.load_transposed(tensors.offset_pointer("A", self.builder.mul(tensors.channel, self.state)))

        def scale(row: ir.Value) -> None:
            A = self.A.load(row)
            if A_is_log is not None:
                A = self.function.choose(A_is_log, lambda: decay(A), A)
            self.A.store(vectors.clamp_min(MIN_DECAY, vectors.mul(A, log2_e)), row)

        self.function.loop(self.state, scale)
        for tile, name in ((self.D, "D"), (self._bias, "delta_bias")):
            address = tensors.offset_pointer(name, tensors.channel)
            values = self.function.choose(
                tensors.is_set(name), lambda address=address: vectors.load(address), vectors.constant(0.0)
            )
            tile.store(values)


def padded_to_chunks(length: int) -> int:
    """A length rounded up to whole chunks."""
    return -(-length // CHECKPOINT_EVERY) * CHECKPOINT_EVERY


def padded_length(tensors: TaskTensors) -> ir.Value:
    """The length of the scan rounded up to whole chunks."""
    up = tensors.builder.add(tensors.argument("length"), int64(CHECKPOINT_EVERY - 1))
    return tensors.builder.and_(up, int64(-CHECKPOINT_EVERY))
