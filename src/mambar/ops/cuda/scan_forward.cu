// The selective scan, forward. A thread walks through time for CHANNELS neighbouring channels with 16/LANES of
// their states in registers; LANES threads share a channel. B and C of a window of positions lie in shared
// memory. In order of time, so each exponential is computed once: the special-function unit is the limit, and
// POLYNOMIAL of every 16 exponentials go to the multiply-add units instead.
//
// WAYS == 2 walks both directions of the mixer one after the other: the first leaves its sum in y, the second
// adds its own, scales and gates. Both are walked by the same thread, so nothing has to wait.
//
// Macros: SCALAR, CHANNELS (1, 2), LANES (1, 4), THREADS, AHEAD (steps loaded ahead), POLYNOMIAL, SOFTPLUS, GATED,
// KEPT (write the sum before the gate too), WAYS (1, 2), REVERSE (with one way), BLOCKS (a multiprocessor's, at least).
#define STATES (16 / LANES)

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) scan_forward(
    const scalar *u, const scalar *delta, const scalar *B, const scalar *C, const scalar *z,
    const float *A_ahead, const float *A_behind, const float *D_ahead, const float *D_behind,
    const float *bias_ahead, const float *bias_behind, const float *initial, scalar *y, scalar *kept, float *last,
    i64 length, i64 inner, i64 states, i64 window, double scale,
    i64 u_batch, i64 u_time, i64 u_way, i64 delta_batch, i64 delta_time, i64 delta_way,
    i64 B_batch, i64 B_time, i64 B_way, i64 C_batch, i64 C_time, i64 C_way, i64 z_batch, i64 z_time) {
    extern __shared__ float4 shared[];
    float *rows = (float *)shared;
    const int steps = (int)length;
    const int part = threadIdx.x % LANES;
    const i64 wanted = ((i64)blockIdx.x * THREADS + threadIdx.x) / LANES * CHANNELS;
    const bool inside = wanted < inner;
    const int channel = (int)(inside ? wanted : inner - CHANNELS);
    const i64 batch = blockIdx.y;

#pragma unroll
    for (int way = 0; way < WAYS; way++) {
        const bool back = WAYS == 2 ? way == 1 : REVERSE;
        const bool second = way == 1, last_way = way == WAYS - 1;
        const bool gates = GATED && last_way, writes = inside && part == 0;
        const float *A = way ? A_behind : A_ahead, *D = way ? D_behind : D_ahead, *bias = way ? bias_behind : bias_ahead;

        float decay[CHANNELS][STATES], state[CHANNELS][STATES], skip[CHANNELS], shift[CHANNELS];
#pragma unroll
        for (int c = 0; c < CHANNELS; c++) {
#pragma unroll
            for (int n = 0; n < STATES; n++) {
                int s = part * STATES + n;
                bool real = s < states;
                decay[c][n] = real ? A[(channel + c) * states + s] * LOG2E : 0.f;
                state[c][n] = real && initial ? initial[(batch * inner + channel + c) * states + s] : 0.f;
            }
            skip[c] = D && part == 0 ? D[channel + c] : 0.f;
            shift[c] = bias ? bias[channel + c] : 0.f;
        }

        // One sequence each; bytes to where the walk begins, and from one position to the next. 32 bits hold them.
        const int size = sizeof(scalar), first = back ? steps - 1 : 0, turn = back ? -size : size;
        const char *u_base = (const char *)(u + batch * u_batch + way * u_way);
        const char *delta_base = (const char *)(delta + batch * delta_batch + way * delta_way);
        const char *z_base = (const char *)(z + batch * z_batch);
        char *y_base = (char *)(y + batch * length * inner), *kept_base = (char *)(kept + batch * length * inner);
        const unsigned u_first = (first * (unsigned)u_time + channel) * size, u_next = turn * (unsigned)u_time;
        const unsigned delta_first = (first * (unsigned)delta_time + channel) * size, delta_next = turn * (unsigned)delta_time;
        const unsigned z_first = (first * (unsigned)z_time + channel) * size, z_next = turn * (unsigned)z_time;
        const unsigned y_first = (first * (unsigned)inner + channel) * size, y_next = turn * (unsigned)inner;

        Group<CHANNELS> u_held[AHEAD], delta_held[AHEAD], z_held[AHEAD], y_held[AHEAD];
        auto fetch = [&](int slot, int step) {
            step = min(step, steps - 1);
            u_held[slot].load((const scalar *)(u_base + (step * u_next + u_first)));
            delta_held[slot].load((const scalar *)(delta_base + (step * delta_next + delta_first)));
            if (gates) z_held[slot].load((const scalar *)(z_base + (step * z_next + z_first)));
            if (second) y_held[slot].load((const scalar *)(y_base + (step * y_next + y_first)));
        };
        auto walk = [&](int slot, int step, const float *row) {
            float d[CHANNELS], x[CHANNELS], sum[CHANNELS], gate[CHANNELS], before[CHANNELS];
            u_held[slot].wide(x);
            delta_held[slot].wide(d);
            if (gates) z_held[slot].wide(gate);
            if (second) y_held[slot].wide(before);
            fetch(slot, step + AHEAD);
#pragma unroll
            for (int c = 0; c < CHANNELS; c++) {
                d[c] += shift[c];
                if (SOFTPLUS) d[c] = softplus(d[c]);
                sum[c] = skip[c] * x[c];
                x[c] *= d[c];
            }
#pragma unroll
            for (int q = 0; q < STATES; q += 4) {
                float4 b4 = *(const float4 *)(row + part * STATES + q), c4 = *(const float4 *)(row + 16 + part * STATES + q);
                float b[4] = {b4.x, b4.y, b4.z, b4.w}, out[4] = {c4.x, c4.y, c4.z, c4.w};
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    const int n = q + j;
                    const bool by_polynomial = (n + 1) * POLYNOMIAL / 16 != n * POLYNOMIAL / 16;
#pragma unroll
                    for (int c = 0; c < CHANNELS; c++) {
                        float exponent = d[c] * decay[c][n];
                        float keep = by_polynomial ? exp2_polynomial(exponent) : exp2_unit(exponent);
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
            if (KEPT && last_way && writes) Group<CHANNELS>::store((scalar *)(kept_base + (step * y_next + y_first)), sum);
            if (gates) {
#pragma unroll
                for (int c = 0; c < CHANNELS; c++) {
                    // The backward of WAYS == 2 divides by the gate: it must not be zero.
                    if (WAYS == 2 && !KEPT) gate[c] += 1e-30f;
                    sum[c] *= gate[c] * sigmoid(gate[c]);
                }
            }
            if (writes) Group<CHANNELS>::store((scalar *)(y_base + (step * y_next + y_first)), sum);
        };

#pragma unroll
        for (int slot = 0; slot < AHEAD; slot++) fetch(slot, slot);
#pragma unroll 1
        for (int start = 0; start < steps; start += (int)window) {
            const int count = min((int)window, steps - start);
            __syncthreads();
            for (int i = threadIdx.x; i < count * 16; i += THREADS) {
                const int s = i & 15;
                const i64 position = back ? first - start - (i >> 4) : start + (i >> 4);
                const bool real = s < states;
                const i64 B_from = batch * B_batch + way * B_way + position * B_time + s;
                const i64 C_from = batch * C_batch + way * C_way + position * C_time + s;
                rows[(i >> 4) * 32 + s] = real ? widen(B[B_from]) : 0.f;
                rows[(i >> 4) * 32 + 16 + s] = real ? widen(C[C_from]) : 0.f;
            }
            __syncthreads();
            int step = 0;
#pragma unroll 1
            for (; step + AHEAD <= count; step += AHEAD) {
#pragma unroll
                for (int slot = 0; slot < AHEAD; slot++) walk(slot, start + step + slot, rows + (step + slot) * 32);
            }
#pragma unroll
            for (int slot = 0; slot < AHEAD; slot++)
                if (step + slot < count) walk(slot, start + step + slot, rows + (step + slot) * 32);
        }

        if (last && inside) {
#pragma unroll
            for (int c = 0; c < CHANNELS; c++)
#pragma unroll
                for (int n = 0; n < STATES; n++) {
                    int s = part * STATES + n;
                    if (s < states) last[(batch * inner + channel + c) * states + s] = state[c][n];
                }
        }
    }
}
