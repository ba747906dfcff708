// The forward selective scan. A thread loops over time for CHANNELS adjacent channels, with 16/LANES of their states in
// registers; LANES threads share a channel, and the work per position that is the same for all states. Steps run in scan
// order, so each exponential is computed once. Activations pass through a ring buffer in shared memory, STEPS positions
// per slot, RING - 1 slots in advance. B and C of a window of positions are in shared memory as floats.
//
// With DIRECTIONS == 2 the same thread scans both directions of the mixer in sequence, without synchronization. The
// first direction stores its sum to y; the second adds its own, scales and gates.
//
// A long sequence of few channels is cut into segments, one per blockIdx.z, that run in parallel. A first launch with
// STATES_ONLY computes the state after each segment from a zero state, and the sum of its step sizes, which gives the
// decay over the segment. carry_states (gate.cu) chains them. A second launch starts each segment from its state.
// With ADJOINT the first launch runs against the scan order for the backward: e <- a (e + dy C), with dy as u, C as B.
// Segments are full except the last in scan order. With SAVE_STATES a scan that is not cut itself stores the state before
// each segment of the backward.
//
// Macros: SCALAR, STEPS, RING, CHANNELS (1, or 2 with one lane), LANES (1, 2, 4, 8), THREADS, SOFTPLUS, GATED,
// SAVE_PREGATE (store the sum before the gate too), DIRECTIONS (1, 2), REVERSE (with one direction), MIN_BLOCKS (per
// multiprocessor), ASYNC_COPY, ALIGNED_BC, ALIGNED_A, STATES_ONLY, ADJOINT, SAVE_STATES.
#define STATES (16 / LANES)
// Channels of a warp; values and 16-byte copies of one array in one slot of the ring buffer.
#define WIDTH (32 * CHANNELS / LANES)
#define SLOT_SIZE (STEPS * WIDTH)
#define ROW_BYTES (WIDTH * (int)sizeof(scalar))
#define BYTES_PER_COPY (ROW_BYTES < COPY_BYTES ? ROW_BYTES : COPY_BYTES)
#define COPIES_PER_ROW (ROW_BYTES / BYTES_PER_COPY)
#define ARRAYS (2 + GATED + (DIRECTIONS == 2 && !STATES_ONLY))

