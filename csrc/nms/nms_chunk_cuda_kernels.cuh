// Greedy non-maximum suppression of a chunk of boxes on CUDA: the grid finds which pairs of the
// chunk overlap, a bit each; one block (of each segment) walks through the bits, 64 boxes at a
// time, and knows which boxes stay; then the grid lets those suppress everything after the chunk.
#pragma once

#include "../core/box_math.h"
#include "../core/dispatch.h"
#include "../cuda/launch.cuh"
#include "nms_block_cuda_kernels.cuh"
#include "nms_suppression.h"

namespace rcnn_ext {
namespace {

constexpr int kGroupsPerChunk = 128;  // 8192 boxes, and 8 MB for the bits of their pairs
constexpr int kThreads = 256;
constexpr int kResolveThreads = 512;
constexpr int kResolveWarps = kResolveThreads / kWarpSize;
constexpr int kKeptTile = 128;  // kept boxes in shared memory
constexpr int kCollectThreads = 1024;
constexpr int kCollectWarps = kCollectThreads / kWarpSize;

// Boxes by rank, that is in order of segment and score.
template <class Stored>
struct RankedBoxes {
  using T = accumulate_t<Stored>;
  const Stored* boxes;      // [N, 4], by index
  const int64_t* order;     // [N], the index of a rank
  const int64_t* segments;  // [N], by rank, or null: one segment
  int64_t count;
  bool* suppressed;  // [N], by rank, by earlier chunks; null where there is one chunk

  __device__ Box<T> box(int64_t rank) const { return load_box<T>(boxes + 4 * order[rank]); }
  __device__ int64_t segment(int64_t rank) const {
    return segments == nullptr ? 0 : segments[rank];
  }
};

// The chunk that is worked on: the ranks [first, first + size), in groups of 64. Words of bits have
// one for each box of a group; absent boxes have none.
struct Chunk {
  int64_t first;
  int size;
  int groups;
  bool last;                     // of all
  unsigned long long* overlaps;  // [groups, 64 * groups]: which of a group suppress a later box
  unsigned* present;             // [groups, 2]: which boxes take part
  unsigned* begins;              // [groups, 2]: where a segment begins
  int64_t* kept;                 // [64 * groups]: ranks that suppress what comes after the chunk
  int64_t* kept_count;
};

// What becomes of the boxes that stay.
struct KeptBoxes {
  int64_t* indices;  // [most]; null with segments, which come in another order than the scores
  int64_t* count;    // of them so far
  int64_t most;
  int64_t padded;              // the size of indices that ends in padding, or 0
  bool* by_score;              // [N], with segments: whether it stays
  const int64_t* score_ranks;  // [N], with segments: the place of a rank in by_score

