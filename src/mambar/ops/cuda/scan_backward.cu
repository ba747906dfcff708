// The backward of the selective scan. A warp processes 32 channels; a thread has 4 of them x 4 of their 16 states, so
// that sums over channels (for B and C) and over states (for u and delta) need few exchanges between threads.
//
// A first loop in scan order stores the state before every STEPS positions to scratch memory. The second loop runs in
// reverse: it recomputes the states of STEPS positions, then the gradients. With dh the gradient of the state, e the
// incoming gradient of the next step, and a = exp(d A) (h is the state before the step, H = a h + d u B after it):
//     dh = dy C + e           dB += dh d u        dC += dy H      e for the previous step = a dh
//     g = a dh h (exponent)   dA += d g           ddelta = sum A g + u sum B dh       du = d sum B dh + D dy
// dB and dC are summed over the channels of a block; the caller adds the blocks in a fixed order. No atomics.
//
// Blocks are persistent and take every gridDim.x-th item (direction, batch, segment, 128 channels). Each has its own
// scratch, so that most of the scratch memory stays in the L2 cache.
//
// Activations and checkpoints pass through ring buffers in shared memory, RING - 1 slots in advance. The warps of a
// block synchronize once every STEPS positions to sum their parts of dB and dC; the sum is taken one slot later,
// without waits.
//
// Macros: SCALAR, SOFTPLUS, DIRECTIONS (1, 2), REVERSE (with one direction), ASYNC_COPY, ALIGNED_BC, ALIGNED_A,
// SEGMENTED (items are also segments of the sequence, with their initial states and gradients of last states),
// TENSOR_CORES (sums over states and channels on tensor cores with 11-bit inputs and 24-bit sums, for 16-bit types).
#define STEPS 4
#define RING 4
#define WARPS 4
#define THREADS (32 * WARPS)
// Channels of a warp; values of one array in one slot of the ring buffer.
#define WIDTH 32
#define SLOT_SIZE (STEPS * WIDTH)
#define COPIES_PER_ROW (WIDTH * (int)sizeof(scalar) / COPY_BYTES)

// sum = left (16 x 8) right (8 x 8) + sum; operands are floats, of which the tensor cores use 19 bits.
__device__ __forceinline__ void multiply_add(float (&sum)[4], float a0, float a1, float a2, float a3, float b0, float b1) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(__float_as_uint(a0)), "r"(__float_as_uint(a1)), "r"(__float_as_uint(a2)), "r"(__float_as_uint(a3)),
          "r"(__float_as_uint(b0)), "r"(__float_as_uint(b1)));
}
__device__ __forceinline__ void multiply(float (&product)[4], float a0, float a1, float a2, float a3, float b0, float b1) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%10,%10,%10};"
        : "=f"(product[0]), "=f"(product[1]), "=f"(product[2]), "=f"(product[3])
        : "r"(__float_as_uint(a0)), "r"(__float_as_uint(a1)), "r"(__float_as_uint(a2)), "r"(__float_as_uint(a3)),
          "r"(__float_as_uint(b0)), "r"(__float_as_uint(b1)), "f"(0.f));
}

// Operands of the products that sum or transpose tiles: 1 where a condition is true. The asm statement stops the
// compiler from recomputing them. The tensor cores need four operands in adjacent registers, of which two have an
// effect; `skip` and `shift`, which are needed elsewhere, fill the other two.
struct Constants {
    float low, high, same, skip, next, shift;
    __device__ __forceinline__ Constants(int group, int part, float skip, float shift)
        : low(group < 4), high(group >= 4), same(group == part), skip(skip), next(group == part + 4), shift(shift) {
        asm volatile("" : "+f"(low), "+f"(high), "+f"(same), "+f"(next));
    }
};

