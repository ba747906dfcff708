// The causal depthwise convolution, both ways at once or one. A thread walks through a segment of positions for
// CHANNELS neighbouring channels with the last TAPS inputs in registers, so that each input is loaded once. When it
// stands at position s, those inputs are what "ahead" needs at s and what "behind" needs at s - (TAPS - 1).
//
// Macros: SCALAR, CHANNELS (1, 2, 4), TAPS, WAYS (1, 2), REVERSE (with one way: mirrored in time), SILU, THREADS.
#define HALO (TAPS - 1)
#define AHEAD 4

// Weights and bias of one way for my channels; none is zero.
struct Taps {
    float weight[CHANNELS][TAPS], bias[CHANNELS];
    __device__ __forceinline__ void load(const float *weights, const float *biases, i64 channel) {
#pragma unroll
        for (int c = 0; c < CHANNELS; c++) {
#pragma unroll
            for (int j = 0; j < TAPS; j++) weight[c][j] = weights[(channel + c) * TAPS + j];
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

extern "C" __global__ void __launch_bounds__(THREADS) conv_forward(
    const scalar *x, const float *weight_ahead, const float *weight_behind, const float *bias_ahead, const float *bias_behind,
    scalar *y, i64 batches, i64 length, i64 inner, i64 segment, i64 x_batch, i64 x_time) {
    const i64 channel = ((i64)blockIdx.x * THREADS + threadIdx.x) * CHANNELS, batch = blockIdx.z;
    if (channel >= inner) return;
    const int from = (int)(blockIdx.y * segment), until = (int)min((i64)from + segment, length);
    const int stop = until + (WAYS == 2 ? HALO : 0);
    Taps ahead, behind;
    ahead.load(weight_ahead, bias_ahead, channel);
    if (WAYS == 2) behind.load(weight_behind, bias_behind, channel);

    const scalar *x_at = x + batch * x_batch + channel;
    scalar *y_at = y + batch * length * inner + channel, *y_behind = y_at + batches * length * inner;
    auto place = [&](int s) { return REVERSE && WAYS == 1 ? length - 1 - s : (i64)s; };
    auto fetch = [&](Group<CHANNELS> &to, int s) {
        if (s >= 0 && s < (int)length && s < stop)
            to.load(x_at + place(s) * x_time);
        else
            to.clear();
    };

    float held[TAPS][CHANNELS];
    Group<CHANNELS> next[AHEAD];
#pragma unroll
    for (int j = 0; j < HALO; j++) {
        fetch(next[0], from - HALO + j);
        next[0].wide(held[j + 1]);
    }
#pragma unroll
    for (int k = 0; k < AHEAD; k++) fetch(next[k], from + k);
#pragma unroll 1
    for (int base = from; base < stop; base += AHEAD) {
        Group<CHANNELS> now[AHEAD];
#pragma unroll
        for (int k = 0; k < AHEAD; k++) {
            now[k] = next[k];
            fetch(next[k], base + AHEAD + k);
        }
#pragma unroll
        for (int k = 0; k < AHEAD; k++) {
            const int s = base + k;
            float fresh[CHANNELS], out[CHANNELS];
            now[k].wide(fresh);
            push(held, fresh);
            if (s < until) {
#pragma unroll
                for (int c = 0; c < CHANNELS; c++) {
                    const float sum = ahead.at(c, held, false);
                    out[c] = SILU ? sum * sigmoid(sum) : sum;
                }
                Group<CHANNELS>::store(y_at + place(s) * inner, out);
            }
            if (WAYS == 2 && s - HALO >= from && s < stop) {
#pragma unroll
                for (int c = 0; c < CHANNELS; c++) {
                    const float sum = behind.at(c, held, true);
                    out[c] = SILU ? sum * sigmoid(sum) : sum;
                }
                Group<CHANNELS>::store(y_behind + (i64)(s - HALO) * inner, out);
            }
        }
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

    const scalar *x_at = x + batch * x_batch + channel;
    const scalar *dy_at = dy + batch * dy_batch + channel, *dy_behind = dy_at + dy_way;
    scalar *dx_at = dx + batch * dx_batch + channel;
    auto place = [&](int s) { return REVERSE && WAYS == 1 ? length - 1 - s : (i64)s; };
    auto fetch = [&](Group<CHANNELS> &to, const scalar *at, i64 time, int s) {
        if (s >= 0 && s < (int)length && s < stop)
            to.load(at + place(s) * time);
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
        fetch(next_x[0], x_at, x_time, from - HALO + j);
        next_x[0].wide(held[j + 1]);
    }
    auto fetch_all = [&](int k, int s) {
        fetch(next_x[k], x_at, x_time, s);
        fetch(next_ahead[k], dy_at, dy_time, s);
        if (WAYS == 2) fetch(next_behind[k], dy_behind, dy_time, s - HALO);
    };
#pragma unroll
    for (int k = 0; k < AHEAD; k++) fetch_all(k, from + k);
#pragma unroll 1
    for (int base = from; base < stop; base += AHEAD) {
        Group<CHANNELS> now_x[AHEAD], now_ahead[AHEAD], now_behind[AHEAD];
#pragma unroll
        for (int k = 0; k < AHEAD; k++) {
            now_x[k] = next_x[k];
            now_ahead[k] = next_ahead[k];
            if (WAYS == 2) now_behind[k] = next_behind[k];
            fetch_all(k, base + AHEAD + k);
        }
#pragma unroll
        for (int k = 0; k < AHEAD; k++) {
            const int s = base + k, t = s - HALO;
            float fresh[CHANNELS], gradient[CHANNELS], out[CHANNELS];
            now_x[k].wide(fresh);
            push(held, fresh);
            now_ahead[k].wide(gradient);
#pragma unroll
            for (int c = 0; c < CHANNELS; c++) fresh[c] = through(gradient[c], ahead.at(c, held, false));
            push(flow_ahead, fresh);
            if (s < until) {
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
                if (t >= from && s < stop) {
#pragma unroll
                    for (int c = 0; c < CHANNELS; c++) {
#pragma unroll
                        for (int j = 0; j < TAPS; j++)
                            sum_behind[c][j] = fmaf(fresh[c], held[HALO - j][c], sum_behind[c][j]);
                        sum_behind[c][TAPS] += fresh[c];
                    }
                }
            }
            if (t >= from && s < stop) {
#pragma unroll
                for (int c = 0; c < CHANNELS; c++) {
                    out[c] = 0.f;
#pragma unroll
                    for (int j = 0; j < TAPS; j++) {
                        out[c] = fmaf(ahead.weight[c][j], flow_ahead[HALO - j][c], out[c]);
                        if (WAYS == 2) out[c] = fmaf(behind.weight[c][j], flow_behind[j][c], out[c]);
                    }
                }
                Group<CHANNELS>::store(dx_at + place(t) * dx_time, out);
            }
        }
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