extern "C" __global__ void __launch_bounds__(THREADS, MIN_BLOCKS) scan_forward(
    const scalar *u, const scalar *delta, const scalar *B, const scalar *C, const scalar *z,
    const float *A_forward, const float *A_backward, const float *D_forward, const float *D_backward,
    const float *bias_forward, const float *bias_backward, const float *initial, scalar *y, scalar *kept, float *last,
    float *step_sums, float *saved, i64 length, i64 segment, i64 saved_segment, i64 inner, i64 states, i64 window, double scale,
    i64 u_batch, i64 u_time, i64 u_direction, i64 delta_batch, i64 delta_time, i64 delta_direction,
    i64 B_batch, i64 B_time, i64 B_direction, i64 C_batch, i64 C_time, i64 C_direction, i64 z_batch, i64 z_time) {
    extern __shared__ float4 shared[];
    const int lane = threadIdx.x & 31, part = lane % LANES;
    // The state after the last segment is not needed with STATES_ONLY.
    const i64 segments = gridDim.z + STATES_ONLY;
    float *rows = (float *)shared;
    scalar *ring = (scalar *)(rows + window * 32) + threadIdx.x / 32 * (RING * ARRAYS * SLOT_SIZE);
#if LANES > 1
    // Step sizes and inputs of a slot, for the channels of the warp.
    float2 *staged = (float2 *)((scalar *)(rows + window * 32) + THREADS / 32 * (RING * ARRAYS * SLOT_SIZE)) + threadIdx.x / 32 * SLOT_SIZE;
#endif
    const i64 batch = blockIdx.y;
    // First channel of the warp and of the thread. At the end of a row some warps recompute channels without storing
    // them.
    const i64 warp_wanted = ((i64)blockIdx.x * THREADS + threadIdx.x) / 32 * WIDTH, wanted = warp_wanted + lane / LANES * CHANNELS;
    const bool inside = wanted < inner;
    const i64 channel = inside ? wanted : inner - CHANNELS;
    const int size = sizeof(scalar);

#pragma unroll
    for (int direction = 0; direction < DIRECTIONS; direction++) {
        const bool reversed = DIRECTIONS == 2 ? direction == 1 : REVERSE, back = reversed != ADJOINT;
        const bool second = direction == 1 && !STATES_ONLY, is_last = direction == DIRECTIONS - 1, gates = GATED && is_last;
        const float *A = direction ? A_backward : A_forward, *D = direction ? D_backward : D_forward, *bias = direction ? bias_backward : bias_forward;

        const i64 index = blockIdx.z + (STATES_ONLY && back);
        // Positions before the segment in the order of the scan.
        const int done = (int)((reversed ? segments - 1 - index : index) * segment);
        const int steps = min((int)segment, (int)length - done), begin = reversed ? (int)length - done - steps : done;
        // The channel in arrays with a row per direction, batch item and segment.
        const i64 segment_channel = (((i64)direction * gridDim.y + batch) * segments + index) * inner + channel;

        float decay[CHANNELS][STATES], state[CHANNELS][STATES], skip[CHANNELS], shift[CHANNELS], step_sum[CHANNELS];
#pragma unroll
        for (int c = 0; c < CHANNELS; c++) {
            load_decay<STATES>(decay[c], A, channel + c, part * STATES, (int)states, true);
#pragma unroll
            for (int n = 0; n < STATES; n++) {
                const int s = part * STATES + n;
                state[c][n] = s < states && initial ? initial[(segment_channel + c) * states + s] : 0.f;
            }
            step_sum[c] = 0.f;
            skip[c] = D ? D[channel + c] : 0.f;
            shift[c] = bias ? bias[channel + c] : 0.f;
        }

        const int first = begin + (back ? steps - 1 : 0), time_sign = back ? -1 : 1;
        char *y_to = (char *)(y + (batch * length + first) * inner + channel);
        char *kept_to = (char *)(kept + (batch * length + first) * inner + channel);
        const int y_next = time_sign * (int)inner * size;

        // The elements of each array that this thread copies to a slot. With ASYNC_COPY: one copy, of one step, in
        // every ROUND; else its own channels at every step.
#if ASYNC_COPY
        const int my_step = lane / COPIES_PER_ROW, my_offset = lane * (BYTES_PER_COPY / size);
        const i64 my_channel = min(warp_wanted + lane % COPIES_PER_ROW * (BYTES_PER_COPY / size), inner - BYTES_PER_COPY / size);
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
                    copy_async<BYTES_PER_COPY>(to + k * WIDTH, from + (i64)min(start + my_step + k, steps - 1) * next);
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
        // What the output of a position needs beside its sum over states: the sum of the first direction, and silu(z).
        auto prepare = [&](float (&before)[CHANNELS], float (&gate)[CHANNELS], const scalar *from) {
            if (second) ((const Group<CHANNELS> *)(from + (2 + GATED) * SLOT_SIZE))->to_float(before);
            if (gates) {
                ((const Group<CHANNELS> *)(from + 2 * SLOT_SIZE))->to_float(gate);
#pragma unroll
                for (int c = 0; c < CHANNELS; c++) {
                    // The backward with DIRECTIONS == 2 divides by the gate, which must not be zero.
                    if (DIRECTIONS == 2 && !SAVE_PREGATE) gate[c] += 1e-30f;
                    gate[c] *= sigmoid(gate[c]);
                }
            }
        };
        auto finish = [&](float (&sum)[CHANNELS], float (&before)[CHANNELS], float (&gate)[CHANNELS], i64 offset, bool writes) {
#pragma unroll
            for (int c = 0; c < CHANNELS; c++)
                if (second) sum[c] = (sum[c] + before[c]) * (float)scale;
            if (SAVE_PREGATE && is_last && writes) Group<CHANNELS>::store((scalar *)(kept_to + offset), sum);
#pragma unroll
            for (int c = 0; c < CHANNELS; c++)
                if (gates) sum[c] *= gate[c];
            if (writes) Group<CHANNELS>::store((scalar *)(y_to + offset), sum);
        };
#if LANES == 1
        auto advance = [&](const scalar *from, const float *row, i64 offset) {
            float d[CHANNELS], x[CHANNELS], sum[CHANNELS];
            ((const Group<CHANNELS> *)from)->to_float(x);
            ((const Group<CHANNELS> *)(from + SLOT_SIZE))->to_float(d);
#pragma unroll
            for (int c = 0; c < CHANNELS; c++) {
                d[c] += shift[c];
                if (SOFTPLUS) d[c] = softplus(d[c]);
                sum[c] = skip[c] * x[c];
                if (!ADJOINT) x[c] *= d[c];
                if (STATES_ONLY) step_sum[c] += d[c];
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
                        if (ADJOINT) state[c][n] = decay_factor * fmaf(x[c], b[j], state[c][n]);
                        else state[c][n] = fmaf(decay_factor, state[c][n], x[c] * b[j]);
                        if (!STATES_ONLY) sum[c] = fmaf(out[j], state[c][n], sum[c]);
                    }
                }
            }
            if (!STATES_ONLY) {
                float before[CHANNELS], gate[CHANNELS];
                prepare(before, gate, from);
                finish(sum, before, gate, offset, inside);
            }
        };
