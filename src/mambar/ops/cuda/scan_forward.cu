// The selective scan, forward. A thread walks through time for CHANNELS neighbouring channels with 16/LANES of
// their states in registers; LANES threads share a channel. In order of time, so each exponential is computed once.
// Activations come through a ring in shared memory, STEPS positions at a time, RING - 1 turns ahead; B and C of a
// window of positions lie there as floats.
//
// WAYS == 2 walks both directions of the mixer one after the other: the first leaves its sum in y, the second
// adds its own, scales and gates. Both are walked by the same thread, so nothing has to wait.
//
// Macros: SCALAR, STEPS, RING, CHANNELS (1, 2), LANES (1, 4), THREADS, SOFTPLUS, GATED, KEPT (write the sum before the
// gate too), WAYS (1, 2), REVERSE (with one way), BLOCKS (a multiprocessor's, at least), STAGED, WHOLE_ROWS, WHOLE_A.
#define STATES (16 / LANES)
// Channels of a warp; numbers and pieces of one array in one turn of the ring.
#define WIDTH (32 * CHANNELS / LANES)
#define TURN (STEPS * WIDTH)
#define ROW_PIECES (WIDTH * (int)sizeof(scalar) / PIECE)
#define ARRAYS (2 + GATED + (WAYS == 2))

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) scan_forward(
    const scalar *u, const scalar *delta, const scalar *B, const scalar *C, const scalar *z,
    const float *A_ahead, const float *A_behind, const float *D_ahead, const float *D_behind,
    const float *bias_ahead, const float *bias_behind, const float *initial, scalar *y, scalar *kept, float *last,
    i64 length, i64 inner, i64 states, i64 window, double scale,
    i64 u_batch, i64 u_time, i64 u_way, i64 delta_batch, i64 delta_time, i64 delta_way,
    i64 B_batch, i64 B_time, i64 B_way, i64 C_batch, i64 C_time, i64 C_way, i64 z_batch, i64 z_time) {
    extern __shared__ float4 shared[];
    const int lane = threadIdx.x & 31, part = lane % LANES, steps = (int)length, chunks = (steps + STEPS - 1) / STEPS;
    float *rows = (float *)shared;
    scalar *ring = (scalar *)(rows + window * 32) + threadIdx.x / 32 * (RING * ARRAYS * TURN);
    const i64 batch = blockIdx.y;
    // The warp's first channel, and my first; at the end of a row some warps repeat their neighbours' work unwritten.
    const i64 warp_wanted = ((i64)blockIdx.x * THREADS + threadIdx.x) / 32 * WIDTH, wanted = warp_wanted + lane / LANES * CHANNELS;
    const bool inside = wanted < inner, writes = inside && part == 0;
    const i64 channel = inside ? wanted : inner - CHANNELS;
    const int size = sizeof(scalar);

#pragma unroll
    for (int way = 0; way < WAYS; way++) {
        const bool back = WAYS == 2 ? way == 1 : REVERSE;
        const bool second = way == 1, last_way = way == WAYS - 1, gates = GATED && last_way;
        const float *A = way ? A_behind : A_ahead, *D = way ? D_behind : D_ahead, *bias = way ? bias_behind : bias_ahead;

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

        const int first = back ? steps - 1 : 0, turn = back ? -1 : 1;
        char *y_to = (char *)(y + (batch * length + first) * inner + channel);
        char *kept_to = (char *)(kept + (batch * length + first) * inner + channel);
        const int y_next = turn * (int)inner * size;

        // What I move of each array in one turn of the ring: with STAGED one piece, of one step, of every ROUND;
        // else my own channels of every step.
#if STAGED
        const int my_step = lane / ROW_PIECES, my_place = lane * (PIECE / size);
        const i64 my_channel = min(warp_wanted + lane % ROW_PIECES * (PIECE / size), inner - PIECE / size);
#else
        const int my_step = 0, my_place = lane / LANES * CHANNELS;
        const i64 my_channel = channel;
#endif
        const char *u_from = (const char *)(u + batch * u_batch + way * u_way + first * u_time + my_channel);
        const char *delta_from = (const char *)(delta + batch * delta_batch + way * delta_way + first * delta_time + my_channel);
        const char *z_from = (const char *)(z + batch * z_batch + first * z_time + my_channel);
        const char *y_from = (const char *)(y + (batch * length + first) * inner + my_channel);
        const int u_next = turn * (int)u_time * size, delta_next = turn * (int)delta_time * size;
        const int z_next = turn * (int)z_time * size;
        auto fetch_array = [&](scalar *to, const char *from, int next, int start) {
#if STAGED
            constexpr int ROUND = 32 / ROW_PIECES < STEPS ? 32 / ROW_PIECES : STEPS;
#pragma unroll
            for (int k = 0; k < STEPS; k += ROUND)
                if (ROUND * ROW_PIECES == 32 || lane < ROUND * ROW_PIECES)
                    copy_piece(to + k * WIDTH, from + (i64)min(start + my_step + k, steps - 1) * next);
#else
#pragma unroll
            for (int k = 0; k < STEPS; k++) {
                Group<CHANNELS> held;
                held.load((const scalar *)(from + (i64)min(start + k, steps - 1) * next));
                *(Group<CHANNELS> *)(to + k * WIDTH) = held;
            }
#endif
        };
        auto fetch = [&](int slot, int start) {
            scalar *to = ring + slot * (ARRAYS * TURN) + my_place;
            if (start < steps) {
                fetch_array(to, u_from, u_next, start);
                fetch_array(to + TURN, delta_from, delta_next, start);
                if (gates) fetch_array(to + 2 * TURN, z_from, z_next, start);
                if (second) fetch_array(to + (2 + GATED) * TURN, y_from, y_next, start);
            }
            close_copies();
        };
        auto walk = [&](const scalar *from, const float *row, i64 ahead) {
            float d[CHANNELS], x[CHANNELS], sum[CHANNELS], gate[CHANNELS], before[CHANNELS];
            ((const Group<CHANNELS> *)from)->wide(x);
            ((const Group<CHANNELS> *)(from + TURN))->wide(d);
            if (gates) ((const Group<CHANNELS> *)(from + 2 * TURN))->wide(gate);
            if (second) ((const Group<CHANNELS> *)(from + (2 + GATED) * TURN))->wide(before);
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
                        const float keep = exp2_unit(d[c] * decay[c][n]);
                        state[c][n] = fmaf(keep, state[c][n], x[c] * b[j]);
                        sum[c] = fmaf(out[j], state[c][n], sum[c]);
                    }
                }
            }
