// Reductions, scans and selection over the lanes of a warp or the threads of a block, with the
// division of labor of CUB's WarpReduce, BlockScan and BlockRadixRank. Written out, so that the
// emulator of the tests can run them. Every lane or thread has to reach a call together; blocks are
// one-dimensional and made of whole warps.
#pragma once

#include <cstdint>

#include "launch.cuh"

namespace rcnn_ext {

// Index of the calling thread's warp in its block.
__device__ __forceinline__ int warp_index() { return static_cast<int>(threadIdx.x) / kWarpSize; }

// Index of the calling thread in its warp.
__device__ __forceinline__ int lane_index() { return static_cast<int>(threadIdx.x) % kWarpSize; }

// condition ? a : b. On variables, ?: would select an address and force both into local memory.
template <class T>
__device__ __forceinline__ T choose(bool condition, T a, T b) {
  if (condition) b = a;
  return b;
}

// The value of the lane whose index differs in the bits of the mask.
template <class T>
__device__ __forceinline__ T shuffle_xor(T value, int mask) {
  return __shfl_xor_sync(kFullWarp, value, mask);
}

// How many lanes before the calling one are set in a ballot.
__device__ __forceinline__ int count_lanes_before(unsigned ballot) {
  return __popc(ballot & ((1u << lane_index()) - 1u));
}

// Combines the values of all lanes of a warp; every lane gets the result. combine(mine, other) has
// to be symmetric; exchange(value, mask) is shuffle_xor for the type.
template <class T, class Combine, class Exchange>
__device__ __forceinline__ T warp_reduce(T value, Combine combine, Exchange exchange) {
  for (int distance = kWarpSize / 2; distance > 0; distance /= 2) {
    value = combine(value, exchange(value, distance));
  }
  return value;
}

// The sum over the lanes of a warp, in every lane.
template <class T>
__device__ __forceinline__ T warp_sum(T value) {
  return warp_reduce(
      value, [](T a, T b) { return a + b; }, [](T v, int mask) { return shuffle_xor(v, mask); });
}

constexpr int kQuad = 4;  // consecutive lanes that share a reduction over four values each

// Transposes and reduces within a quad: lane i of the four gets the combination of their values[i].
// combine and exchange as for warp_reduce.
template <class T, class Combine, class Exchange>
__device__ __forceinline__ T quad_reduce_scatter(const T (&values)[kQuad], Combine combine,
                                                 Exchange exchange) {
  const bool odd = threadIdx.x & 1;
  const bool upper = threadIdx.x & 2;
  // A lane keeps the values of its parity and hands the others over, then halves once more.
  const T low =
      combine(choose(odd, values[1], values[0]), exchange(choose(odd, values[0], values[1]), 1));
  const T high =
      combine(choose(odd, values[3], values[2]), exchange(choose(odd, values[2], values[3]), 1));
  return combine(choose(upper, high, low), exchange(choose(upper, low, high), 2));
}

// An exclusive prefix sum and the sum over the whole block.
struct BlockCount {
  int before, total;
};

// The exclusive prefix sum over the warps of a block of one number per warp, in shared memory.
template <int kWarps>
__device__ __forceinline__ BlockCount scan_warp_counts(const int (&warp_counts)[kWarps]) {
  const int warp = warp_index();
  BlockCount sums{0, 0};
  for (int w = 0; w < kWarps; ++w) {
    if (w == warp) sums.before = sums.total;
    sums.total += warp_counts[w];
  }
  return sums;
}

// How many threads of the block set the flag, and how many of those come before the calling one:
// its place in a stable compaction. Shared memory, kWarps numbers; a barrier has to separate it
// from the next use of them.
template <int kWarps>
__device__ __forceinline__ BlockCount block_count_flags(bool flag, int (&warp_counts)[kWarps]) {
  const unsigned ballot = __ballot_sync(kFullWarp, flag);
  if (lane_index() == 0) warp_counts[warp_index()] = __popc(ballot);
  __syncthreads();
  BlockCount counts = scan_warp_counts(warp_counts);
  counts.before += count_lanes_before(ballot);
  return counts;
}

// The key of a rank, and how many of the keys equal to it are up to that rank.
template <class Key>
struct SelectedKey {
  Key key;
  int equal_count;
};

constexpr int kRadixBits = 8;  // of a digit; a histogram of 2^8 counters takes 1 KiB
constexpr int kRadixDigits = 1 << kRadixBits;

// The key of rank `rank` (from 1) in ascending order among key_at(0), ... key_at(count - 1), all
// unsigned: radix select, digit by digit from the highest, by a histogram of the keys that agree so
// far. kThreads: of the block, at least kRadixDigits.
template <int kThreads, class Key, class KeyAt>
__device__ __forceinline__ SelectedKey<Key> block_radix_select(int count, int rank, KeyAt key_at) {
  static_assert(kThreads >= kRadixDigits, "a thread clears one counter");
  __shared__ int histogram[kRadixDigits];
  const int thread = static_cast<int>(threadIdx.x);
  Key prefix = 0;
  for (int shift = sizeof(Key) * 8 - kRadixBits; shift >= 0; shift -= kRadixBits) {
    if (thread < kRadixDigits) histogram[thread] = 0;
    __syncthreads();
    // All lanes make the same number of rounds, since they vote.
    for (int base = 0; base < count; base += kThreads) {
      const int i = base + thread;
      int digit = -1;
      if (i < count) {
        const Key key = key_at(i);
        // Shifted in two steps: by all bits at once is undefined.
        if ((key ^ prefix) >> shift >> kRadixBits == 0) {
          digit = static_cast<int>(key >> shift & (kRadixDigits - 1));
        }
      }
      // One addition for all lanes with equal digits: the first digits of most keys are equal.
      const unsigned equal_lanes = __match_any_sync(kFullWarp, digit);
      if (digit >= 0 && __ffs(static_cast<int>(equal_lanes)) - 1 == lane_index()) {
        atomicAdd(&histogram[digit], __popc(equal_lanes));
      }
    }
    __syncthreads();
    // Every thread walks through the histogram: the result needs no broadcast.
    int digit = 0;
    while (histogram[digit] < rank) rank -= histogram[digit++];
    prefix |= static_cast<Key>(digit) << shift;
    __syncthreads();  // the next round clears the histogram
  }
  return {prefix, rank};
}

}  // namespace rcnn_ext
