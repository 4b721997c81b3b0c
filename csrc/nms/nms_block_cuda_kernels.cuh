// Greedy NMS of one segment by one thread block, for operators that suppress many short segments at
// once (generate_proposals, postprocess_detections), and the 64-bit suppression words that
// nms_chunk_cuda_kernels.cuh shares with it. No other block takes part, so any number of segments
// run at once and the host waits for none.
#pragma once

#include "../core/box_math.h"
#include "../cuda/block_primitives.cuh"
#include "../cuda/launch.cuh"

namespace rcnn_ext {

constexpr int kBoxesPerWord = 64;  // one bit each in an unsigned long long

// One word from the ballots of two warps.
__device__ __forceinline__ unsigned long long make_word(unsigned low, unsigned high) {
  return low | static_cast<unsigned long long>(high) << kWarpSize;
}

// How many of the bits 0 to bit - 1 of a word are set.
__device__ __forceinline__ int count_bits_below(unsigned long long word, int bit) {
  return __popcll(word & ((1ull << bit) - 1));
}

// The bits of a word whose boxes have an index in [begin, end): bit b of word w is box 64 w + b.
__device__ __forceinline__ unsigned long long bits_in_range(int begin, int end, int word) {
  const auto from = [&](int index) {
    const int bit = max(index - word * kBoxesPerWord, 0);
    if (bit >= kBoxesPerWord) return 0ull;
    return ~0ull << bit;
  };
  return from(begin) & ~from(end);
}

// Greedy NMS within one word, by one warp: which of the candidates are kept. `low` and `high` hold
// the bits of the boxes with a higher score that overlap box `lane` and box `lane + 32` enough to
// suppress them.
__device__ __forceinline__ unsigned long long resolve_word(unsigned long long candidates,
                                                           unsigned long long low,
                                                           unsigned long long high) {
  // A box is kept where no kept box before it suppresses it. Iterating that from all candidates
  // reaches the fixed point of greedy NMS: each round settles at least one more box for good, and
  // most rounds settle very many.
  unsigned long long kept_bits = candidates;
  while (true) {
    const unsigned low_kept = __ballot_sync(kFullWarp, (low & kept_bits) == 0);
    const unsigned high_kept = __ballot_sync(kFullWarp, (high & kept_bits) == 0);
    const unsigned long long next = candidates & make_word(low_kept, high_kept);
    if (next == kept_bits) return kept_bits;  // uniform in the warp
    kept_bits = next;
  }
}

// Bit i of masks[j]: box i of the word has a higher score than box j and would suppress it.
using SuppressionMasks = unsigned[kBoxesPerWord][kBoxesPerWord / kWarpSize];

// Fill the masks, by all threads of a block. suppresses_of(i, j) is called for i < j < size.
template <class Suppresses>
__device__ __forceinline__ void find_suppression_masks(SuppressionMasks& masks, int size,
                                                       Suppresses&& suppresses_of) {
  const int lane = threadIdx.x % kWarpSize;
  const int warps = static_cast<int>(blockDim.x) / kWarpSize;
  for (int column = static_cast<int>(threadIdx.x) / kWarpSize; column < kBoxesPerWord;
       column += warps) {
    for (int half = 0; half < kBoxesPerWord / kWarpSize; ++half) {
      const int row = half * kWarpSize + lane;
      const bool suppressed = row < column && column < size && suppresses_of(row, column);
      const unsigned mask = __ballot_sync(kFullWarp, suppressed);
      if (lane == 0) masks[column][half] = mask;
    }
  }
}

// Shared memory of block_nms(): the 64 boxes that are decided together.
template <class T>
struct BlockNmsShared {
  Box<T> boxes[kBoxesPerWord];
  // Bit i of the 64: box i is no candidate; box i is suppressed by a box of an earlier word. Two
  // masks, since threads read the one while others still set bits of the other.
  unsigned excluded[kBoxesPerWord / kWarpSize];
  unsigned suppressed[kBoxesPerWord / kWarpSize];
  SuppressionMasks masks;
  unsigned long long kept;
};

// Greedy NMS over the boxes of ranks [0, count), in order of score, 64 boxes at a time, until
// `max_kept` are kept.
//
// load(rank, box) sets the box and returns whether it is a candidate. finish(rank, is_kept, box) is
// called once for every rank, for a loaded one by the thread that loaded it. kept: [max_kept]
template <int kThreads, class T, class Load, class Finish>
__device__ void block_nms(BlockNmsShared<T>& shared, int64_t count, int64_t max_kept, T bound,
                          Box<T>* kept, Load&& load, Finish&& finish) {
  static_assert(kThreads % kBoxesPerWord == 0, "every box of a word has as many threads");
  const int thread = threadIdx.x;
  const int column = thread % kBoxesPerWord;
  // The lanes of a warp have consecutive columns.
  const int half = column / kWarpSize;
  const unsigned column_bit = 1u << column % kWarpSize;
  int64_t kept_count = 0;
  int64_t first = 0;
  for (; first < count && kept_count < max_kept; first += kBoxesPerWord) {
    const int size = static_cast<int>(min(static_cast<int64_t>(kBoxesPerWord), count - first));
    if (thread < kBoxesPerWord) {  // whole warps
      const bool is_candidate = thread < size && load(first + thread, shared.boxes[thread]);
      const unsigned excluded = __ballot_sync(kFullWarp, !is_candidate);
      if (lane_index() == 0) {
        shared.excluded[half] = excluded;
        shared.suppressed[half] = 0;
      }
    }
    __syncthreads();

    // Against the boxes kept from earlier words.
    bool is_suppressed = false;
    if (!(shared.excluded[half] & column_bit)) {
      const Box<T> mine = shared.boxes[column];
      const T my_area = area(mine);
      for (int64_t k = thread / kBoxesPerWord; k < kept_count; k += kThreads / kBoxesPerWord) {
        if (suppresses(kept[k], area(kept[k]), mine, my_area, bound)) {
          is_suppressed = true;
          break;
        }
      }
    }
    const unsigned suppressed = __ballot_sync(kFullWarp, is_suppressed);
    if (lane_index() == 0 && suppressed != 0) atomicOr(&shared.suppressed[half], suppressed);
    find_suppression_masks(shared.masks, size, [&](int i, int j) {
      return suppresses(shared.boxes[i], area(shared.boxes[i]), shared.boxes[j],
                        area(shared.boxes[j]), bound);
    });
    __syncthreads();
    if (thread < kWarpSize) {
      const int other = thread + kWarpSize;
      const unsigned long long resolved =
          resolve_word(make_word(~(shared.excluded[0] | shared.suppressed[0]),
                                 ~(shared.excluded[1] | shared.suppressed[1])),
                       make_word(shared.masks[thread][0], shared.masks[thread][1]),
                       make_word(shared.masks[other][0], shared.masks[other][1]));
      if (thread == 0) shared.kept = resolved;
    }
    __syncthreads();
    const unsigned long long kept_bits = shared.kept;
    if (thread < size) {
      const int64_t place = kept_count + count_bits_below(kept_bits, thread);
      const bool is_kept = (kept_bits >> thread & 1) && place < max_kept;
      if (is_kept) kept[place] = shared.boxes[thread];
      finish(first + thread, is_kept, shared.boxes[thread]);
    }
    kept_count += __popcll(kept_bits);
    // No barrier: in the next round a thread overwrites its own box only, and what is written here
    // is read after that round's first barrier.
  }
  for (int64_t rank = first + thread; rank < count; rank += kThreads) {
    finish(rank, false, Box<T>{});
  }
}

}  // namespace rcnn_ext
