// Asynchronous copies to shared memory, and loads and stores of parameters.
//
// ASYNC_COPY: rows of the activations are whole, aligned 16-byte units, copied by cp.async while the threads compute.
// Without it (unaligned sizes) threads load and store their own elements synchronously.
// ALIGNED_BC: the same for the rows of B and C, with 16 states. ALIGNED_A: for A.
#define COPY_BYTES 16

__device__ __forceinline__ unsigned shared_address(const void *at) { return (unsigned)__cvta_generic_to_shared(at); }

template <int BYTES = COPY_BYTES> __device__ __forceinline__ void copy_async(void *to, const void *from) {
    if (BYTES == 16) asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(to)), "l"(from) : "memory");
    else asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(shared_address(to)), "l"(from), "n"(BYTES) : "memory");
}
__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int OPEN> __device__ __forceinline__ void wait_for_copies() {
    asm volatile("cp.async.wait_group %0;" ::"n"(OPEN) : "memory");
}

// COUNT (2 or a multiple of 4) adjacent aligned floats.
template <int COUNT> __device__ __forceinline__ void load_floats(float *to, const float *from) {
    if (COUNT == 2) {
        const float2 two = *(const float2 *)from;
        to[0] = two.x; to[1] = two.y;
    }
#pragma unroll
    for (int n = 0; n + 4 <= COUNT; n += 4) {
        const float4 four = *(const float4 *)(from + n);
        to[n] = four.x; to[n + 1] = four.y; to[n + 2] = four.z; to[n + 3] = four.w;
    }
}

// Loads B and C of `count` positions as floats: 16 of B and 16 of C per row, zero beyond `states` and `valid`
// positions. All loads of a round are issued before the first store.
template <int THREADS_OF_BLOCK>
__device__ __forceinline__ void load_rows(
    float *rows, const scalar *B, const scalar *C, i64 B_time, i64 C_time, int first, int time_sign, int count, int valid, int states) {
    constexpr int ROUND = 8;
#if ALIGNED_BC
    constexpr int VALUES = COPY_BYTES / sizeof(scalar), COPIES = 32 / VALUES;
    const int whole = count * COPIES;
#pragma unroll 1
    for (int base = threadIdx.x; base < whole; base += ROUND * THREADS_OF_BLOCK) {
        uint4 word[ROUND];
#pragma unroll
        for (int j = 0; j < ROUND; j++) {
            const int i = base + j * THREADS_OF_BLOCK, row = i / COPIES, copy = i % COPIES;
            const scalar *from = copy < COPIES / 2 ? B : C;
            const i64 time = copy < COPIES / 2 ? B_time : C_time;
            word[j] = make_uint4(0, 0, 0, 0);
            if (row < valid && i < whole) word[j] = *(const uint4 *)(from + (first + time_sign * row) * time + copy % (COPIES / 2) * VALUES);
        }
#pragma unroll
        for (int j = 0; j < ROUND; j++) {
            const int i = base + j * THREADS_OF_BLOCK;
            float to_float[VALUES];
#if SCALAR == 0
            to_float[0] = __uint_as_float(word[j].x); to_float[1] = __uint_as_float(word[j].y);
            to_float[2] = __uint_as_float(word[j].z); to_float[3] = __uint_as_float(word[j].w);
#else
            widen_pair(word[j].x, to_float[0], to_float[1]);
            widen_pair(word[j].y, to_float[2], to_float[3]);
            widen_pair(word[j].z, to_float[4], to_float[5]);
            widen_pair(word[j].w, to_float[6], to_float[7]);
#endif
            if (i < whole)
#pragma unroll
                for (int n = 0; n < VALUES; n += 4)
                    *(float4 *)(rows + i * VALUES + n) = make_float4(to_float[n], to_float[n + 1], to_float[n + 2], to_float[n + 3]);
        }
    }
#else
    const int whole = count * 32;
#pragma unroll 1
    for (int base = threadIdx.x; base < whole; base += ROUND * THREADS_OF_BLOCK) {
        scalar held[ROUND];
#pragma unroll
        for (int j = 0; j < ROUND; j++) {
            const int i = base + j * THREADS_OF_BLOCK, row = i >> 5, s = i & 15;
            const scalar *from = i & 16 ? C : B;
            const i64 time = i & 16 ? C_time : B_time;
            held[j] = 0;
            if (row < valid && s < states && i < whole) held[j] = from[(first + time_sign * row) * time + s];
        }
#pragma unroll
        for (int j = 0; j < ROUND; j++)
            if (base + j * THREADS_OF_BLOCK < whole) rows[base + j * THREADS_OF_BLOCK] = widen(held[j]);
    }
#endif
}

// Holds a pointer in registers instead of recomputing it. The compiler then no longer knows that it points to global
// memory; store through `store_global`.
template <typename T> __device__ __forceinline__ void keep_in_register(T *&pointer) { asm volatile("" : "+l"(pointer)); }
__device__ __forceinline__ void store_global(void *to, float x) { asm volatile("st.global.f32 [%0], %1;" ::"l"(to), "f"(x)); }
__device__ __forceinline__ void store_global(void *to, unsigned short x) {
    asm volatile("st.global.u16 [%0], %1;" ::"l"(to), "h"(x));
}
__device__ __forceinline__ void store_global(void *to, float4 x) {
    asm volatile("st.global.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(to), "f"(x.x), "f"(x.y), "f"(x.z), "f"(x.w));
}
// Rows of A for one thread: COUNT adjacent states from `first`, times log2(e), zero beyond `states`. ALIGNED_A: rows
// are 16 aligned states.
template <int COUNT>
__device__ __forceinline__ void load_decay(float *decay, const float *A, i64 channel, int first, int states, bool valid) {
#if ALIGNED_A
#pragma unroll
    for (int n = 0; n < COUNT; n++) decay[n] = 0.f;
    if (valid) load_floats<COUNT>(decay, A + channel * 16 + first);
#pragma unroll
    for (int n = 0; n < COUNT; n++) decay[n] *= LOG2E;
#else
#pragma unroll
    for (int n = 0; n < COUNT; n++) decay[n] = valid && first + n < states ? A[channel * states + first + n] * LOG2E : 0.f;
#endif
}
