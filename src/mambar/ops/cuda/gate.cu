// Memory-bound kernels around the scans.
//
// Macros: SCALAR, CHANNELS (1, 2, 4: adjacent channels per thread), GATED (see below).
//
// The forward computes mixed = scale sum silu(z). This kernel computes the gradient of the sums, dy = dout scale
// silu(z), and dz = dout m silu'(z), with the pregate value m = scale sum. With GATED, m is recovered from the output,
// which the network stores for out_proj: m = mixed / silu(z). The forward uses z + 1e-30 in place of z, which avoids 0
// / 0.
extern "C" __global__ void __launch_bounds__(128) gate_backward(
    const scalar *dout, const scalar *mixed, const scalar *z, scalar *dy, scalar *dz,
    i64 length, i64 inner, double scale, i64 dout_batch, i64 dout_time, i64 z_batch, i64 z_time, i64 dz_batch, i64 dz_time) {
    const i64 batch = blockIdx.x / length, position = blockIdx.x % length;
    const i64 row = (batch * length + position) * inner;
    const scalar *dout_row = dout + batch * dout_batch + position * dout_time;
    const scalar *z_row = z + batch * z_batch + position * z_time;
    scalar *dz_row = dz + batch * dz_batch + position * dz_time;
    for (i64 channel = (i64)threadIdx.x * CHANNELS; channel < inner; channel += 128 * CHANNELS) {
        Group<CHANNELS> held;
        float gradient[CHANNELS], sum[CHANNELS], gate[CHANNELS];
        held.load(dout_row + channel);
        held.to_float(gradient);
        held.load(mixed + row + channel);
        held.to_float(sum);
        held.load(z_row + channel);
        held.to_float(gate);
#pragma unroll
        for (int c = 0; c < CHANNELS; c++) {
            if (GATED) gate[c] += 1e-30f;
            const float gate_sigmoid = sigmoid(gate[c]), silu = gate[c] * gate_sigmoid;
            if (GATED) sum[c] = fabsf(silu) > 1e-36f ? sum[c] * reciprocal(silu) : silu * 0.f;
            gate[c] = gradient[c] * sum[c] * (gate_sigmoid * fmaf(gate[c], 1.f - gate_sigmoid, 1.f));
            gradient[c] *= silu * (float)scale;
        }
        Group<CHANNELS>::store(dy + row + channel, gradient);
        Group<CHANNELS>::store(dz_row + channel, gate);
    }
}

// Sums the per-block gradients of B and C from the backward scan, in a fixed order.
extern "C" __global__ void __launch_bounds__(256) add_blocks(
    const float *dBC, scalar *dB, scalar *dC, i64 batches, i64 across, i64 length, i64 states,
    i64 B_batch, i64 B_time, i64 B_direction, i64 C_batch, i64 C_time, i64 C_direction) {
    const i64 at = (i64)blockIdx.x * 256 + threadIdx.x, position = at >> 5, batch = blockIdx.y, direction = blockIdx.z;
    if (position >= length) return;
    const float *from = dBC + (direction * batches + batch) * across * length * 32 + at;
    float sum = 0.f;
#pragma unroll 4
    for (i64 block = 0; block < across; block++) sum += from[block * length * 32];
    const int s = (int)at & 15;
    if (s >= states) return;
    if (at & 16)
        dC[batch * C_batch + position * C_time + direction * C_direction + s] = narrow(sum);
    else
        dB[batch * B_batch + position * B_time + direction * B_direction + s] = narrow(sum);
}

// Chains the segments of a scan (scan_forward.cu, STATES_ONLY). `states`, a row per segment, holds the state after each
// segment but the last in scan order from a zero state; it is replaced by the state before the segment, from `start` before the first in scan
// order. The second direction runs against the first.
extern "C" __global__ void __launch_bounds__(256) carry_states(
    float *states, const float *step_sums, const float *A_forward, const float *A_backward, const float *start,
    i64 segments, i64 inner, i64 num_states, i64 batches, i64 reverse) {
    const i64 at = (i64)blockIdx.x * 256 + threadIdx.x, row = blockIdx.y, size = inner * num_states;
    if (at >= size) return;
    const bool second = row >= batches, back = second != (reverse != 0);
    const float decay = (second ? A_backward : A_forward)[at] * LOG2E;
    float state = start ? start[row * size + at] : 0.f;
    for (i64 k = 0; k < segments; k++) {
        const i64 segment = row * segments + (back ? segments - 1 - k : k);
        const float after = k < segments - 1 ? states[segment * size + at] : 0.f;
        states[segment * size + at] = state;
        if (k < segments - 1) state = fmaf(fast_exp2(step_sums[segment * inner + at / num_states] * decay), state, after);
    }
}