#pragma unroll
            for (int lanes = 1; lanes < LANES; lanes *= 2)
#pragma unroll
                for (int c = 0; c < CHANNELS; c++) sum[c] += __shfl_xor_sync(EVERY, sum[c], lanes);
            if (second) {
#pragma unroll
                for (int c = 0; c < CHANNELS; c++) sum[c] = (sum[c] + before[c]) * (float)scale;
            }
            if (KEPT && last_way && writes) Group<CHANNELS>::store((scalar *)(kept_to + ahead), sum);
            if (gates) {
#pragma unroll
                for (int c = 0; c < CHANNELS; c++) {
                    // The backward of WAYS == 2 divides by the gate: it must not be zero.
                    if (WAYS == 2 && !KEPT) gate[c] += 1e-30f;
                    sum[c] *= gate[c] * sigmoid(gate[c]);
                }
            }
            if (writes) Group<CHANNELS>::store((scalar *)(y_to + ahead), sum);
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
                rows, B + batch * B_batch + way * B_way, C + batch * C_batch + way * C_way, B_time, C_time,
                first + turn * start, turn, until - start, until - start, (int)states);
            __syncthreads();
            const float *row = rows + part * STATES;
#pragma unroll 1
            for (int step = start; step < until; step += STEPS, slot = (slot + 1) % RING) {
                wait_for_copies<RING - 2>();
                __syncwarp();
                fetch((slot + RING - 1) % RING, step + (RING - 1) * STEPS);
                const scalar *from = ring + slot * (ARRAYS * TURN) + lane / LANES * CHANNELS;
                if (step + STEPS <= until) {
#pragma unroll
                    for (int k = 0; k < STEPS; k++) walk(from + k * WIDTH, row + k * 32, (i64)k * y_next);
                    row += STEPS * 32;
                    y_to += STEPS * (i64)y_next;
                    if (KEPT) kept_to += STEPS * (i64)y_next;
                } else {
#pragma unroll 1
                    for (int k = 0; k < until - step; k++) walk(from + k * WIDTH, row + k * 32, (i64)k * y_next);
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
