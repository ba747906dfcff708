// The selective scan, backward. A warp owns 32 channels; a thread 4 of them x 4 of their 16 states, so that the sums
// over channels (for B and C) and over states (for u and delta) need few exchanges between threads.
//
// A first walk in order of time leaves the state before every STEPS positions in scratch memory. The second walk
// goes back: it computes the states of STEPS positions again, then the gradients. With dh the gradient of the state
// and keep = exp(d A) (positions: h before, H after, H = keep h + d u B):
//     dh = dy C + (what came back)      dB += dh d u      dC += dy H      what goes back = keep dh
//     through = keep dh h               dA += d through   ddelta = sum A through + u sum B dh      du = d sum B dh + D dy
// dB and dC are summed over the channels of a block; the caller adds the blocks, in a fixed order. No atomics.
//
// Blocks stay and take every gridDim.x-th item (direction, batch, 128 channels), each with its own scratch, which is
// then small enough to live in the L2 cache for the most part.
//
// Macros: SCALAR, STEPS (2, 4), SOFTPLUS, WAYS (1, 2), REVERSE (with one way), TENSOR (sums over states on the tensor
// cores, 11 bits in, 24 bits sums: for 16-bit activations).
#define WARPS 4
#define THREADS (32 * WARPS)
// Floats of one warp's partial sums for B and C: 8 channel groups x 32, padded against bank conflicts.
#define GROUP_ROW 36
#define PARTIAL (8 * GROUP_ROW)
#define ROW 128

__device__ __forceinline__ void copy_later(void *to, const void *from) {
    unsigned address = (unsigned)__cvta_generic_to_shared(to);
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(address), "l"(from) : "memory");
}
__device__ __forceinline__ void copy_group() { asm volatile("cp.async.commit_group;" ::: "memory"); }
__device__ __forceinline__ void copies_done() { asm volatile("cp.async.wait_group 0;" ::: "memory"); }

// sum += left (16 x 8) right (8 x 8), operands as they lie in float registers, of which 19 bits are read.
__device__ __forceinline__ void multiply_add(
    float (&sum)[4], float a0, float a1, float a2, float a3, float b0, float b1) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(__float_as_uint(a0)), "r"(__float_as_uint(a1)), "r"(__float_as_uint(a2)), "r"(__float_as_uint(a3)),
          "r"(__float_as_uint(b0)), "r"(__float_as_uint(b1)));
}

// Adds four values over the four lanes of a channel group; lane k of them keeps value k.
__device__ __forceinline__ float sum_of_lane(const float (&value)[4], int part) {
    const bool high = part & 2, odd = part & 1;
    float low = high ? value[2] : value[0], next = high ? value[3] : value[1];
    low += __shfl_xor_sync(EVERY, high ? value[0] : value[2], 2);
    next += __shfl_xor_sync(EVERY, high ? value[1] : value[3], 2);
    return (odd ? next : low) + __shfl_xor_sync(EVERY, odd ? low : next, 1);
}

