// Function attributes: for functions that the CPU and CUDA kernels share, and for inlining.
#pragma once

#if defined(__CUDACC__)
#define RCNN_HOST_DEVICE __host__ __device__ __forceinline__
#elif defined(_MSC_VER)
#define RCNN_HOST_DEVICE __forceinline
#else
#define RCNN_HOST_DEVICE inline __attribute__((always_inline))
#endif

// For a small function of the CPU kernels, which is compiled with its caller's instruction set.
#if defined(_MSC_VER)
#define RCNN_INLINE __forceinline
#else
#define RCNN_INLINE inline __attribute__((always_inline))
#endif

// For a loop that needs all registers: inlined into its caller it would compete for them.
#if defined(_MSC_VER)
#define RCNN_NO_INLINE __declspec(noinline)
#else
#define RCNN_NO_INLINE __attribute__((noinline))
#endif

// A condition that rarely holds.
#if defined(__GNUC__)
#define RCNN_UNLIKELY(condition) __builtin_expect(!!(condition), 0)
#else
#define RCNN_UNLIKELY(condition) (condition)
#endif
