// Shared arithmetic of the kernels: conversion, loads and stores of activations, and the functions of a scan.
// SCALAR: 0 float, 1 bfloat16, 2 half. No headers are included, so that NVRTC needs only this text.
typedef long long i64;

#if SCALAR == 0
typedef float scalar;
#else
typedef unsigned short scalar;
#endif

#define LOG2E 1.4426950408889634f
#define LN2 0.6931471805599453f
#define ALL_LANES 0xffffffffu

__device__ __forceinline__ float widen(scalar x) {
#if SCALAR == 0
    return x;
#elif SCALAR == 1
    return __uint_as_float((unsigned)x << 16);
#else
    float to_float;
    asm("cvt.f32.f16 %0, %1;" : "=f"(to_float) : "h"(x));
    return to_float;
#endif
}

__device__ __forceinline__ scalar narrow(float x) {
#if SCALAR == 0
    return x;
#else
    unsigned short narrowed;
#if SCALAR == 1
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(narrowed) : "f"(x));
#else
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(narrowed) : "f"(x));
#endif
    return narrowed;
#endif
}

// Two adjacent 16-bit values as one 32-bit word: the first in the low half.
__device__ __forceinline__ void widen_pair(unsigned word, float &first, float &second) {
#if SCALAR == 1
    first = __uint_as_float(word << 16);
    second = __uint_as_float(word & 0xffff0000u);
#else
    first = widen((scalar)(word & 0xffffu));
    second = widen((scalar)(word >> 16));
#endif
}

__device__ __forceinline__ unsigned narrow_pair(float first, float second) {
    unsigned word = 0;
#if SCALAR == 1
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(second), "f"(first));
#elif SCALAR == 2
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(second), "f"(first));
#endif
    return word;
}

// COUNT adjacent channels in the type of the activations, loaded by one instruction.
template <int COUNT> struct Group;

template <> struct Group<1> {
    scalar value;
    __device__ __forceinline__ void load(const scalar *at) { value = *at; }
    __device__ __forceinline__ void clear() { value = 0; }
    __device__ __forceinline__ void to_float(float *to) const { to[0] = widen(value); }
    __device__ __forceinline__ static void store(scalar *at, const float *from) { *at = narrow(from[0]); }
};

#if SCALAR == 0
template <> struct Group<2> {
    float2 value;
    __device__ __forceinline__ void load(const scalar *at) { value = *(const float2 *)at; }
    __device__ __forceinline__ void clear() { value = make_float2(0.f, 0.f); }
    __device__ __forceinline__ void to_float(float *to) const { to[0] = value.x; to[1] = value.y; }
    __device__ __forceinline__ static void store(scalar *at, const float *from) {
        *(float2 *)at = make_float2(from[0], from[1]);
    }
};
template <> struct Group<4> {
    float4 value;
    __device__ __forceinline__ void load(const scalar *at) { value = *(const float4 *)at; }
    __device__ __forceinline__ void clear() { value = make_float4(0.f, 0.f, 0.f, 0.f); }
    __device__ __forceinline__ void to_float(float *to) const {
        to[0] = value.x; to[1] = value.y; to[2] = value.z; to[3] = value.w;
    }
    __device__ __forceinline__ static void store(scalar *at, const float *from) {
        *(float4 *)at = make_float4(from[0], from[1], from[2], from[3]);
    }
};
#else
template <> struct Group<2> {
    unsigned value;
    __device__ __forceinline__ void load(const scalar *at) { value = *(const unsigned *)at; }
    __device__ __forceinline__ void clear() { value = 0; }
    __device__ __forceinline__ void to_float(float *to) const { widen_pair(value, to[0], to[1]); }
    __device__ __forceinline__ static void store(scalar *at, const float *from) {
        *(unsigned *)at = narrow_pair(from[0], from[1]);
    }
};
template <> struct Group<4> {
    uint2 value;
    __device__ __forceinline__ void load(const scalar *at) { value = *(const uint2 *)at; }
    __device__ __forceinline__ void clear() { value = make_uint2(0, 0); }
    __device__ __forceinline__ void to_float(float *to) const {
        widen_pair(value.x, to[0], to[1]);
        widen_pair(value.y, to[2], to[3]);
    }
    __device__ __forceinline__ static void store(scalar *at, const float *from) {
        *(uint2 *)at = make_uint2(narrow_pair(from[0], from[1]), narrow_pair(from[2], from[3]));
    }
};
#endif

// 2^x on the special-function unit: relative error 2^-22, subnormal results are zero.
__device__ __forceinline__ float fast_exp2(float x) {
    float power;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x));
    return power;
}

__device__ __forceinline__ float fast_log2(float x) {
    float logarithm;
    asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(logarithm) : "f"(x));
    return logarithm;
}

__device__ __forceinline__ float reciprocal(float x) {
    float inverse;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(x));
    return inverse;
}

__device__ __forceinline__ float sigmoid(float x) { return reciprocal(1.f + fast_exp2(-LOG2E * x)); }

// log(1 + e^x) = max(x, 0) + log(1 + e^-|x|). The polynomial is accurate for small values too: relative error 2e-7 with
// nine terms, 1.4e-6 with seven.
__device__ __forceinline__ float softplus(float x) {
    float e = fast_exp2(-LOG2E * fabsf(x));
#if SCALAR == 0
    float series = fmaf(e, 0.0052326927f, -0.0295052325f);
    series = fmaf(e, series, 0.0782259417f);
    series = fmaf(e, series, -0.136632449f);
    series = fmaf(e, series, 0.191060064f);
    series = fmaf(e, series, -0.248429821f);
    series = fmaf(e, series, 0.333190968f);
    series = fmaf(e, series, -0.499994931f);
    series = fmaf(e, series, 0.99999997f);
#else
    float series = fmaf(e, 0.0141410199f, -0.0664017885f);
    series = fmaf(e, series, 0.149223862f);
    series = fmaf(e, series, -0.235038597f);
    series = fmaf(e, series, 0.331094488f);
    series = fmaf(e, series, -0.499869656f);
    series = fmaf(e, series, 0.999998732f);
#endif
    return fmaf(e, series, fmaxf(x, 0.f));
}

// The derivative of softplus at the point where its value is d: 1 - e^-d.
__device__ __forceinline__ float softplus_derivative(float d) {
    float slope = 1.f - fast_exp2(-LOG2E * d);
#if SCALAR == 0
    float series = d * fmaf(d, fmaf(d, fmaf(d, fmaf(d, 1.f / 120, -1.f / 24), 1.f / 6), -0.5f), 1.f);
    slope = d < 0.1f ? series : slope;
#endif
    return slope;
}
