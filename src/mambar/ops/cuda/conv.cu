// The causal depthwise convolution in one or both directions. A thread loops over a segment of positions for CHANNELS
// adjacent channels. It holds the last TAPS inputs in registers, so that each input is loaded once. At position s,
// these inputs serve the forward direction at s and the backward direction at s - (TAPS - 1).
//
// Macros: SCALAR, CHANNELS (1, 2, 4), PREFETCH (positions loaded in advance), MIN_BLOCKS (per multiprocessor), TAPS,
// DIRECTIONS (1, 2), REVERSE (with one direction: reversed in time), SILU, THREADS, ALIGNED_TAPS.
#define HALO (TAPS - 1)

// Weights and bias of one direction for the channels of this thread; a missing bias is 0.
struct Taps {
    float weight[CHANNELS][TAPS], bias[CHANNELS];
    __device__ __forceinline__ void load(const float *weights, const float *biases, i64 channel) {
#pragma unroll
        for (int c = 0; c < CHANNELS; c++) {
#if ALIGNED_TAPS
            const float4 four = ((const float4 *)weights)[channel + c];
            weight[c][0] = four.x; weight[c][1] = four.y; weight[c][2] = four.z; weight[c][3] = four.w;
#else
#pragma unroll
            for (int j = 0; j < TAPS; j++) weight[c][j] = weights[(channel + c) * TAPS + j];
#endif
            bias[c] = biases ? biases[channel + c] : 0.f;
        }
    }
    // window[j] is the input at position s - HALO + j. The last tap multiplies input s; in the backward direction the
    // first.
    __device__ __forceinline__ float at(int c, const float (&window)[TAPS][CHANNELS], bool backward) const {
        float sum = bias[c];
#pragma unroll
        for (int j = 0; j < TAPS; j++) sum = fmaf(weight[c][j], window[backward ? HALO - j : j][c], sum);
        return sum;
    }
};

