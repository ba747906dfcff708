// The forward selective scan. A thread loops over time for CHANNELS adjacent channels, with 16/LANES of their states in
// registers; LANES threads share a channel. Steps run in scan order, so each exponential is computed once. Activations
// pass through a ring buffer in shared memory, STEPS positions per slot, RING - 1 slots in advance. B and C of a window
// of positions are in shared memory as floats.
//
// With DIRECTIONS == 2 the same thread scans both directions of the mixer in sequence, without synchronization. The
// first direction stores its sum to y; the second adds its own, scales and gates.
//
// Macros: SCALAR, STEPS, RING, CHANNELS (1, 2), LANES (1, 4), THREADS, SOFTPLUS, GATED, SAVE_PREGATE (store the sum
// before the gate too), DIRECTIONS (1, 2), REVERSE (with one direction), MIN_BLOCKS (per multiprocessor), ASYNC_COPY,
// ALIGNED_BC, ALIGNED_A.
#define STATES (16 / LANES)
// Channels of a warp; values and 16-byte copies of one array in one slot of the ring buffer.
#define WIDTH (32 * CHANNELS / LANES)
#define SLOT_SIZE (STEPS * WIDTH)
#define COPIES_PER_ROW (WIDTH * (int)sizeof(scalar) / COPY_BYTES)
#define ARRAYS (2 + GATED + (DIRECTIONS == 2))

