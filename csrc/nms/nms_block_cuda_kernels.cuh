// Suppression inside a block: groups of 64 boxes, and a whole segment, whose boxes come in order of
// score. Nothing leaves the block, so any number of segments go on at once and no host waits.
#pragma once

#include "../core/box_math.h"
#include "../cuda/launch.cuh"

namespace rcnn_ext {

constexpr int kGroup = 64;  // boxes decided together: a 64-bit mask each

// A word of 64 bits from those of two warps.
__device__ __forceinline__ unsigned long long word_of(unsigned low, unsigned high) {
  return low | static_cast<unsigned long long>(high) << kWarpSize;
}

// How many bits of a word are set before the one of number `bit`, of 64.
__device__ __forceinline__ int bits_below(unsigned long long word, int bit) {
  return __popcll(word & ((1ull << bit) - 1));
}

// The bits of a group's boxes whose numbers lie in [begin, end).
__device__ __forceinline__ unsigned long long bits_between(int begin, int end, int group) {
  const auto from = [&](int number) {
    const int bit = max(number - group * kGroup, 0);
    if (bit >= kGroup) return 0ull;
    return ~0ull << bit;
  };
  return from(begin) & ~from(end);
}

// Which of the candidates of a group stay, by one warp. `low` and `high` have the bits of the boxes
// that would suppress box `lane` and box `lane + 32`, and come before it.
__device__ __forceinline__ unsigned long long resolve_group(unsigned long long candidates,
                                                            unsigned long long low,
                                                            unsigned long long high) {
  // A box stays where none before it that stays suppresses it. Each round settles at least the next
  // undecided box for good, and most rounds settle very many.
  unsigned long long stay = candidates;
  while (true) {
    const unsigned low_stays = __ballot_sync(kFullWarp, (low & stay) == 0);
    const unsigned high_stays = __ballot_sync(kFullWarp, (high & stay) == 0);
    const unsigned long long next = candidates & word_of(low_stays, high_stays);
    if (next == stay) return stay;  // the same for the whole warp
    stay = next;
  }
}

// Bit i of column j: box i of a group suppresses box j, and comes before it.
using GroupMasks = unsigned[kGroup][kGroup / kWarpSize];

// All threads of a block fill the masks; suppresses_of(i, j) is asked for i < j < size.
template <class Suppresses>
__device__ __forceinline__ void find_group_masks(GroupMasks& masks, int size,
                                                 Suppresses&& suppresses_of) {
  const int lane = threadIdx.x % kWarpSize;
  const int warps = static_cast<int>(blockDim.x) / kWarpSize;
  for (int column = static_cast<int>(threadIdx.x) / kWarpSize; column < kGroup; column += warps) {
    for (int part = 0; part < kGroup / kWarpSize; ++part) {
      const int row = part * kWarpSize + lane;
      const bool hit = row < column && column < size && suppresses_of(row, column);
      const unsigned mask = __ballot_sync(kFullWarp, hit);
      if (lane == 0) masks[column][part] = mask;
    }
  }
}

// One block's shared memory.
template <class T>
struct RowGroup {
  Box<T> boxes[kGroup];
  bool out[kGroup];  // takes no part, or is suppressed by an earlier group
  GroupMasks masks;
  unsigned long long kept;
};

// Goes through the ranks [0, count) until `most` boxes are kept.
//
// load(rank, box) gives the box and whether it takes part; finish(rank, stays, box) is called once
// for every rank, for a loaded one by the thread that loaded it. `kept` has room for `most` boxes.
template <int kThreads, class T, class Load, class Finish>
__device__ void suppress_row(RowGroup<T>& group, int64_t count, int64_t most, T bound, Box<T>* kept,
                             Load&& load, Finish&& finish) {
  static_assert(kThreads % kGroup == 0, "each column has as many threads");
  const int thread = threadIdx.x;
  const int column = thread % kGroup;
  int64_t kept_before = 0;
  int64_t first = 0;
  for (; first < count && kept_before < most; first += kGroup) {
    const int size = static_cast<int>(min(static_cast<int64_t>(kGroup), count - first));
    if (thread < size) group.out[thread] = !load(first + thread, group.boxes[thread]);
    __syncthreads();

    // Against what earlier groups kept. A thread sees another's mark or does not: the box is out
    // all the same.
    if (column < size && !group.out[column]) {
      const Box<T> mine = group.boxes[column];
      const T my_area = area(mine);
      for (int64_t k = thread / kGroup; k < kept_before; k += kThreads / kGroup) {
        if (suppresses(kept[k], area(kept[k]), mine, my_area, bound)) {
          group.out[column] = true;
          break;
        }
      }
    }
    find_group_masks(group.masks, size, [&](int i, int j) {
      return suppresses(group.boxes[i], area(group.boxes[i]), group.boxes[j], area(group.boxes[j]),
                        bound);
    });
    __syncthreads();
    if (thread < kWarpSize) {
      const int other = thread + kWarpSize;
      const unsigned candidates_low = __ballot_sync(kFullWarp, thread < size && !group.out[thread]);
      const unsigned candidates_high = __ballot_sync(kFullWarp, other < size && !group.out[other]);
      const unsigned long long kept_of_group =
          resolve_group(word_of(candidates_low, candidates_high),
                        word_of(group.masks[thread][0], group.masks[thread][1]),
                        word_of(group.masks[other][0], group.masks[other][1]));
      if (thread == 0) group.kept = kept_of_group;
    }
    __syncthreads();
    const unsigned long long stay = group.kept;
    if (thread < size) {
      const int64_t place = kept_before + bits_below(stay, thread);
      const bool stays = (stay >> thread & 1) && place < most;
      if (stays) kept[place] = group.boxes[thread];
      finish(first + thread, stays, group.boxes[thread]);
    }
    kept_before += __popcll(stay);
    // A thread overwrites its own box only, and what is written here is read after the next
    // barrier.
  }
  for (int64_t rank = first + thread; rank < count; rank += kThreads) {
    finish(rank, false, Box<T>{});
  }
}

}  // namespace rcnn_ext