// A lane is 4 group + part. Adds four values over the parts of a group; part k returns value k.
__device__ __forceinline__ float sum_of_parts(const float (&value)[4], int part, const Constants &constants) {
#if TENSOR_CORES
    float sum[4];
    multiply(sum, value[0], value[1], value[2], value[3], constants.low, constants.high);
    return part & 1 ? sum[2] : sum[0];
#else
    const bool high = part & 2, odd = part & 1;
    float even = high ? value[2] : value[0], other = high ? value[3] : value[1];
    even += __shfl_xor_sync(ALL_LANES, high ? value[0] : value[2], 2);
    other += __shfl_xor_sync(ALL_LANES, high ? value[1] : value[3], 2);
    return (odd ? other : even) + __shfl_xor_sync(ALL_LANES, odd ? even : other, 1);
#endif
}

// Adds eight values (four for B, four for C) over the groups; each lane returns one, at `slot_of_lane`.
__device__ __forceinline__ float sum_of_groups(
    const float (&for_B)[4], const float (&for_C)[4], int lane, const Constants &constants) {
    const int part = lane & 3, group = lane >> 2;
#if TENSOR_CORES
    // A product with the identity transposes the tile: groups become columns, parts become rows.
    float pair[4], sum[4];
#pragma unroll
    for (int n = 0; n < 4; n++) {
        float transposed[4];
        multiply(transposed, constants.same, constants.skip, constants.next, constants.shift, for_B[n], for_C[n]);
        pair[n] = transposed[0] + transposed[1];
    }
    multiply(sum, pair[0], pair[1], pair[2], pair[3], constants.low, constants.high);
    return part & 1 ? sum[2] : sum[0];
#else
    const bool kind = group & 4, high = group & 2, odd = group & 1;
    float partial[4];
#pragma unroll
    for (int n = 0; n < 4; n++)
        partial[n] = (kind ? for_C[n] : for_B[n]) + __shfl_xor_sync(ALL_LANES, kind ? for_B[n] : for_C[n], 16);
    float even = high ? partial[2] : partial[0], other = high ? partial[3] : partial[1];
    even += __shfl_xor_sync(ALL_LANES, high ? partial[0] : partial[2], 8);
    other += __shfl_xor_sync(ALL_LANES, high ? partial[1] : partial[3], 8);
    return (odd ? other : even) + __shfl_xor_sync(ALL_LANES, odd ? even : other, 4);
#endif
}

// The position in a row of (16 B, 16 C) of the sum that a lane holds.
__device__ __forceinline__ int slot_of_lane(int lane) {
#if TENSOR_CORES
    return lane;
#else
    const int part = lane & 3, group = lane >> 2;
    return (group >> 2) * 16 + part * 4 + (group & 3);
#endif
}

__device__ __forceinline__ void arrive(unsigned barrier) {
    asm volatile("{ .reg .b64 phase; mbarrier.arrive.shared.b64 phase, [%0]; }" ::"r"(barrier) : "memory");
}
__device__ __forceinline__ void await(unsigned barrier, int parity) {
    asm volatile(
        "{ .reg .pred done;\n"
        "again: mbarrier.test_wait.parity.shared.b64 done, [%0], %1;\n"
        "@!done bra again; }" ::"r"(barrier), "r"(parity) : "memory");
}