#else
        // `count` positions of a slot. Of every LANES positions a thread stages one for the other threads of its channel,
        // and takes its sum over the states of all. A position beyond `count` has a step of size 0, without effect.
        constexpr int OWN = STEPS / LANES;
        auto advance = [&](const scalar *from, const float *row, int count) {
            float input[OWN], before[OWN][1], gate[OWN][1];
#pragma unroll
            for (int j = 0; j < OWN; j++) {
                const int k = j * LANES + part;
                input[j] = widen(from[k * WIDTH]);
                float d = widen(from[SLOT_SIZE + k * WIDTH]) + shift[0];
                if (SOFTPLUS) d = softplus(d);
                staged[k * WIDTH + lane / LANES] = k < count ? make_float2(d, d * input[j]) : make_float2(0.f, 0.f);
                prepare(before[j], gate[j], from + k * WIDTH);
            }
            __syncwarp();
            float sums[STEPS];
#pragma unroll
            for (int k = 0; k < STEPS; k++) {
                const float2 step = staged[k * WIDTH + lane / LANES];
                const float *at = row + (count < STEPS ? min(k, count - 1) : k) * 32;
                float b[STATES], out[STATES];
                load_floats<STATES>(b, at);
                load_floats<STATES>(out, at + 16);
#pragma unroll
                for (int n = 0; n < STATES; n++) {
                    state[0][n] = fmaf(fast_exp2(step.x * decay[0][n]), state[0][n], step.y * b[n]);
                    sums[k] = n ? fmaf(out[n], state[0][n], sums[k]) : out[n] * state[0][n];
                }
            }
#pragma unroll
            for (int half = LANES / 2; half >= 1; half /= 2)
#pragma unroll
                for (int j = 0; j < OWN; j++)
#pragma unroll
                    for (int k = j * LANES; k < j * LANES + half; k++) {
                        const bool high = part & half;
                        const float other = __shfl_xor_sync(ALL_LANES, high ? sums[k] : sums[k + half], half);
                        sums[k] = (high ? sums[k + half] : sums[k]) + other;
                    }
#pragma unroll
            for (int j = 0; j < OWN; j++) {
                const int k = j * LANES + part;
                float sum[1] = {fmaf(skip[0], input[j], sums[j * LANES])};
                finish(sum, before[j], gate[j], (i64)k * y_next, inside && k < count);
            }
        };
#endif

#if SAVE_STATES
        const i64 num_saved = (length + saved_segment - 1) / saved_segment, saved_next = (back ? -1 : 1) * inner * states;
        float *saved_to = saved + (((direction * (i64)gridDim.y + batch) * num_saved + (back ? num_saved - 1 : 0)) * inner + channel) * states;
        int save_at = 0;
#endif
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
#if SAVE_STATES
                if (step == save_at) {
#pragma unroll
                    for (int c = 0; c < CHANNELS; c++)
#pragma unroll
                        for (int n = 0; n < STATES; n++)
                            if (inside && part * STATES + n < states) saved_to[c * states + part * STATES + n] = state[c][n];
                    save_at += (int)saved_segment;
                    saved_to += saved_next;
                }
#endif
                const scalar *from = ring + slot * (ARRAYS * SLOT_SIZE) + lane / LANES * CHANNELS;
#if LANES == 1
                if (step + STEPS <= until) {
#pragma unroll
                    for (int k = 0; k < STEPS; k++) advance(from + k * WIDTH, row + k * 32, (i64)k * y_next);
                } else {
#pragma unroll 1
                    for (int k = 0; k < until - step; k++) advance(from + k * WIDTH, row + k * 32, (i64)k * y_next);
                }
#else
                if (step + STEPS <= until) advance(from, row, STEPS);
                else advance(from, row, until - step);
#endif
                row += STEPS * 32;
                y_to += STEPS * (i64)y_next;
                if (SAVE_PREGATE) kept_to += STEPS * (i64)y_next;
            }
        }
        wait_for_copies<0>();

        if (STATES_ONLY && inside)
#pragma unroll
            for (int c = 0; c < CHANNELS; c++) step_sums[segment_channel + c] = step_sum[c];
        if (inside && last && (STATES_ONLY || index == (back ? 0 : segments - 1))) {
#pragma unroll
            for (int c = 0; c < CHANNELS; c++)
#pragma unroll
                for (int n = 0; n < STATES; n++) {
                    const int s = part * STATES + n;
                    const i64 at = STATES_ONLY ? segment_channel : batch * inner + channel;
                    if (s < states) last[(at + c) * states + s] = state[c][n];
                }
        }
    }
}
