// Getting numbers into shared memory ahead of their use.
//
// STAGED: rows of the activations are whole, aligned 16-byte pieces, which the copy unit moves behind the threads'
// back. Without it (odd sizes) threads load and store what they need themselves, and wait for it.
// WHOLE_ROWS: the same for the rows of B and C, with 16 states. WHOLE_A: for A.
#define PIECE 16

__device__ __forceinline__ unsigned shared_address(const void *at) { return (unsigned)__cvta_generic_to_shared(at); }

__device__ __forceinline__ void copy_piece(void *to, const void *from) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(to)), "l"(from) : "memory");
}
__device__ __forceinline__ void close_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int OPEN> __device__ __forceinline__ void wait_for_copies() {
    asm volatile("cp.async.wait_group %0;" ::"n"(OPEN) : "memory");
}

// B and C of `count` positions as floats: 16 of B, 16 of C a row, zero beyond `states` and beyond `real` positions.
// All loads of a round leave before the first store.
template <int THREADS_OF_BLOCK>
__device__ __forceinline__ void load_rows(
    float *rows, const scalar *B, const scalar *C, i64 B_time, i64 C_time, int first, int turn, int count, int real, int states) {
    constexpr int ROUND = 8;
#if WHOLE_ROWS
    constexpr int NUMBERS = PIECE / sizeof(scalar), PIECES = 32 / NUMBERS;
    const int whole = count * PIECES;
#pragma unroll 1
    for (int base = threadIdx.x; base < whole; base += ROUND * THREADS_OF_BLOCK) {
        uint4 word[ROUND];
#pragma unroll
        for (int j = 0; j < ROUND; j++) {
            const int i = base + j * THREADS_OF_BLOCK, row = i / PIECES, piece = i % PIECES;
            const scalar *from = piece < PIECES / 2 ? B : C;
            const i64 time = piece < PIECES / 2 ? B_time : C_time;
            word[j] = make_uint4(0, 0, 0, 0);
            if (row < real && i < whole) word[j] = *(const uint4 *)(from + (first + turn * row) * time + piece % (PIECES / 2) * NUMBERS);
        }
#pragma unroll
        for (int j = 0; j < ROUND; j++) {
            const int i = base + j * THREADS_OF_BLOCK;
            float wide[NUMBERS];
#if SCALAR == 0
            wide[0] = __uint_as_float(word[j].x); wide[1] = __uint_as_float(word[j].y);
            wide[2] = __uint_as_float(word[j].z); wide[3] = __uint_as_float(word[j].w);
#else
            widen_pair(word[j].x, wide[0], wide[1]);
            widen_pair(word[j].y, wide[2], wide[3]);
            widen_pair(word[j].z, wide[4], wide[5]);
            widen_pair(word[j].w, wide[6], wide[7]);
#endif
            if (i < whole)
#pragma unroll
                for (int n = 0; n < NUMBERS; n += 4)
                    *(float4 *)(rows + i * NUMBERS + n) = make_float4(wide[n], wide[n + 1], wide[n + 2], wide[n + 3]);
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
            if (row < real && s < states && i < whole) held[j] = from[(first + turn * row) * time + s];
        }
#pragma unroll
        for (int j = 0; j < ROUND; j++)
            if (base + j * THREADS_OF_BLOCK < whole) rows[base + j * THREADS_OF_BLOCK] = widen(held[j]);
    }
#endif
}

// Keeps a pointer in registers, ready to use, instead of finding it again from its parts. The compiler then no longer
// knows that it points to global memory: write through `store_global`.
template <typename T> __device__ __forceinline__ void keep_whole(T *&pointer) { asm volatile("" : "+l"(pointer)); }
__device__ __forceinline__ void store_global(void *to, float x) { asm volatile("st.global.f32 [%0], %1;" ::"l"(to), "f"(x)); }
__device__ __forceinline__ void store_global(void *to, unsigned short x) {
    asm volatile("st.global.u16 [%0], %1;" ::"l"(to), "h"(x));
}
__device__ __forceinline__ void store_global(void *to, float4 x) {
    asm volatile("st.global.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(to), "f"(x.x), "f"(x.y), "f"(x.z), "f"(x.w));
}
// Rows of A for one thread: COUNT neighbouring states from `first`, times log2(e), zero beyond `states`. WHOLE_A: rows
// are 16 aligned states.
template <int COUNT>
__device__ __forceinline__ void load_decay(float *decay, const float *A, i64 channel, int first, int states, bool real) {
#if WHOLE_A
#pragma unroll
    for (int n = 0; n < COUNT; n += 4) {
        float4 four = make_float4(0.f, 0.f, 0.f, 0.f);
        if (real) four = *(const float4 *)(A + channel * 16 + first + n);
        decay[n] = four.x * LOG2E; decay[n + 1] = four.y * LOG2E; decay[n + 2] = four.z * LOG2E; decay[n + 3] = four.w * LOG2E;
    }
#else
#pragma unroll
    for (int n = 0; n < COUNT; n++) decay[n] = real && first + n < states ? A[channel * states + first + n] * LOG2E : 0.f;
#endif
}
