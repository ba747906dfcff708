// The causal depthwise convolution, both ways at once or one. A thread walks through a segment of positions for
// CHANNELS neighbouring channels with the last TAPS inputs in registers, so that each input is loaded once. When it
// stands at position s, those inputs are what "ahead" needs at s and what "behind" needs at s - (TAPS - 1).
//
// Macros: SCALAR, CHANNELS (1, 2, 4), AHEAD (positions loaded ahead), BLOCKS (a multiprocessor's, at least), TAPS, WAYS (1, 2), REVERSE (with one way: mirrored in time), SILU, THREADS.
#define HALO (TAPS - 1)

// Weights and bias of one way for my channels; none is zero.
struct Taps {
    float weight[CHANNELS][TAPS], bias[CHANNELS];
    __device__ __forceinline__ void load(const float *weights, const float *biases, i64 channel) {
#pragma unroll
        for (int c = 0; c < CHANNELS; c++) {
#if WHOLE_TAPS
            const float4 four = ((const float4 *)weights)[channel + c];
            weight[c][0] = four.x; weight[c][1] = four.y; weight[c][2] = four.z; weight[c][3] = four.w;
#else
#pragma unroll
            for (int j = 0; j < TAPS; j++) weight[c][j] = weights[(channel + c) * TAPS + j];
#endif
            bias[c] = biases ? biases[channel + c] : 0.f;
        }
    }
    // held[j] is the input at position s - HALO + j; the last tap meets s itself, or, behind, the first input.
    __device__ __forceinline__ float at(int c, const float (&held)[TAPS][CHANNELS], bool behind) const {
        float sum = bias[c];
#pragma unroll
        for (int j = 0; j < TAPS; j++) sum = fmaf(weight[c][j], held[behind ? HALO - j : j][c], sum);
        return sum;
    }
};