extern "C" __global__ void __launch_bounds__(THREADS, MIN_BLOCKS) scan_forward(
    const scalar *u, const scalar *delta, const scalar *B, const scalar *C, const scalar *z,
    const float *A_forward, const float *A_backward, const float *D_forward, const float *D_backward,
    const float *bias_forward, const float *bias_backward, const float *initial, scalar *y, scalar *kept, float *last,
    i64 length, i64 inner, i64 states, i64 window, double scale,
    i64 u_batch, i64 u_time, i64 u_direction, i64 delta_batch, i64 delta_time, i64 delta_direction,
    i64 B_batch, i64 B_time, i64 B_direction, i64 C_batch, i64 C_time, i64 C_direction, i64 z_batch, i64 z_time) {
    extern __shared__ float4 shared[];
    const int lane = threadIdx.x & 31, part = lane % LANES, steps = (int)length, chunks = (steps + STEPS - 1) / STEPS;
    float *rows = (float *)shared;
    scalar *ring = (scalar *)(rows + window * 32) + threadIdx.x / 32 * (RING * ARRAYS * SLOT_SIZE);
    const i64 batch = blockIdx.y;
    // First channel of the warp and of the thread. At the end of a row some warps recompute channels without storing
    // them.
    const i64 warp_wanted = ((i64)blockIdx.x * THREADS + threadIdx.x) / 32 * WIDTH, wanted = warp_wanted + lane / LANES * CHANNELS;
    const bool inside = wanted < inner, writes = inside && part == 0;
    const i64 channel = inside ? wanted : inner - CHANNELS;
    const int size = sizeof(scalar);

#pragma unroll
    for (int direction = 0; direction < DIRECTIONS; direction++) {
        const bool back = DIRECTIONS == 2 ? direction == 1 : REVERSE;
        const bool second = direction == 1, is_last = direction == DIRECTIONS - 1, gates = GATED && is_last;
        const float *A = direction ? A_backward : A_forward, *D = direction ? D_backward : D_forward, *bias = direction ? bias_backward : bias_forward;

        float decay[CHANNELS][STATES], state[CHANNELS][STATES], skip[CHANNELS], shift[CHANNELS];
#pragma unroll
        for (int c = 0; c < CHANNELS; c++) {
            load_decay<STATES>(decay[c], A, channel + c, part * STATES, (int)states, true);
#pragma unroll
            for (int n = 0; n < STATES; n++) {
                const int s = part * STATES + n;
                state[c][n] = s < states && initial ? initial[(batch * inner + channel + c) * states + s] : 0.f;
            }
            skip[c] = D && part == 0 ? D[channel + c] : 0.f;
            shift[c] = bias ? bias[channel + c] : 0.f;
        }

        const int first = back ? steps - 1 : 0, time_sign = back ? -1 : 1;
        char *y_to = (char *)(y + (batch * length + first) * inner + channel);
        char *kept_to = (char *)(kept + (batch * length + first) * inner + channel);
        const int y_next = time_sign * (int)inner * size;

        // The elements of each array that this thread copies to a slot. With ASYNC_COPY: one copy, of one step, in
        // every ROUND; else its own channels at every step.
#if ASYNC_COPY
        const int my_step = lane / COPIES_PER_ROW, my_offset = lane * (COPY_BYTES / size);
        const i64 my_channel = min(warp_wanted + lane % COPIES_PER_ROW * (COPY_BYTES / size), inner - COPY_BYTES / size);
#else
        const int my_step = 0, my_offset = lane / LANES * CHANNELS;
        const i64 my_channel = channel;
#endif
        const char *u_from = (const char *)(u + batch * u_batch + direction * u_direction + first * u_time + my_channel);
        const char *delta_from = (const char *)(delta + batch * delta_batch + direction * delta_direction + first * delta_time + my_channel);
        const char *z_from = (const char *)(z + batch * z_batch + first * z_time + my_channel);
        const char *y_from = (const char *)(y + (batch * length + first) * inner + my_channel);
        const int u_next = time_sign * (int)u_time * size, delta_next = time_sign * (int)delta_time * size;
        const int z_next = time_sign * (int)z_time * size;
        auto fetch_array = [&](scalar *to, const char *from, int next, int start) {
#if ASYNC_COPY
            constexpr int ROUND = 32 / COPIES_PER_ROW < STEPS ? 32 / COPIES_PER_ROW : STEPS;
#pragma unroll
            for (int k = 0; k < STEPS; k += ROUND)
                if (ROUND * COPIES_PER_ROW == 32 || lane < ROUND * COPIES_PER_ROW)
                    copy_async(to + k * WIDTH, from + (i64)min(start + my_step + k, steps - 1) * next);
#else
#pragma unroll
            for (int k = 0; k < STEPS; k++) {
                Group<CHANNELS> values;
                values.load((const scalar *)(from + (i64)min(start + k, steps - 1) * next));
                *(Group<CHANNELS> *)(to + k * WIDTH) = values;
            }
#endif
        };
        auto fetch = [&](int slot, int start) {
            scalar *to = ring + slot * (ARRAYS * SLOT_SIZE) + my_offset;
            if (start < steps) {
                fetch_array(to, u_from, u_next, start);
                fetch_array(to + SLOT_SIZE, delta_from, delta_next, start);
                if (gates) fetch_array(to + 2 * SLOT_SIZE, z_from, z_next, start);
                if (second) fetch_array(to + (2 + GATED) * SLOT_SIZE, y_from, y_next, start);
            }
            commit_copies();
        };
        auto advance = [&](const scalar *from, const float *row, i64 offset) {
            float d[CHANNELS], x[CHANNELS], sum[CHANNELS], gate[CHANNELS], before[CHANNELS];
            ((const Group<CHANNELS> *)from)->to_float(x);
            ((const Group<CHANNELS> *)(from + SLOT_SIZE))->to_float(d);
            if (gates) ((const Group<CHANNELS> *)(from + 2 * SLOT_SIZE))->to_float(gate);
            if (second) ((const Group<CHANNELS> *)(from + (2 + GATED) * SLOT_SIZE))->to_float(before);
#pragma unroll
            for (int c = 0; c < CHANNELS; c++) {
                d[c] += shift[c];
                if (SOFTPLUS) d[c] = softplus(d[c]);
                sum[c] = skip[c] * x[c];
                x[c] *= d[c];
            }
#pragma unroll
            for (int q = 0; q < STATES; q += 4) {
                const float4 b4 = *(const float4 *)(row + q), c4 = *(const float4 *)(row + 16 + q);
                const float b[4] = {b4.x, b4.y, b4.z, b4.w}, out[4] = {c4.x, c4.y, c4.z, c4.w};
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    const int n = q + j;
#pragma unroll
                    for (int c = 0; c < CHANNELS; c++) {
                        const float decay_factor = fast_exp2(d[c] * decay[c][n]);
                        state[c][n] = fmaf(decay_factor, state[c][n], x[c] * b[j]);
                        sum[c] = fmaf(out[j], state[c][n], sum[c]);
                    }
                }
            }
#pragma unroll
            for (int lanes = 1; lanes < LANES; lanes *= 2)
#pragma unroll
                for (int c = 0; c < CHANNELS; c++) sum[c] += __shfl_xor_sync(ALL_LANES, sum[c], lanes);
            if (second) {
#pragma unroll
                for (int c = 0; c < CHANNELS; c++) sum[c] = (sum[c] + before[c]) * (float)scale;
            }
            if (SAVE_PREGATE && is_last && writes) Group<CHANNELS>::store((scalar *)(kept_to + offset), sum);
            if (gates) {
#pragma unroll
                for (int c = 0; c < CHANNELS; c++) {
                    // The backward with DIRECTIONS == 2 divides by the gate, which must not be zero.
                    if (DIRECTIONS == 2 && !SAVE_PREGATE) gate[c] += 1e-30f;
                    sum[c] *= gate[c] * sigmoid(gate[c]);
                }
            }
            if (writes) Group<CHANNELS>::store((scalar *)(y_to + offset), sum);
        };

        __syncwarp();
#pragma unroll
        for (int slot = 0; slot < RING - 1; slot++) fetch(slot, slot * STEPS);
        int slot = 0;
#pragma unroll 1
        for (int start = 0; start < steps; start += (int)window) {
            const int until = min(start + (int)window, steps);
            __syncthreads();
            load_rows<THREADS>(
                rows, B + batch * B_batch + direction * B_direction, C + batch * C_batch + direction * C_direction, B_time, C_time,
                first + time_sign * start, time_sign, until - start, until - start, (int)states);
            __syncthreads();
            const float *row = rows + part * STATES;
#pragma unroll 1
            for (int step = start; step < until; step += STEPS, slot = (slot + 1) % RING) {
                wait_for_copies<RING - 2>();
                __syncwarp();
                fetch((slot + RING - 1) % RING, step + (RING - 1) * STEPS);
                const scalar *from = ring + slot * (ARRAYS * SLOT_SIZE) + lane / LANES * CHANNELS;
                if (step + STEPS <= until) {
#pragma unroll
                    for (int k = 0; k < STEPS; k++) advance(from + k * WIDTH, row + k * 32, (i64)k * y_next);
                    row += STEPS * 32;
                    y_to += STEPS * (i64)y_next;
                    if (SAVE_PREGATE) kept_to += STEPS * (i64)y_next;
                } else {
#pragma unroll 1
                    for (int k = 0; k < until - step; k++) advance(from + k * WIDTH, row + k * 32, (i64)k * y_next);
                }
            }
        }
        wait_for_copies<0>();

        if (last && inside) {
#pragma unroll
            for (int c = 0; c < CHANNELS; c++)
#pragma unroll
                for (int n = 0; n < STATES; n++) {
                    const int s = part * STATES + n;
                    if (s < states) last[(batch * inner + channel + c) * states + s] = state[c][n];
                }
        }
    }
}