template <typename Row> __device__ __forceinline__ void push(Row (&window)[TAPS][CHANNELS], const Row *next) {
#pragma unroll
    for (int c = 0; c < CHANNELS; c++) {
#pragma unroll
        for (int j = 0; j < HALO; j++) window[j][c] = window[j + 1][c];
        window[HALO][c] = next[c];
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, MIN_BLOCKS) conv_forward(
    const scalar *x, const float *weight_forward, const float *weight_backward, const float *bias_forward, const float *bias_backward,
    scalar *y, i64 batches, i64 length, i64 inner, i64 segment, i64 x_batch, i64 x_time) {
    const i64 channel = ((i64)blockIdx.x * THREADS + threadIdx.x) * CHANNELS, batch = blockIdx.z;
    if (channel >= inner) return;
    const int from = (int)(blockIdx.y * segment), until = (int)min((i64)from + segment, length);
    const int stop = until + (DIRECTIONS == 2 ? HALO : 0);
    Taps forward, backward;
    forward.load(weight_forward, bias_forward, channel);
    if (DIRECTIONS == 2) backward.load(weight_backward, bias_backward, channel);

    const i64 first = REVERSE && DIRECTIONS == 1 ? length - 1 : 0, time_sign = REVERSE && DIRECTIONS == 1 ? -1 : 1;
    const char *x_first = (const char *)(x + batch * x_batch + first * x_time + channel);
    char *y_first = (char *)(y + (batch * length + first) * inner + channel);
    char *y_backward = y_first + batches * length * inner * (i64)sizeof(scalar);
    const int x_next = (int)(time_sign * x_time * (i64)sizeof(scalar)), y_next = (int)(time_sign * inner * (i64)sizeof(scalar));
    auto fetch = [&](Group<CHANNELS> &to, int s, bool interior) {
        if (interior || (s >= 0 && s < (int)length && s < stop))
            to.load((const scalar *)(x_first + (i64)s * x_next));
        else
            to.clear();
    };

    float window[TAPS][CHANNELS];
    Group<CHANNELS> next[PREFETCH], before[HALO + 1];
#pragma unroll
    for (int j = 0; j < HALO; j++) fetch(before[j], from - HALO + j, false);
#pragma unroll
    for (int k = 0; k < PREFETCH; k++) fetch(next[k], from + k, false);
#pragma unroll
    for (int j = 0; j < HALO; j++) before[j].to_float(window[j + 1]);
    // Processes PREFETCH positions; `interior` means that these and the next PREFETCH are inside the segment.
    auto advance = [&](int base, bool interior) {
        Group<CHANNELS> now[PREFETCH];
#pragma unroll
        for (int k = 0; k < PREFETCH; k++) {
            now[k] = next[k];
            fetch(next[k], base + PREFETCH + k, interior);
        }
#pragma unroll
        for (int k = 0; k < PREFETCH; k++) {
            const int s = base + k;
            float current[CHANNELS], out[CHANNELS];
            now[k].to_float(current);
            push(window, current);
            if (interior || s < until) {
#pragma unroll
                for (int c = 0; c < CHANNELS; c++) {
                    const float sum = forward.at(c, window, false);
                    out[c] = SILU ? sum * sigmoid(sum) : sum;
                }
                Group<CHANNELS>::store((scalar *)(y_first + (i64)s * y_next), out);
            }
            if (DIRECTIONS == 2 && (interior || (s - HALO >= from && s < stop))) {
#pragma unroll
                for (int c = 0; c < CHANNELS; c++) {
                    const float sum = backward.at(c, window, true);
                    out[c] = SILU ? sum * sigmoid(sum) : sum;
                }
                Group<CHANNELS>::store((scalar *)(y_backward + (i64)(s - HALO) * y_next), out);
            }
        }
    };
#pragma unroll 1
    for (int base = from; base < stop; base += PREFETCH) {
        if (base >= from + HALO && base + 2 * PREFETCH <= until)
            advance(base, true);
        else
            advance(base, false);
    }
}

// The backward. Weight and bias gradients of each segment go to sums (segments x directions x inner x (TAPS + 1)).
extern "C" __global__ void __launch_bounds__(THREADS) conv_backward(
    const scalar *x, const scalar *dy, const float *weight_forward, const float *weight_backward, const float *bias_forward,
    const float *bias_backward, scalar *dx, float *sums, i64 length, i64 inner, i64 segment, i64 x_batch, i64 x_time,
    i64 dy_batch, i64 dy_time, i64 dy_direction, i64 dx_batch, i64 dx_time) {
    const i64 channel = ((i64)blockIdx.x * THREADS + threadIdx.x) * CHANNELS, batch = blockIdx.z;
    if (channel >= inner) return;
    const int from = (int)(blockIdx.y * segment), until = (int)min((i64)from + segment, length), stop = until + HALO;
    Taps forward, backward;
    forward.load(weight_forward, bias_forward, channel);
    if (DIRECTIONS == 2) backward.load(weight_backward, bias_backward, channel);

    const i64 first = REVERSE && DIRECTIONS == 1 ? length - 1 : 0, time_sign = REVERSE && DIRECTIONS == 1 ? -1 : 1, size = sizeof(scalar);
    const char *x_first = (const char *)(x + batch * x_batch + first * x_time + channel);
    const char *dy_first = (const char *)(dy + batch * dy_batch + first * dy_time + channel), *dy_backward = dy_first + dy_direction * size;
    char *dx_first = (char *)(dx + batch * dx_batch + first * dx_time + channel);
    const int x_next = (int)(time_sign * x_time * size), dy_next = (int)(time_sign * dy_time * size), dx_next = (int)(time_sign * dx_time * size);
    auto fetch = [&](Group<CHANNELS> &to, const char *at, int next, int s, bool interior) {
        if (interior || (s >= 0 && s < (int)length && s < stop))
            to.load((const scalar *)(at + (i64)s * next));
        else
            to.clear();
    };
    // The gradient before SiLU, at preactivation `sum`.
    auto through_silu = [](float gradient, float sum) {
        if (!SILU) return gradient;
        const float gate_sigmoid = sigmoid(sum);
        return gradient * (gate_sigmoid * fmaf(sum, 1.f - gate_sigmoid, 1.f));
    };

    float window[TAPS][CHANNELS], grad_forward[TAPS][CHANNELS], grad_backward[TAPS][CHANNELS];
    float sum_forward[CHANNELS][TAPS + 1], sum_backward[CHANNELS][TAPS + 1];
#pragma unroll
    for (int c = 0; c < CHANNELS; c++) {
#pragma unroll
        for (int j = 0; j < TAPS; j++) grad_forward[j][c] = grad_backward[j][c] = 0.f;
#pragma unroll
        for (int j = 0; j <= TAPS; j++) sum_forward[c][j] = sum_backward[c][j] = 0.f;
    }
    Group<CHANNELS> next_x[PREFETCH], next_forward[PREFETCH], next_backward[PREFETCH];
#pragma unroll
    for (int j = 0; j < HALO; j++) {
        fetch(next_x[0], x_first, x_next, from - HALO + j, false);
        next_x[0].to_float(window[j + 1]);
    }
    auto fetch_all = [&](int k, int s, bool interior) {
        fetch(next_x[k], x_first, x_next, s, interior);
        fetch(next_forward[k], dy_first, dy_next, s, interior);
        if (DIRECTIONS == 2) fetch(next_backward[k], dy_backward, dy_next, s - HALO, interior);
    };
#pragma unroll
    for (int k = 0; k < PREFETCH; k++) fetch_all(k, from + k, false);
    auto advance = [&](int base, bool interior) {
        Group<CHANNELS> now_x[PREFETCH], now_forward[PREFETCH], now_backward[PREFETCH];
#pragma unroll
        for (int k = 0; k < PREFETCH; k++) {
            now_x[k] = next_x[k];
            now_forward[k] = next_forward[k];
            if (DIRECTIONS == 2) now_backward[k] = next_backward[k];
            fetch_all(k, base + PREFETCH + k, interior);
        }
#pragma unroll
        for (int k = 0; k < PREFETCH; k++) {
            const int s = base + k, t = s - HALO;
            const bool is_mine = interior || (t >= from && s < stop);
            float current[CHANNELS], gradient[CHANNELS], out[CHANNELS];
            now_x[k].to_float(current);
            push(window, current);
            now_forward[k].to_float(gradient);
#pragma unroll
            for (int c = 0; c < CHANNELS; c++) current[c] = through_silu(gradient[c], forward.at(c, window, false));
            push(grad_forward, current);
            if (interior || s < until) {
#pragma unroll
                for (int c = 0; c < CHANNELS; c++) {
#pragma unroll
                    for (int j = 0; j < TAPS; j++) sum_forward[c][j] = fmaf(current[c], window[j][c], sum_forward[c][j]);
                    sum_forward[c][TAPS] += current[c];
                }
            }
            if (DIRECTIONS == 2) {
                now_backward[k].to_float(gradient);
#pragma unroll
                for (int c = 0; c < CHANNELS; c++) current[c] = through_silu(gradient[c], backward.at(c, window, true));
                push(grad_backward, current);
                if (is_mine) {
#pragma unroll
                    for (int c = 0; c < CHANNELS; c++) {
#pragma unroll
                        for (int j = 0; j < TAPS; j++)
                            sum_backward[c][j] = fmaf(current[c], window[HALO - j][c], sum_backward[c][j]);
                        sum_backward[c][TAPS] += current[c];
                    }
                }
            }
            if (is_mine) {
#pragma unroll
                for (int c = 0; c < CHANNELS; c++) {
                    out[c] = 0.f;
#pragma unroll
                    for (int j = 0; j < TAPS; j++) {
                        out[c] = fmaf(forward.weight[c][j], grad_forward[HALO - j][c], out[c]);
                        if (DIRECTIONS == 2) out[c] = fmaf(backward.weight[c][j], grad_backward[j][c], out[c]);
                    }
                }
                Group<CHANNELS>::store((scalar *)(dx_first + (i64)t * dx_next), out);
            }
        }
    };
#pragma unroll 1
    for (int base = from; base < stop; base += PREFETCH) {
        if (base >= from + HALO && base + 2 * PREFETCH <= until)
            advance(base, true);
        else
            advance(base, false);
    }
    float *to = sums + ((batch * gridDim.y + blockIdx.y) * DIRECTIONS * inner + channel) * (TAPS + 1);
#pragma unroll
    for (int c = 0; c < CHANNELS; c++)
#pragma unroll
        for (int j = 0; j <= TAPS; j++) {
            to[c * (TAPS + 1) + j] = sum_forward[c][j];
            if (DIRECTIONS == 2) to[(inner + c) * (TAPS + 1) + j] = sum_backward[c][j];
        }
}