  // Those found so far fill the result. Not before the first chunk has set their number.
  __device__ bool is_full() const { return indices != nullptr && *count >= most; }
  // Those of earlier chunks do.
  __device__ bool is_full(const Chunk& chunk) const { return chunk.first > 0 && is_full(); }
};

// Block (x, y): which boxes of group y suppress those of group x.
template <class Stored>
__global__ void __launch_bounds__(kThreads)
    overlap_kernel(RankedBoxes<Stored> ranked, Chunk chunk, KeptBoxes result,
                   SuppressionRule<accumulate_t<Stored>> rule) {
  using T = accumulate_t<Stored>;
  constexpr int kColumnsPerWarp = kGroup / (kThreads / kWarpSize);
  __shared__ __align__(16) Box<T> boxes[2][kGroup];  // rows and columns
  __shared__ T limits[2][kGroup];
  __shared__ int64_t segments[2][kGroup];
  __shared__ bool present[2][kGroup];
  const int row_group = static_cast<int>(blockIdx.y);
  const int column_group = static_cast<int>(blockIdx.x);
  if (row_group > column_group || result.is_full(chunk)) return;
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % kWarpSize;

  if (thread < 2 * kGroup) {
    const int side = thread / kGroup;
    const int at = thread % kGroup;
    const int i = (side == 0 ? row_group : column_group) * kGroup + at;
    const int64_t rank = chunk.first + i;
    const bool inside = i < chunk.size;
    const Box<T> box = inside ? ranked.box(rank) : Box<T>{};
    const bool takes_part =
        inside && is_finite(box) && (ranked.suppressed == nullptr || !ranked.suppressed[rank]);
    const bool begins = inside && (i == 0 || ranked.segment(rank) != ranked.segment(rank - 1));
    boxes[side][at] = box;
    limits[side][at] = rule.limit_of(area(box));
    segments[side][at] = inside ? ranked.segment(rank) : 0;
    present[side][at] = takes_part;
    const unsigned present_bits = __ballot_sync(kFullWarp, takes_part);
    const unsigned begin_bits = __ballot_sync(kFullWarp, begins);
    if (row_group == column_group && side == 0 && lane == 0) {
      chunk.present[2 * row_group + at / kWarpSize] = present_bits;
      chunk.begins[2 * row_group + at / kWarpSize] = begin_bits;
    }
  }
  __syncthreads();

  // A lane has two rows, and its warp goes through some columns.
  const auto overlaps = [&](int row, int column) {
    const Box<T>& box = boxes[0][row];
    const Box<T>& other = boxes[1][column];
    if (!(intersection_area(box, other) > limits[0][row] + limits[1][column])) return false;
    return present[0][row] && segments[0][row] == segments[1][column] &&
           (row_group < column_group || row < column) &&
           suppresses(box, area(box), other, area(other), rule.bound);
  };
  // A group before another one is full.
  const bool apart = row_group < column_group && segments[0][kGroup - 1] != segments[1][0];
  const int first_column = thread / kWarpSize * kColumnsPerWarp;
  for (int column = first_column; column < first_column + kColumnsPerWarp; ++column) {
    if (!present[1][column]) continue;  // the same for the warp; nobody reads such a word
    const unsigned low = apart ? 0 : __ballot_sync(kFullWarp, overlaps(lane, column));
    const unsigned high = apart ? 0 : __ballot_sync(kFullWarp, overlaps(lane + kWarpSize, column));
    if (lane == 0) {
      chunk.overlaps[(static_cast<int64_t>(row_group) * chunk.groups + column_group) * kGroup +
                     column] = word_of(low, high);
    }
  }
}

// One block decides which boxes stay; with segments there is a block for each group of the chunk,
// which decides about the segments that begin in it.
__global__ void __launch_bounds__(kResolveThreads)
    resolve_kernel(Chunk chunk, const int64_t* order, KeptBoxes result) {
  static_assert(kGroupsPerChunk <= kResolveThreads, "a thread looks at a group");
  __shared__ unsigned long long kept[kGroupsPerChunk];
  __shared__ unsigned removed[2][2];      // by earlier groups: of this group, and of the next
  __shared__ int begin, end, last_begin;  // of what this block decides; of the chunk's last segment
  if (result.is_full(chunk)) return;
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % kWarpSize;
  const int warp = thread / kWarpSize;
  const int own_group = static_cast<int>(blockIdx.x);
  const bool by_segment = result.indices == nullptr;
  int64_t total = by_segment || chunk.first == 0 ? 0 : *result.count;

  if (thread < 4) removed[thread / 2][thread % 2] = 0;
  if (thread == 0) {
    begin = end = chunk.size;
    last_begin = 0;
  }
  __syncthreads();
  if (thread < chunk.groups) {
    const unsigned long long begins =
        word_of(chunk.begins[2 * thread], chunk.begins[2 * thread + 1]);
    if (begins != 0) {
      const int first_one = thread * kGroup + __ffsll(static_cast<long long>(begins)) - 1;
      if (thread == own_group) begin = first_one;
      if (thread > own_group) atomicMin(&end, first_one);
      const int last_one = thread * kGroup + 63 - __clzll(static_cast<long long>(begins));
      atomicMax(&last_begin, last_one);
    }
  }
  __syncthreads();

  const int first_group = begin / kGroup;
  int to_go_on = 0;  // boxes that suppress what comes after the chunk
  for (int group = first_group; group * kGroup < end; ++group) {
    const int64_t stride = static_cast<int64_t>(chunk.groups) * kGroup;
    const unsigned long long* words = chunk.overlaps + group * kGroup;
    unsigned* const removed_now = removed[group % 2];
    const unsigned long long present =
        word_of(chunk.present[2 * group], chunk.present[2 * group + 1]);
    const bool low_present = present >> lane & 1;
    const bool high_present = present >> (lane + kWarpSize) & 1;
    bool low = false;
    bool high = false;
    for (int row = first_group + warp; row < group; row += kResolveWarps) {
      low |= low_present && (words[row * stride + lane] & kept[row]) != 0;
      high |= high_present && (words[row * stride + lane + kWarpSize] & kept[row]) != 0;
    }
    const unsigned low_bits = __ballot_sync(kFullWarp, low);
    const unsigned high_bits = __ballot_sync(kFullWarp, high);
    if (lane == 0 && low_bits != 0) atomicOr(&removed_now[0], low_bits);
    if (lane == 0 && high_bits != 0) atomicOr(&removed_now[1], high_bits);
    __syncthreads();
    if (warp == 0) {
      const unsigned long long candidates =
          present & bits_between(begin, end, group) & ~word_of(removed_now[0], removed_now[1]);
      const unsigned long long stay =
          resolve_group(candidates, low_present ? words[group * stride + lane] : 0,
                        high_present ? words[group * stride + lane + kWarpSize] : 0);
      if (lane == 0) kept[group] = stay;
      if (lane < 2) removed[(group + 1) % 2][lane] = 0;
    }
    __syncthreads();
    const unsigned long long stay = kept[group];
    const unsigned long long going_on =
        chunk.last ? 0 : stay & bits_between(last_begin, end, group);
    const int i = group * kGroup + thread;
    if (thread < kGroup && i >= begin && i < end) {
      const int64_t rank = chunk.first + i;
      const bool stays = stay >> thread & 1;
      const int64_t place = total + bits_below(stay, thread);
      if (by_segment) {
        result.by_score[result.score_ranks[rank]] = stays;
      } else if (stays && place < result.most) {
        result.indices[place] = order[rank];
      }
      if (going_on >> thread & 1) chunk.kept[to_go_on + bits_below(going_on, thread)] = rank;
    }
    total += __popcll(stay);
    to_go_on += __popcll(going_on);
    if (!by_segment && total >= result.most) break;  // the same for the whole block
  }
  if (thread == 0 && !by_segment) *result.count = min(total, result.most);
  if (chunk.last && !by_segment) {
    for (int64_t i = total + thread; i < result.padded; i += kResolveThreads) {
      result.indices[i] = kNoIndex;
    }
  }
  if (thread == 0 && !chunk.last && begin < end && end == chunk.size) *chunk.kept_count = to_go_on;
}

// The boxes that the chunk keeps suppress those after it. Only its last segment goes on there.
template <class Stored>
__global__ void __launch_bounds__(kThreads)
    suppress_rest_kernel(RankedBoxes<Stored> ranked, Chunk chunk, KeptBoxes result,
                         SuppressionRule<accumulate_t<Stored>> rule) {
  using T = accumulate_t<Stored>;
  __shared__ __align__(16) Box<T> tile[kKeptTile];
  __shared__ T limits[kKeptTile];
  const int64_t next = chunk.first + chunk.size;
  const int64_t segment = ranked.segment(next - 1);
  const int64_t block_first = next + static_cast<int64_t>(blockIdx.x) * kThreads;
  if (ranked.segment(block_first) != segment || result.is_full()) return;

  const int64_t rank = block_first + threadIdx.x;
  bool open = rank < ranked.count && !ranked.suppressed[rank] && ranked.segment(rank) == segment;
  const Box<T> mine = open ? ranked.box(rank) : Box<T>{};
  const T my_area = area(mine);
  const T my_limit = rule.limit_of(my_area);
  const int64_t kept_count = *chunk.kept_count;
  for (int64_t first = 0; first < kept_count; first += kKeptTile) {
    const int size = static_cast<int>(min(static_cast<int64_t>(kKeptTile), kept_count - first));
    if (threadIdx.x < size) {
      const Box<T> box = ranked.box(chunk.kept[first + threadIdx.x]);
      tile[threadIdx.x] = box;
      limits[threadIdx.x] = rule.limit_of(area(box));
    }
    if (!__syncthreads_or(open)) return;
    for (int k = 0; open && k < size; ++k) {
      if (intersection_area(tile[k], mine) > limits[k] + my_limit &&
          suppresses(tile[k], area(tile[k]), mine, my_area, rule.bound)) {
        ranked.suppressed[rank] = true;
        open = false;
      }
    }
    __syncthreads();  // the next tile overwrites this one
  }
}

// One block: the indices of the boxes that stay, in order of score. by_score: [N]; indices: [most]
__global__ void __launch_bounds__(kCollectThreads)
    collect_kernel(const int64_t* by_score, int64_t size, KeptBoxes result, int64_t* indices) {
  __shared__ int found_of_warp[kCollectWarps];
  const int lane = threadIdx.x % kWarpSize;
  const int warp = threadIdx.x / kWarpSize;
  int64_t found = 0;
  for (int64_t first = 0; first < size && found < result.most; first += kCollectThreads) {
    const int64_t i = first + threadIdx.x;
    const bool is_set = i < size && result.by_score[i];
    const unsigned bits = __ballot_sync(kFullWarp, is_set);
    if (lane == 0) found_of_warp[warp] = __popc(bits);
    __syncthreads();
    int64_t place = found + __popc(bits & ((1u << lane) - 1));
    for (int w = 0; w < kCollectWarps; ++w) {
      if (w < warp) place += found_of_warp[w];
      found += found_of_warp[w];
    }
    if (is_set && place < result.most) indices[place] = by_score[i];
    __syncthreads();  // the next round overwrites the numbers of the warps
  }
  if (threadIdx.x == 0) *result.count = min(found, result.most);
  for (int64_t i = found + threadIdx.x; i < result.padded; i += kCollectThreads) {
    indices[i] = kNoIndex;
  }
}

}  // namespace
}  // namespace rcnn_ext