template <typename Row> __device__ __forceinline__ void push(Row (&held)[TAPS][CHANNELS], const Row *next) {
#pragma unroll
    for (int c = 0; c < CHANNELS; c++) {
#pragma unroll
        for (int j = 0; j < HALO; j++) held[j][c] = held[j + 1][c];
        held[HALO][c] = next[c];
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) conv_forward(
    const scalar *x, const float *weight_ahead, const float *weight_behind, const float *bias_ahead, const float *bias_behind,
    scalar *y, i64 batches, i64 length, i64 inner, i64 segment, i64 x_batch, i64 x_time) {
    const i64 channel = ((i64)blockIdx.x * THREADS + threadIdx.x) * CHANNELS, batch = blockIdx.z;
    if (channel >= inner) return;
    const int from = (int)(blockIdx.y * segment), until = (int)min((i64)from + segment, length);
    const int stop = until + (WAYS == 2 ? HALO : 0);
    Taps ahead, behind;
    ahead.load(weight_ahead, bias_ahead, channel);
    if (WAYS == 2) behind.load(weight_behind, bias_behind, channel);

    const i64 first = REVERSE && WAYS == 1 ? length - 1 : 0, turn = REVERSE && WAYS == 1 ? -1 : 1;
    const char *x_first = (const char *)(x + batch * x_batch + first * x_time + channel);
    char *y_first = (char *)(y + (batch * length + first) * inner + channel);
    char *y_behind = y_first + batches * length * inner * (i64)sizeof(scalar);
    const int x_next = (int)(turn * x_time * (i64)sizeof(scalar)), y_next = (int)(turn * inner * (i64)sizeof(scalar));
    auto fetch = [&](Group<CHANNELS> &to, int s, bool sure) {
        if (sure || (s >= 0 && s < (int)length && s < stop))
            to.load((const scalar *)(x_first + (i64)s * x_next));
        else
            to.clear();
    };

    float held[TAPS][CHANNELS];
    Group<CHANNELS> next[AHEAD], before[HALO + 1];
#pragma unroll
    for (int j = 0; j < HALO; j++) fetch(before[j], from - HALO + j, false);
#pragma unroll
    for (int k = 0; k < AHEAD; k++) fetch(next[k], from + k, false);
#pragma unroll
    for (int j = 0; j < HALO; j++) before[j].wide(held[j + 1]);
    // AHEAD positions; `sure`: all of them, and the next AHEAD, lie well inside the segment.
    auto walk = [&](int base, bool sure) {
        Group<CHANNELS> now[AHEAD];
#pragma unroll
        for (int k = 0; k < AHEAD; k++) {
            now[k] = next[k];
            fetch(next[k], base + AHEAD + k, sure);
        }
#pragma unroll
        for (int k = 0; k < AHEAD; k++) {
            const int s = base + k;
            float fresh[CHANNELS], out[CHANNELS];
            now[k].wide(fresh);
            push(held, fresh);
            if (sure || s < until) {
#pragma unroll
                for (int c = 0; c < CHANNELS; c++) {
                    const float sum = ahead.at(c, held, false);
                    out[c] = SILU ? sum * sigmoid(sum) : sum;
                }
                Group<CHANNELS>::store((scalar *)(y_first + (i64)s * y_next), out);
            }
            if (WAYS == 2 && (sure || (s - HALO >= from && s < stop))) {
#pragma unroll
                for (int c = 0; c < CHANNELS; c++) {
                    const float sum = behind.at(c, held, true);
                    out[c] = SILU ? sum * sigmoid(sum) : sum;
                }
                Group<CHANNELS>::store((scalar *)(y_behind + (i64)(s - HALO) * y_next), out);
            }
        }
    };
#pragma unroll 1
    for (int base = from; base < stop; base += AHEAD) {
        if (base >= from + HALO && base + 2 * AHEAD <= until)
            walk(base, true);
        else
            walk(base, false);
    }
}

// Gradients. Sums for the weights and biases of a segment go to sums (segments x ways x inner x (TAPS + 1)).
extern "C" __global__ void __launch_bounds__(THREADS) conv_backward(
    const scalar *x, const scalar *dy, const float *weight_ahead, const float *weight_behind, const float *bias_ahead,
    const float *bias_behind, scalar *dx, float *sums, i64 length, i64 inner, i64 segment, i64 x_batch, i64 x_time,
    i64 dy_batch, i64 dy_time, i64 dy_way, i64 dx_batch, i64 dx_time) {
    const i64 channel = ((i64)blockIdx.x * THREADS + threadIdx.x) * CHANNELS, batch = blockIdx.z;
    if (channel >= inner) return;
    const int from = (int)(blockIdx.y * segment), until = (int)min((i64)from + segment, length), stop = until + HALO;
    Taps ahead, behind;
    ahead.load(weight_ahead, bias_ahead, channel);
    if (WAYS == 2) behind.load(weight_behind, bias_behind, channel);

    const i64 first = REVERSE && WAYS == 1 ? length - 1 : 0, turn = REVERSE && WAYS == 1 ? -1 : 1, size = sizeof(scalar);
    const char *x_first = (const char *)(x + batch * x_batch + first * x_time + channel);
    const char *dy_first = (const char *)(dy + batch * dy_batch + first * dy_time + channel), *dy_behind = dy_first + dy_way * size;
    char *dx_first = (char *)(dx + batch * dx_batch + first * dx_time + channel);
    const int x_next = (int)(turn * x_time * size), dy_next = (int)(turn * dy_time * size), dx_next = (int)(turn * dx_time * size);
    auto fetch = [&](Group<CHANNELS> &to, const char *at, int next, int s, bool sure) {
        if (sure || (s >= 0 && s < (int)length && s < stop))
            to.load((const scalar *)(at + (i64)s * next));
        else
            to.clear();
    };
    // What comes back through SiLU, where `sum` went in.
    auto through = [](float gradient, float sum) {
        if (!SILU) return gradient;
        const float open = sigmoid(sum);
        return gradient * (open * fmaf(sum, 1.f - open, 1.f));
    };

    float held[TAPS][CHANNELS], flow_ahead[TAPS][CHANNELS], flow_behind[TAPS][CHANNELS];
    float sum_ahead[CHANNELS][TAPS + 1], sum_behind[CHANNELS][TAPS + 1];
#pragma unroll
    for (int c = 0; c < CHANNELS; c++) {
#pragma unroll
        for (int j = 0; j < TAPS; j++) flow_ahead[j][c] = flow_behind[j][c] = 0.f;
#pragma unroll
        for (int j = 0; j <= TAPS; j++) sum_ahead[c][j] = sum_behind[c][j] = 0.f;
    }
    Group<CHANNELS> next_x[AHEAD], next_ahead[AHEAD], next_behind[AHEAD];
#pragma unroll
    for (int j = 0; j < HALO; j++) {
        fetch(next_x[0], x_first, x_next, from - HALO + j, false);
        next_x[0].wide(held[j + 1]);
    }
    auto fetch_all = [&](int k, int s, bool sure) {
        fetch(next_x[k], x_first, x_next, s, sure);
        fetch(next_ahead[k], dy_first, dy_next, s, sure);
        if (WAYS == 2) fetch(next_behind[k], dy_behind, dy_next, s - HALO, sure);
    };
#pragma unroll
    for (int k = 0; k < AHEAD; k++) fetch_all(k, from + k, false);
    auto walk = [&](int base, bool sure) {
        Group<CHANNELS> now_x[AHEAD], now_ahead[AHEAD], now_behind[AHEAD];
#pragma unroll
        for (int k = 0; k < AHEAD; k++) {
            now_x[k] = next_x[k];
            now_ahead[k] = next_ahead[k];
            if (WAYS == 2) now_behind[k] = next_behind[k];
            fetch_all(k, base + AHEAD + k, sure);
        }
#pragma unroll
        for (int k = 0; k < AHEAD; k++) {
            const int s = base + k, t = s - HALO;
            const bool mine = sure || (t >= from && s < stop);
            float fresh[CHANNELS], gradient[CHANNELS], out[CHANNELS];
            now_x[k].wide(fresh);
            push(held, fresh);
            now_ahead[k].wide(gradient);
#pragma unroll
            for (int c = 0; c < CHANNELS; c++) fresh[c] = through(gradient[c], ahead.at(c, held, false));
            push(flow_ahead, fresh);
            if (sure || s < until) {
#pragma unroll
                for (int c = 0; c < CHANNELS; c++) {
#pragma unroll
                    for (int j = 0; j < TAPS; j++) sum_ahead[c][j] = fmaf(fresh[c], held[j][c], sum_ahead[c][j]);
                    sum_ahead[c][TAPS] += fresh[c];
                }
            }
            if (WAYS == 2) {
                now_behind[k].wide(gradient);
#pragma unroll
                for (int c = 0; c < CHANNELS; c++) fresh[c] = through(gradient[c], behind.at(c, held, true));
                push(flow_behind, fresh);
                if (mine) {
#pragma unroll
                    for (int c = 0; c < CHANNELS; c++) {
#pragma unroll
                        for (int j = 0; j < TAPS; j++)
                            sum_behind[c][j] = fmaf(fresh[c], held[HALO - j][c], sum_behind[c][j]);
                        sum_behind[c][TAPS] += fresh[c];
                    }
                }
            }
            if (mine) {
#pragma unroll
                for (int c = 0; c < CHANNELS; c++) {
                    out[c] = 0.f;
#pragma unroll
                    for (int j = 0; j < TAPS; j++) {
                        out[c] = fmaf(ahead.weight[c][j], flow_ahead[HALO - j][c], out[c]);
                        if (WAYS == 2) out[c] = fmaf(behind.weight[c][j], flow_behind[j][c], out[c]);
                    }
                }
                Group<CHANNELS>::store((scalar *)(dx_first + (i64)t * dx_next), out);
            }
        }
    };
#pragma unroll 1
    for (int base = from; base < stop; base += AHEAD) {
        if (base >= from + HALO && base + 2 * AHEAD <= until)
            walk(base, true);
        else
            walk(base, false);
    }
    float *to = sums + ((batch * gridDim.y + blockIdx.y) * WAYS * inner + channel) * (TAPS + 1);
#pragma unroll
    for (int c = 0; c < CHANNELS; c++)
#pragma unroll
        for (int j = 0; j <= TAPS; j++) {
            to[c * (TAPS + 1) + j] = sum_ahead[c][j];
            if (WAYS == 2) to[(inner + c) * (TAPS + 1) + j] = sum_behind[c][j];
        }
}