extern "C" __global__ void __launch_bounds__(THREADS, 2) scan_backward(
    const scalar *u, const scalar *delta, const scalar *B, const scalar *C, const scalar *dy,
    const float *A_forward, const float *A_backward, const float *D_forward, const float *D_backward,
    const float *bias_forward, const float *bias_backward, const float *initial, const float *dlast,
    scalar *du, scalar *ddelta, float *dBC, float *dA, float *dD, float *dbias, float *dinitial, float *scratch,
    i64 batches, i64 length, i64 segment, i64 inner, i64 states, i64 window,
    i64 u_batch, i64 u_time, i64 u_direction, i64 delta_batch, i64 delta_time, i64 delta_direction,
    i64 B_batch, i64 B_time, i64 B_direction, i64 C_batch, i64 C_time, i64 C_direction, i64 dy_batch, i64 dy_time) {
    extern __shared__ float4 shared[];
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, part = lane & 3, group = lane >> 2;
    float *rows = (float *)shared;                                              // window x (16 B, 16 C)
    float *staged = rows + window * 32 + warp * (3 * SLOT_SIZE);                // d, d u, dy of 32 channels
    float *parts = rows + window * 32 + WARPS * (3 * SLOT_SIZE);                // RING x STEPS x WARPS x (16 B, 16 C)
    float4 *before = (float4 *)(parts + RING * STEPS * WARPS * 32) + threadIdx.x;  // RING x 4 x THREADS: checkpoints
    scalar *rings = (scalar *)((float4 *)(parts + RING * STEPS * WARPS * 32) + RING * 4 * THREADS);
    scalar *ring = rings + warp * (RING * 3 * SLOT_SIZE);                       // u, delta, dy
    const unsigned barriers = shared_address(rings + WARPS * (RING * 3 * SLOT_SIZE));
    const int size = sizeof(scalar), segments = SEGMENTED ? (int)((length + segment - 1) / segment) : 1;
    const i64 across = (inner + 32 * WARPS - 1) / (32 * WARPS), items = across * batches * DIRECTIONS * segments;
    float4 *checkpoints = (float4 *)scratch + ((i64)blockIdx.x * WARPS + warp) * ((segment + STEPS - 1) / STEPS) * 128 + lane;
    keep_in_register(checkpoints);

    if (threadIdx.x < 2)
        asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(barriers + 8 * threadIdx.x), "r"(THREADS) : "memory");
    // Chunks processed by the second loop so far; selects the barrier, its phase and the slot of `parts`.
    int num_chunks_done = 0;