extern "C" __global__ void __launch_bounds__(THREADS, 2) scan_backward(
    const scalar *u, const scalar *delta, const scalar *B, const scalar *C, const scalar *dy,
    const float *A_ahead, const float *A_behind, const float *D_ahead, const float *D_behind,
    const float *bias_ahead, const float *bias_behind, const float *initial, const float *dlast,
    scalar *du, scalar *ddelta, float *dBC, float *dA, float *dD, float *dbias, float *dinitial, float *scratch,
    i64 batches, i64 length, i64 inner, i64 states, i64 window,
    i64 u_batch, i64 u_time, i64 u_way, i64 delta_batch, i64 delta_time, i64 delta_way,
    i64 B_batch, i64 B_time, i64 B_way, i64 C_batch, i64 C_time, i64 C_way, i64 dy_batch, i64 dy_time) {
    extern __shared__ float4 shared[];
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, part = lane & 3, group = lane >> 2;
    float *rows = (float *)shared;                                          // window positions x (16 B, 16 C)
    float *staged = rows + window * 32 + warp * STEPS * ROW;                // STEPS x (d, d u, dy, u) of 32 channels
    float *partial = rows + window * 32 + WARPS * STEPS * ROW;              // 2 x STEPS x WARPS x PARTIAL
    float4 *before = (float4 *)(partial + 2 * STEPS * WARPS * PARTIAL);     // 4 x THREADS: the states of a checkpoint
    const int steps = (int)length, chunks = (steps + STEPS - 1) / STEPS;
    const i64 across = (inner + 32 * WARPS - 1) / (32 * WARPS), items = across * batches * WAYS;
    float4 *checkpoints = (float4 *)scratch + ((i64)blockIdx.x * WARPS + warp) * chunks * ROW + lane;
    const int size = sizeof(scalar);

#pragma unroll 1
    for (i64 item = blockIdx.x; item < items; item += gridDim.x) {
        const i64 slice = item % across, batch = item / across % batches;
        const int way = WAYS == 2 ? (int)(item / (across * batches)) : 0;
        const bool back = WAYS == 2 ? way == 1 : REVERSE;
        const float *A = way ? A_behind : A_ahead, *D = way ? D_behind : D_ahead, *bias = way ? bias_behind : bias_ahead;
        const i64 sequence = way * batches + batch;

        // My channel, for what is done once a channel; my tile of channels x states, for the rest.
        const int wanted = (int)slice * 32 * WARPS + warp * 32;
        const bool inside = wanted + lane < inner;
        const int channel = inside ? wanted + lane : (int)inner - 1;
        const int tile = wanted + group * 4;
        float decay[4][4], state[4][4];
#pragma unroll
        for (int c = 0; c < 4; c++)
#pragma unroll
            for (int n = 0; n < 4; n++) {
                const int s = part * 4 + n;
                const bool real = s < states && tile + c < inner;
                const i64 at = (i64)(tile + c) * states + s;
                decay[c][n] = real ? A[at] * LOG2E : 0.f;
                state[c][n] = real && initial ? initial[batch * inner * states + at] : 0.f;
            }
        const int live = inside ? steps : 0;
        const float skip = D ? D[channel] : 0.f, shift = bias ? bias[channel] : 0.f;

        const int first = back ? steps - 1 : 0, turn = back ? -size : size;
        const char *u_base = (const char *)(u + batch * u_batch + way * u_way);
        const char *delta_base = (const char *)(delta + batch * delta_batch + way * delta_way);
        const char *dy_base = (const char *)(dy + batch * dy_batch);
        char *du_base = (char *)(du + sequence * length * inner), *ddelta_base = (char *)(ddelta + sequence * length * inner);
        const unsigned u_first = (first * (unsigned)u_time + channel) * size, u_next = turn * (unsigned)u_time;
        const unsigned delta_first = (first * (unsigned)delta_time + channel) * size, delta_next = turn * (unsigned)delta_time;
        const unsigned dy_first = (first * (unsigned)dy_time + channel) * size, dy_next = turn * (unsigned)dy_time;
        const unsigned out_first = (first * (unsigned)inner + channel) * size, out_next = turn * (unsigned)inner;

        scalar u_held[STEPS], delta_held[STEPS], dy_held[STEPS];
        auto fetch = [&](int chunk, bool gradient) {
#pragma unroll
            for (int k = 0; k < STEPS; k++) {
                const int step = max(0, min(chunk * STEPS + k, steps - 1));
                u_held[k] = *(const scalar *)(u_base + (step * u_next + u_first));
                delta_held[k] = *(const scalar *)(delta_base + (step * delta_next + delta_first));
                if (gradient) dy_held[k] = *(const scalar *)(dy_base + (step * dy_next + dy_first));
            }
        };
        // The numbers of my channel at STEPS positions, for all threads of the warp. Beyond the end d = 0: nothing moves.
        auto stage = [&](int chunk, bool gradient) {
#pragma unroll
            for (int k = 0; k < STEPS; k++) {
                const float wide = widen(u_held[k]);
                float d = widen(delta_held[k]) + shift;
                if (SOFTPLUS) d = softplus(d);
                staged[k * ROW + lane] = d;
                staged[k * ROW + 32 + lane] = d * wide;
                if (gradient) {
                    staged[k * ROW + 64 + lane] = inside ? widen(dy_held[k]) : 0.f;
                    staged[k * ROW + 96 + lane] = wide;
                }
            }
            if ((chunk + 1) * STEPS > steps) {
                for (int k = steps - chunk * STEPS; k < STEPS; k++)
                    staged[k * ROW + lane] = staged[k * ROW + 32 + lane] = staged[k * ROW + 64 + lane] = 0.f;
            }
            __syncwarp();
        };
        auto load_rows = [&](int start) {
            __syncthreads();
#pragma unroll 1
            for (int i = threadIdx.x; i < (int)window * 16; i += THREADS) {
                const int s = i & 15, step = start + (i >> 4);
                const i64 position = back ? first - step : step;
                const bool real = s < states && step < steps;
                const i64 B_from = batch * B_batch + way * B_way + position * B_time + s;
                const i64 C_from = batch * C_batch + way * C_way + position * C_time + s;
                rows[(i >> 4) * 32 + s] = real ? widen(B[B_from]) : 0.f;
                rows[(i >> 4) * 32 + 16 + s] = real ? widen(C[C_from]) : 0.f;
            }
            __syncthreads();
        };

        // A window is a multiple of STEPS. The last one stays for the way back.
        const int windows = (steps + (int)window - 1) / (int)window, window_chunks = (int)window / STEPS;
        fetch(0, false);
#pragma unroll 1
        for (int w = 0; w < windows; w++) {
            load_rows(w * (int)window);
            const int until = min((w + 1) * window_chunks, chunks - 1);
            const float *row = rows + part * 4;
#pragma unroll 1
            for (int chunk = w * window_chunks; chunk < until; chunk++, row += STEPS * 32) {
#pragma unroll
            for (int c = 0; c < 4; c++)
                checkpoints[chunk * ROW + c * 32] = make_float4(state[c][0], state[c][1], state[c][2], state[c][3]);
            stage(chunk, false);
            fetch(chunk + 1, false);
#pragma unroll
            for (int k = 0; k < STEPS; k++) {
                const float4 d4 = *(const float4 *)(staged + k * ROW + group * 4);
                const float4 x4 = *(const float4 *)(staged + k * ROW + 32 + group * 4);
                const float4 b4 = *(const float4 *)(row + k * 32);
                const float d[4] = {d4.x, d4.y, d4.z, d4.w}, x[4] = {x4.x, x4.y, x4.z, x4.w}, b[4] = {b4.x, b4.y, b4.z, b4.w};
#pragma unroll
                for (int c = 0; c < 4; c++)
#pragma unroll
                    for (int n = 0; n < 4; n++)
                        state[c][n] = fmaf(exp2_unit(d[c] * decay[c][n]), state[c][n], x[c] * b[n]);
            }
            __syncwarp();
        }
        }

        // The last chunk starts from the state in hand. Its window is the first to walk back through.
        float flow[4][4], dA_sum[4][4], dD_sum = 0.f, dbias_sum = 0.f;
#pragma unroll
        for (int c = 0; c < 4; c++) {
            before[c * THREADS + threadIdx.x] = make_float4(state[c][0], state[c][1], state[c][2], state[c][3]);
#pragma unroll
            for (int n = 0; n < 4; n++) {
                const int s = part * 4 + n;
                const bool real = dlast && s < states && tile + c < inner;
                flow[c][n] = real ? dlast[(batch * inner + tile + c) * states + s] : 0.f;
                dA_sum[c][n] = 0.f;
            }
        }
        fetch(chunks - 1, true);
#pragma unroll 1
        for (int w = windows - 1; w >= 0; w--) {
            if (w < windows - 1) load_rows(w * (int)window);
            int chunk = min((w + 1) * window_chunks, chunks) - 1;
            const float *row = rows + (chunk - w * window_chunks) * STEPS * 32 + part * 4;
#pragma unroll 1
            for (; chunk >= w * window_chunks; chunk--, row -= STEPS * 32) {
            stage(chunk, true);
            copies_done();
            float states_at[STEPS + 1][4][4], keep[STEPS][4][4];
#pragma unroll
            for (int c = 0; c < 4; c++) {
                const float4 h = before[c * THREADS + threadIdx.x];
                states_at[0][c][0] = h.x; states_at[0][c][1] = h.y; states_at[0][c][2] = h.z; states_at[0][c][3] = h.w;
            }
            if (chunk > 0) {
#pragma unroll
                for (int c = 0; c < 4; c++)
                    copy_later(before + c * THREADS + threadIdx.x, checkpoints + (chunk - 1) * ROW + c * 32);
                copy_group();
            }
            fetch(chunk - 1, true);
#pragma unroll
            for (int k = 0; k < STEPS; k++) {
                const float4 d4 = *(const float4 *)(staged + k * ROW + group * 4);
                const float4 x4 = *(const float4 *)(staged + k * ROW + 32 + group * 4);
                const float4 b4 = *(const float4 *)(row + k * 32);
                const float d[4] = {d4.x, d4.y, d4.z, d4.w}, x[4] = {x4.x, x4.y, x4.z, x4.w}, b[4] = {b4.x, b4.y, b4.z, b4.w};
#pragma unroll
                for (int c = 0; c < 4; c++)
#pragma unroll
                    for (int n = 0; n < 4; n++) {
                        keep[k][c][n] = exp2_unit(d[c] * decay[c][n]);
                        states_at[k + 1][c][n] = fmaf(keep[k][c][n], states_at[k][c][n], x[c] * b[n]);
                    }
            }
            float *sums = partial + (chunk & 1) * STEPS * WARPS * PARTIAL + warp * PARTIAL + group * GROUP_ROW + part * 8;
#pragma unroll
            for (int k = STEPS - 1; k >= 0; k--) {
                const float4 d4 = *(const float4 *)(staged + k * ROW + group * 4);
                const float4 x4 = *(const float4 *)(staged + k * ROW + 32 + group * 4);
                const float4 y4 = *(const float4 *)(staged + k * ROW + 64 + group * 4);
                const float4 b4 = *(const float4 *)(row + k * 32);
                const float4 c4 = *(const float4 *)(row + k * 32 + 16);
                const float d[4] = {d4.x, d4.y, d4.z, d4.w}, x[4] = {x4.x, x4.y, x4.z, x4.w}, b[4] = {b4.x, b4.y, b4.z, b4.w};
                const float y[4] = {y4.x, y4.y, y4.z, y4.w}, out[4] = {c4.x, c4.y, c4.z, c4.w};
                float for_B[4], for_C[4], for_A[4], gradient[4][4];
#pragma unroll
                for (int c = 0; c < 4; c++)
#pragma unroll
                    for (int n = 0; n < 4; n++) {
                        const float dh = fmaf(y[c], out[n], flow[c][n]);
                        gradient[c][n] = dh;
                        for_B[n] = c ? fmaf(dh, x[c], for_B[n]) : dh * x[c];
                        for_C[n] = c ? fmaf(y[c], states_at[k + 1][c][n], for_C[n]) : y[c] * states_at[k + 1][c][n];
                        flow[c][n] = dh * keep[k][c][n];
                        const float through = flow[c][n] * states_at[k][c][n];
                        for_A[c] = n ? fmaf(through, decay[c][n], for_A[c]) : through * decay[c][n];
                        dA_sum[c][n] = fmaf(through, d[c], dA_sum[c][n]);
                    }
                *(float4 *)(sums + k * WARPS * PARTIAL) = make_float4(for_B[0], for_B[1], for_B[2], for_B[3]);
                *(float4 *)(sums + k * WARPS * PARTIAL + 4) = make_float4(for_C[0], for_C[1], for_C[2], for_C[3]);

                // Sums over states of dh B and of through A log2(e), for my own channel.
                float by_B, by_A;
#if TENSOR
                float low[4] = {0.f, 0.f, 0.f, 0.f}, high[4] = {0.f, 0.f, 0.f, 0.f}, both[4] = {0.f, 0.f, 0.f, 0.f};
                multiply_add(low, gradient[0][0], gradient[1][0], gradient[0][1], gradient[1][1], b[0], b[1]);
                multiply_add(low, gradient[0][2], gradient[1][2], gradient[0][3], gradient[1][3], b[2], b[3]);
                multiply_add(high, gradient[2][0], gradient[3][0], gradient[2][1], gradient[3][1], b[0], b[1]);
                multiply_add(high, gradient[2][2], gradient[3][2], gradient[2][3], gradient[3][3], b[2], b[3]);
                multiply_add(both, for_A[0], for_A[1], for_A[2], for_A[3], group < 4 ? 1.f : 0.f, group < 4 ? 0.f : 1.f);
                by_B = part & 2 ? (part & 1 ? high[2] : high[0]) : (part & 1 ? low[2] : low[0]);
                by_A = part & 1 ? both[2] : both[0];
#else
                float for_u[4];
#pragma unroll
                for (int c = 0; c < 4; c++) {
                    for_u[c] = gradient[c][0] * b[0];
#pragma unroll
                    for (int n = 1; n < 4; n++) for_u[c] = fmaf(gradient[c][n], b[n], for_u[c]);
                }
                by_B = sum_of_lane(for_u, part);
                by_A = sum_of_lane(for_A, part);
#endif
                const float own_d = staged[k * ROW + lane], own_dy = staged[k * ROW + 64 + lane], own_u = staged[k * ROW + 96 + lane];
                float slope = fmaf(own_u, by_B, LN2 * by_A);
                if (SOFTPLUS) slope *= softplus_slope(own_d);
                const int step = chunk * STEPS + k;
                if (step < live) {
                    *(scalar *)(du_base + (step * out_next + out_first)) = narrow(fmaf(own_d, by_B, skip * own_dy));
                    *(scalar *)(ddelta_base + (step * out_next + out_first)) = narrow(slope);
                    dbias_sum += slope;
                }
                dD_sum = fmaf(own_dy, own_u, dD_sum);
            }
            __syncthreads();
            if (threadIdx.x < STEPS * 32) {
                // Warp k adds position k: 32 sums, each over 8 channel groups of WARPS warps.
                const int k = warp, quad = lane & 7, from = lane >> 3;
                const float *of = partial + ((chunk & 1) * STEPS + k) * WARPS * PARTIAL + from * PARTIAL + quad * 4;
                float4 total = *(const float4 *)of;
#pragma unroll
                for (int g = 1; g < 8; g++) {
                    const float4 more = *(const float4 *)(of + g * GROUP_ROW);
                    total.x += more.x; total.y += more.y; total.z += more.z; total.w += more.w;
                }
                const bool high = from & 2, odd = from & 1;
                float even_sum = high ? total.z : total.x, odd_sum = high ? total.w : total.y;
                even_sum += __shfl_xor_sync(EVERY, high ? total.x : total.z, 16);
                odd_sum += __shfl_xor_sync(EVERY, high ? total.y : total.w, 16);
                const float sum = (odd ? odd_sum : even_sum) + __shfl_xor_sync(EVERY, odd ? even_sum : odd_sum, 8);
                // Value v = 8 part + 4 (C, not B) + n belongs to state 4 part + n.
                const int v = quad * 4 + (high ? 2 : 0) + (odd ? 1 : 0), kind = v >> 2 & 1, s = (v >> 3) * 4 + (v & 3);
                const int step = chunk * STEPS + k, position = back ? first - step : step;
                if (step < steps) dBC[((sequence * across + slice) * length + position) * 32 + kind * 16 + s] = sum;
            }
        }
        }
#pragma unroll
        for (int c = 0; c < 4; c++)
#pragma unroll
            for (int n = 0; n < 4; n++) {
                const int s = part * 4 + n;
                if (s < states && tile + c < inner) {
                    const i64 at = (sequence * inner + tile + c) * states + s;
                    dA[at] = dA_sum[c][n];
                    if (dinitial) dinitial[at] = flow[c][n];
                }
            }
        if (inside) {
            dD[sequence * inner + channel] = dD_sum;
            dbias[sequence * inner + channel] = dbias_sum;
        }
    }
}