#pragma unroll 1
    for (i64 item = blockIdx.x; item < items; item += gridDim.x) {
        // Rows of arrays with one per direction and batch item, and with one per segment of these.
        const i64 slice = item % across, segment_row = item / across, sequence = segment_row / segments, batch = sequence % batches;
        const int direction = DIRECTIONS == 2 ? (int)(sequence / batches) : 0;
        const bool back = DIRECTIONS == 2 ? direction == 1 : REVERSE;
        // Positions before the segment in scan order: segments are full except the last in this order.
        const int index = (int)(segment_row % segments), done = SEGMENTED ? (back ? segments - 1 - index : index) * (int)segment : 0;
        const int steps = SEGMENTED ? min((int)segment, (int)length - done) : (int)length, chunks = (steps + STEPS - 1) / STEPS;
        const int begin = SEGMENTED ? (back ? (int)length - done - steps : done) : 0;
        const float *A = direction ? A_backward : A_forward, *D = direction ? D_backward : D_forward, *bias = direction ? bias_backward : bias_forward;

        // The channel of this thread for per-channel work, and its tile of channels x states for the rest.
        const i64 wanted = slice * 32 * WARPS + warp * 32, tile = wanted + group * 4;
        const bool inside = wanted + lane < inner;
        const i64 channel = inside ? wanted + lane : inner - 1;
        float decay[4][4], state[4][4];
#pragma unroll
        for (int c = 0; c < 4; c++) {
            load_decay<4>(decay[c], A, tile + c, part * 4, (int)states, tile + c < inner);
#pragma unroll
            for (int n = 0; n < 4; n++) {
                const int s = part * 4 + n;
                const bool valid = initial && s < states && tile + c < inner;
                state[c][n] = valid ? initial[(segment_row * inner + tile + c) * states + s] : 0.f;
            }
        }
        const Constants constants(group, part, D ? D[channel] : 0.f, bias ? bias[channel] : 0.f);
        const int live = inside ? steps : 0, first = begin + (back ? steps - 1 : 0), time_sign = back ? -1 : 1;

        // The elements of each array that this thread copies to a slot. With ASYNC_COPY: one copy, of one step, in
        // every ROUND; else its own channel at every step.
#if ASYNC_COPY
        const int my_step = lane / COPIES_PER_ROW, my_offset = lane * (COPY_BYTES / size);
        const i64 my_channel = min(wanted + lane % COPIES_PER_ROW * (COPY_BYTES / size), inner - COPY_BYTES / size);
#else
        const int my_step = 0, my_offset = lane;
        const i64 my_channel = channel;
#endif
        const char *u_from = (const char *)(u + batch * u_batch + direction * u_direction + first * u_time + my_channel);
        const char *delta_from = (const char *)(delta + batch * delta_batch + direction * delta_direction + first * delta_time + my_channel);
        const char *dy_from = (const char *)(dy + batch * dy_batch + first * dy_time + my_channel);
        const int u_next = time_sign * (int)u_time * size, delta_next = time_sign * (int)delta_time * size;
        const int dy_next = time_sign * (int)dy_time * size;
        auto fetch_array = [&](scalar *to, const char *from, int next, int start) {
#if ASYNC_COPY
            constexpr int ROUND = 32 / COPIES_PER_ROW < STEPS ? 32 / COPIES_PER_ROW : STEPS;
#pragma unroll
            for (int k = 0; k < STEPS; k += ROUND)
                if (ROUND * COPIES_PER_ROW == 32 || lane < ROUND * COPIES_PER_ROW)
                    copy_async(to + k * WIDTH, from + (i64)min(start + my_step + k, steps - 1) * next);
#else
#pragma unroll
            for (int k = 0; k < STEPS; k++) to[k * WIDTH] = *(const scalar *)(from + (i64)min(start + k, steps - 1) * next);
#endif
        };
        // Fetches one slot of the ring buffer and, in the second loop, the checkpoint of the chunk.
        auto fetch = [&](int chunk, bool gradient) {
            if (chunk >= 0 && chunk < chunks) {
                scalar *to = ring + (chunk & (RING - 1)) * (3 * SLOT_SIZE) + my_offset;
                fetch_array(to, u_from, u_next, chunk * STEPS);
                fetch_array(to + SLOT_SIZE, delta_from, delta_next, chunk * STEPS);
                if (gradient) {
                    fetch_array(to + 2 * SLOT_SIZE, dy_from, dy_next, chunk * STEPS);
                    if (chunk < chunks - 1)
#pragma unroll
                        for (int c = 0; c < 4; c++)
                            copy_async(before + ((chunk & (RING - 1)) * 4 + c) * THREADS, checkpoints + chunk * 128 + c * 32);
                }
            }
            commit_copies();
        };
        // Stages STEPS positions of the channel of this thread for the whole warp. Beyond the end d = 0, a step without
        // effect.
        auto stage = [&](int chunk, bool gradient) {
            const scalar *from = ring + (chunk & (RING - 1)) * (3 * SLOT_SIZE) + lane;
            scalar held[3][STEPS];
            float d[STEPS];
#pragma unroll
            for (int k = 0; k < STEPS; k++) {
                held[0][k] = from[k * WIDTH];
                held[1][k] = from[SLOT_SIZE + k * WIDTH];
                if (gradient) held[2][k] = from[2 * SLOT_SIZE + k * WIDTH];
            }
#pragma unroll
            for (int k = 0; k < STEPS; k++) {
                d[k] = widen(held[1][k]) + constants.shift;
                if (SOFTPLUS) d[k] = softplus(d[k]);
            }
#pragma unroll
            for (int k = 0; k < STEPS; k++) {
                staged[k * WIDTH + lane] = d[k];
                staged[SLOT_SIZE + k * WIDTH + lane] = d[k] * widen(held[0][k]);
                if (gradient) staged[2 * SLOT_SIZE + k * WIDTH + lane] = inside ? widen(held[2][k]) : 0.f;
            }
            if ((chunk + 1) * STEPS > steps) {
#pragma unroll 1
                for (int k = steps - chunk * STEPS; k < STEPS; k++)
                    staged[k * WIDTH + lane] = staged[SLOT_SIZE + k * WIDTH + lane] = staged[2 * SLOT_SIZE + k * WIDTH + lane] = 0.f;
            }
            __syncwarp();
        };
        auto load_window = [&](int start) {
            __syncthreads();
            load_rows<THREADS>(
                rows, B + batch * B_batch + direction * B_direction, C + batch * C_batch + direction * C_direction, B_time, C_time,
                first + time_sign * start, time_sign, (int)window, steps - start, (int)states);
            __syncthreads();
        };

        // The loop in scan order. A window is a multiple of STEPS; the last one stays loaded for the second loop.
        const int windows = (steps + (int)window - 1) / (int)window, window_chunks = (int)window / STEPS;
#pragma unroll
        for (int chunk = 0; chunk < RING - 1; chunk++) fetch(chunk, false);
#pragma unroll 1
        for (int w = 0; w < windows; w++) {
            load_window(w * (int)window);
            const int until = min((w + 1) * window_chunks, chunks - 1);
            const float *row = rows + part * 4;
#pragma unroll 1
            for (int chunk = w * window_chunks; chunk < until; chunk++, row += STEPS * 32) {
                wait_for_copies<RING - 2>();
                __syncwarp();
                fetch(chunk + RING - 1, false);
                stage(chunk, false);
#pragma unroll
                for (int c = 0; c < 4; c++)
                    store_global(
                        checkpoints + chunk * 128 + c * 32, make_float4(state[c][0], state[c][1], state[c][2], state[c][3]));
#pragma unroll
                for (int k = 0; k < STEPS; k++) {
                    const float4 d4 = *(const float4 *)(staged + k * WIDTH + group * 4);
                    const float4 x4 = *(const float4 *)(staged + SLOT_SIZE + k * WIDTH + group * 4);
                    const float4 b4 = *(const float4 *)(row + k * 32);
                    const float d[4] = {d4.x, d4.y, d4.z, d4.w}, x[4] = {x4.x, x4.y, x4.z, x4.w}, b[4] = {b4.x, b4.y, b4.z, b4.w};
#pragma unroll
                    for (int c = 0; c < 4; c++)
#pragma unroll
                        for (int n = 0; n < 4; n++)
                            state[c][n] = fmaf(fast_exp2(d[c] * decay[c][n]), state[c][n], x[c] * b[n]);
                }
            }
        }
        wait_for_copies<0>();
        __threadfence_block();
        __syncwarp();

        // The loop in reverse. The last chunk starts from the current state.
        float dstate[4][4], dA_sum[4][4], dD_sum = 0.f, dbias_sum = 0.f;
#pragma unroll
        for (int c = 0; c < 4; c++) {
            before[(((chunks - 1) & (RING - 1)) * 4 + c) * THREADS] = make_float4(state[c][0], state[c][1], state[c][2], state[c][3]);
#pragma unroll
            for (int n = 0; n < 4; n++) {
                const int s = part * 4 + n;
                const bool valid = dlast && s < states && tile + c < inner;
                dstate[c][n] = valid ? dlast[(segment_row * inner + tile + c) * states + s] : 0.f;
                dA_sum[c][n] = 0.f;
            }
        }
        char *du_first = (char *)(du + (sequence * length + first) * inner + channel);
        char *ddelta_first = (char *)(ddelta + (sequence * length + first) * inner + channel);
        const int out_next = time_sign * (int)inner * size;
        keep_in_register(du_first);
        keep_in_register(ddelta_first);
        float *dBC_to = dBC + ((sequence * across + slice) * length + first) * 32 + slot_of_lane(lane);
        // Warp k sums step k of a chunk over the warps, after all warps have arrived.
        auto sum_over_warps = [&](int chunk, int number) {
            await(barriers + 8 * (number & 1), number >> 1 & 1);
            const float *from = parts + ((number & (RING - 1)) * STEPS + warp) * (WARPS * 32) + lane;
            const int step = chunk * STEPS + warp;
            const float sum = (from[0] + from[32]) + (from[64] + from[96]);
            if (step < steps) dBC_to[(i64)time_sign * step * 32] = sum;
        };
#pragma unroll
        for (int chunk = 0; chunk < RING - 1; chunk++) fetch(chunks - 1 - chunk, true);
#pragma unroll 1
        for (int w = windows - 1; w >= 0; w--) {
            if (w < windows - 1) load_window(w * (int)window);
            int chunk = min((w + 1) * window_chunks, chunks) - 1;
            const float *row = rows + (chunk - w * window_chunks) * STEPS * 32 + part * 4;
#pragma unroll 1
            for (; chunk >= w * window_chunks; chunk--, num_chunks_done++, row -= STEPS * 32) {
                wait_for_copies<RING - 2>();
                __syncwarp();
                fetch(chunk - (RING - 1), true);
                stage(chunk, true);
                float states_at[STEPS + 1][4][4], decay_factor[STEPS][4][4];
#pragma unroll
                for (int c = 0; c < 4; c++) {
                    const float4 h = before[((chunk & (RING - 1)) * 4 + c) * THREADS];
                    states_at[0][c][0] = h.x; states_at[0][c][1] = h.y; states_at[0][c][2] = h.z; states_at[0][c][3] = h.w;
                }
#pragma unroll
                for (int k = 0; k < STEPS; k++) {
                    const float4 d4 = *(const float4 *)(staged + k * WIDTH + group * 4);
                    const float4 x4 = *(const float4 *)(staged + SLOT_SIZE + k * WIDTH + group * 4);
                    const float4 b4 = *(const float4 *)(row + k * 32);
                    const float d[4] = {d4.x, d4.y, d4.z, d4.w}, x[4] = {x4.x, x4.y, x4.z, x4.w}, b[4] = {b4.x, b4.y, b4.z, b4.w};
#pragma unroll
                    for (int c = 0; c < 4; c++)
#pragma unroll
                        for (int n = 0; n < 4; n++) {
                            decay_factor[k][c][n] = fast_exp2(d[c] * decay[c][n]);
                            states_at[k + 1][c][n] = fmaf(decay_factor[k][c][n], states_at[k][c][n], x[c] * b[n]);
                        }
                }
                float sums[STEPS], by_B[STEPS], by_A[STEPS];
#pragma unroll
                for (int k = STEPS - 1; k >= 0; k--) {
                    const float4 d4 = *(const float4 *)(staged + k * WIDTH + group * 4);
                    const float4 x4 = *(const float4 *)(staged + SLOT_SIZE + k * WIDTH + group * 4);
                    const float4 y4 = *(const float4 *)(staged + 2 * SLOT_SIZE + k * WIDTH + group * 4);
                    const float4 b4 = *(const float4 *)(row + k * 32), c4 = *(const float4 *)(row + k * 32 + 16);
                    const float d[4] = {d4.x, d4.y, d4.z, d4.w}, x[4] = {x4.x, x4.y, x4.z, x4.w}, b[4] = {b4.x, b4.y, b4.z, b4.w};
                    const float y[4] = {y4.x, y4.y, y4.z, y4.w}, out[4] = {c4.x, c4.y, c4.z, c4.w};
                    float for_B[4], for_C[4], for_A[4], gradient[4][4];
#pragma unroll
                    for (int c = 0; c < 4; c++)
#pragma unroll
                        for (int n = 0; n < 4; n++) {
                            const float dh = fmaf(y[c], out[n], dstate[c][n]);
                            gradient[c][n] = dh;
                            for_B[n] = c ? fmaf(dh, x[c], for_B[n]) : dh * x[c];
                            for_C[n] = c ? fmaf(y[c], states_at[k + 1][c][n], for_C[n]) : y[c] * states_at[k + 1][c][n];
                            dstate[c][n] = dh * decay_factor[k][c][n];
                            const float grad_exponent = dstate[c][n] * states_at[k][c][n];
                            for_A[c] = n ? fmaf(grad_exponent, decay[c][n], for_A[c]) : grad_exponent * decay[c][n];
                            dA_sum[c][n] = fmaf(grad_exponent, d[c], dA_sum[c][n]);
                        }
                    sums[k] = sum_of_groups(for_B, for_C, lane, constants);

                    // Sums over states of dh B and of grad_exponent A log2(e), for the channel of this thread.
#if TENSOR_CORES
                    float low[4], high[4];
                    multiply(low, gradient[0][0], gradient[1][0], gradient[0][1], gradient[1][1], b[0], b[1]);
                    multiply(high, gradient[2][0], gradient[3][0], gradient[2][1], gradient[3][1], b[0], b[1]);
                    multiply_add(low, gradient[0][2], gradient[1][2], gradient[0][3], gradient[1][3], b[2], b[3]);
                    multiply_add(high, gradient[2][2], gradient[3][2], gradient[2][3], gradient[3][3], b[2], b[3]);
                    by_B[k] = part & 2 ? (part & 1 ? high[2] : high[0]) : (part & 1 ? low[2] : low[0]);
#else
                    float for_u[4];
#pragma unroll
                    for (int c = 0; c < 4; c++) {
                        for_u[c] = gradient[c][0] * b[0];
#pragma unroll
                        for (int n = 1; n < 4; n++) for_u[c] = fmaf(gradient[c][n], b[n], for_u[c]);
                    }
                    by_B[k] = sum_of_parts(for_u, part, constants);
#endif
                    by_A[k] = sum_of_parts(for_A, part, constants);
                }
                // Per-channel work, with all loads first.
                const scalar *own = ring + (chunk & (RING - 1)) * (3 * SLOT_SIZE) + lane;
                float own_d[STEPS], own_u[STEPS], own_dy[STEPS];
#pragma unroll
                for (int k = 0; k < STEPS; k++) {
                    own_d[k] = staged[k * WIDTH + lane];
                    own_dy[k] = staged[2 * SLOT_SIZE + k * WIDTH + lane];
                    own_u[k] = widen(own[k * WIDTH]);
                }
#pragma unroll
                for (int k = 0; k < STEPS; k++) {
                    const int step = chunk * STEPS + k;
                    float slope = fmaf(own_u[k], by_B[k], LN2 * by_A[k]);
                    if (SOFTPLUS) slope *= softplus_derivative(own_d[k]);
                    slope = step < live ? slope : 0.f;
                    dbias_sum += slope;
                    dD_sum = fmaf(own_dy[k], own_u[k], dD_sum);
                    if (step < live) {
                        const float du_value = fmaf(own_d[k], by_B[k], constants.skip * own_dy[k]);
                        store_global(du_first + (i64)step * out_next, narrow(du_value));
                        store_global(ddelta_first + (i64)step * out_next, narrow(slope));
                    }
                    parts[(((num_chunks_done & (RING - 1)) * STEPS + k) * WARPS + warp) * 32 + lane] = sums[k];
                }
                __syncwarp();
                arrive(barriers + 8 * (num_chunks_done & 1));
                if (chunk < chunks - 1) sum_over_warps(chunk + 1, num_chunks_done - 1);
            }
        }
        wait_for_copies<0>();
        sum_over_warps(0, num_chunks_done - 1);
#pragma unroll
        for (int c = 0; c < 4; c++)
#pragma unroll
            for (int n = 0; n < 4; n++) {
                const int s = part * 4 + n;
                if (s < states && tile + c < inner) {
                    const i64 at = (segment_row * inner + tile + c) * states + s;
                    dA[at] = dA_sum[c][n];
                    if (dinitial) dinitial[at] = dstate[c][n];
                }
            }
        if (inside) {
            dD[segment_row * inner + channel] = dD_sum;
            dbias[segment_row * inner + channel] = dbias_sum;
        }
    }
}
