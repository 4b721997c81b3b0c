// The kernels of nms_cuda.cu, which take the sorted boxes a chunk at a time. suppression_kernel
// fills the chunk's suppression words, one bit per pair of boxes. resolve_kernel walks through
// them, 64 boxes at a time, and decides which boxes are kept. suppress_later_kernel lets those
// suppress the boxes after the chunk. compact_kernel collects the kept boxes of several segments by
// score.
#pragma once

#include "../core/box_math.h"
#include "../core/dispatch.h"
#include "../cuda/block_primitives.cuh"
#include "../cuda/launch.cuh"
#include "nms_block_cuda_kernels.cuh"
#include "nms_suppression.h"

namespace rcnn_ext {

// All untuned.
constexpr int kWordsPerChunk = 128;  // 8192 boxes, whose pairs take 8 MiB of suppression words
constexpr int kSuppressThreads = 256;
constexpr int kResolveThreads = 512;
constexpr int kResolveWarps = kResolveThreads / kWarpSize;
constexpr int kCarriedPerTile = 128;  // boxes in shared memory
constexpr int kCompactThreads = 1024;
constexpr int kCompactWarps = kCompactThreads / kWarpSize;

// Boxes by rank: their position in the order of segments, then of descending scores.
template <class Stored>
struct RankedBoxes {
  using T = accumulate_t<Stored>;
  const Stored* boxes;      // [N, 4], by index
  const int64_t* order;     // [N], from rank to index
  const int64_t* segments;  // [N], by rank, or null: one segment
  int64_t count;
  bool* suppressed;  // [N], by rank: by boxes of earlier chunks; null where there is one chunk

  __device__ Box<T> box(int64_t rank) const { return load_box<T>(boxes + 4 * order[rank]); }
  __device__ int64_t segment(int64_t rank) const {
    return segments == nullptr ? 0 : segments[rank];
  }
};

// The chunk of ranks [first, first + size). A word has one bit for each of 64 consecutive boxes.
struct NmsChunk {
  int64_t first;
  int size;
  int words;
  bool is_last;
  // [words, 64 * words]: at [w, j], which boxes of word w would suppress the later box j.
  unsigned long long* suppression;
  unsigned* candidates;      // [words, 2]: which boxes can be kept and suppress others
  unsigned* segment_starts;  // [words, 2]: which boxes are the first of their segment
  int64_t* carried;          // [64 * words]: ranks of kept boxes that suppress later chunks' boxes
  int64_t* carried_count;
};

// Where the kept boxes are written.
struct NmsOutput {
  int64_t* indices;  // [max_kept] by score; null with segments, whose order is another
  int64_t* count;    // of kept boxes so far
  int64_t max_kept;
  int64_t padded_size;         // up to which indices are padded, or 0
  bool* keep_by_score;         // [N], with segments: whether the box of this score rank is kept
  const int64_t* score_ranks;  // [N], with segments: from rank to score rank

  // Whether max_kept boxes were found. Not to be called before the first chunk has set the count.
  __device__ bool is_full() const { return indices != nullptr && *count >= max_kept; }
  // Whether earlier chunks found max_kept boxes.
  __device__ bool is_full_before(const NmsChunk& chunk) const {
    return chunk.first > 0 && is_full();
  }
};

// Block (x, y): which boxes of word y would suppress those of word x.
template <class Stored>
__global__ void __launch_bounds__(kSuppressThreads)
    suppression_kernel(RankedBoxes<Stored> ranked, NmsChunk chunk, NmsOutput output,
                       SuppressionRule<accumulate_t<Stored>> rule) {
  using T = accumulate_t<Stored>;
  constexpr int kColumnsPerWarp = kBoxesPerWord / (kSuppressThreads / kWarpSize);
  __shared__ __align__(16) Box<T> boxes[2][kBoxesPerWord];  // of the row and of the column
  __shared__ T limits[2][kBoxesPerWord];
  __shared__ int64_t segments[2][kBoxesPerWord];
  __shared__ bool candidate[2][kBoxesPerWord];
  const int row_word = static_cast<int>(blockIdx.y);
  const int column_word = static_cast<int>(blockIdx.x);
  if (row_word > column_word || output.is_full_before(chunk)) return;
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % kWarpSize;

  if (thread < 2 * kBoxesPerWord) {
    const int side = thread / kBoxesPerWord;
    const int at = thread % kBoxesPerWord;
    const int i = (side == 0 ? row_word : column_word) * kBoxesPerWord + at;
    const int64_t rank = chunk.first + i;
    const bool inside = i < chunk.size;
    const Box<T> box = inside ? ranked.box(rank) : Box<T>{};
    const bool is_candidate =
        inside && is_finite(box) && (ranked.suppressed == nullptr || !ranked.suppressed[rank]);
    const bool starts_segment =
        inside && (i == 0 || ranked.segment(rank) != ranked.segment(rank - 1));
    boxes[side][at] = box;
    limits[side][at] = rule.limit_of(area(box));
    segments[side][at] = inside ? ranked.segment(rank) : 0;
    candidate[side][at] = is_candidate;
    const unsigned candidate_bits = __ballot_sync(kFullWarp, is_candidate);
    const unsigned start_bits = __ballot_sync(kFullWarp, starts_segment);
    if (row_word == column_word && side == 0 && lane == 0) {
      chunk.candidates[2 * row_word + at / kWarpSize] = candidate_bits;
      chunk.segment_starts[2 * row_word + at / kWarpSize] = start_bits;
    }
  }
  __syncthreads();

  // Each lane has two rows, and each warp iterates over some columns.
  const auto suppresses_column = [&](int row, int column) {
    const Box<T>& box = boxes[0][row];
    const Box<T>& other = boxes[1][column];
    if (!(intersection_area(box, other) > limits[0][row] + limits[1][column])) return false;
    return candidate[0][row] && segments[0][row] == segments[1][column] &&
           (row_word < column_word || row < column) &&
           suppresses(box, area(box), other, area(other), rule.bound);
  };
  // No box can suppress across segments. (The row's word is full if the column's comes after it.)
  const bool different_segments =
      row_word < column_word && segments[0][kBoxesPerWord - 1] != segments[1][0];
  const int first_column = thread / kWarpSize * kColumnsPerWarp;
  for (int column = first_column; column < first_column + kColumnsPerWarp; ++column) {
    if (!candidate[1][column]) continue;  // uniform in the warp; such a word is never read
    const unsigned low =
        different_segments ? 0 : __ballot_sync(kFullWarp, suppresses_column(lane, column));
    const unsigned high =
        different_segments ? 0
                           : __ballot_sync(kFullWarp, suppresses_column(lane + kWarpSize, column));
    if (lane == 0) {
      chunk.suppression[(static_cast<int64_t>(row_word) * chunk.words + column_word) *
                            kBoxesPerWord +
                        column] = make_word(low, high);
    }
  }
}

// Decides which boxes of the chunk are kept, by one block; with segments by a block per word of the
// chunk, which decides about the segments that start in that word.
static __global__ void __launch_bounds__(kResolveThreads)
    resolve_kernel(NmsChunk chunk, const int64_t* order, NmsOutput output) {
  static_assert(kWordsPerChunk <= kResolveThreads, "a thread reads the segment starts of one word");
  __shared__ unsigned long long kept[kWordsPerChunk];
  __shared__ unsigned removed[2][2];      // by earlier words: boxes of this word, and of the next
  __shared__ int begin, end, last_begin;  // this block's boxes; the start of the last segment
  if (output.is_full_before(chunk)) return;
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % kWarpSize;
  const int warp = thread / kWarpSize;
  const int own_word = static_cast<int>(blockIdx.x);
  const bool has_segments = output.indices == nullptr;
  int64_t total = has_segments || chunk.first == 0 ? 0 : *output.count;

  if (thread < 4) removed[thread / 2][thread % 2] = 0;
  if (thread == 0) {
    begin = end = chunk.size;
    last_begin = 0;
  }
  __syncthreads();
  if (thread < chunk.words) {
    const unsigned long long starts =
        make_word(chunk.segment_starts[2 * thread], chunk.segment_starts[2 * thread + 1]);
    if (starts != 0) {
      const int first_start = thread * kBoxesPerWord + __ffsll(static_cast<long long>(starts)) - 1;
      if (thread == own_word) begin = first_start;
      if (thread > own_word) atomicMin(&end, first_start);
      const int last_start = thread * kBoxesPerWord + 63 - __clzll(static_cast<long long>(starts));
      atomicMax(&last_begin, last_start);
    }
  }
  __syncthreads();

  const int first_word = begin / kBoxesPerWord;
  int carried_count = 0;  // kept boxes of a segment that continues after the chunk
  for (int word = first_word; word * kBoxesPerWord < end; ++word) {
    const int64_t stride = static_cast<int64_t>(chunk.words) * kBoxesPerWord;
    const unsigned long long* columns = chunk.suppression + word * kBoxesPerWord;
    unsigned* const removed_now = removed[word % 2];
    const unsigned long long word_candidates =
        make_word(chunk.candidates[2 * word], chunk.candidates[2 * word + 1]);
    const bool low_candidate = word_candidates >> lane & 1;
    const bool high_candidate = word_candidates >> (lane + kWarpSize) & 1;
    bool low = false;
    bool high = false;
    for (int row = first_word + warp; row < word; row += kResolveWarps) {
      low |= low_candidate && (columns[row * stride + lane] & kept[row]) != 0;
      high |= high_candidate && (columns[row * stride + lane + kWarpSize] & kept[row]) != 0;
    }
    const unsigned low_bits = __ballot_sync(kFullWarp, low);
    const unsigned high_bits = __ballot_sync(kFullWarp, high);
    if (lane == 0 && low_bits != 0) atomicOr(&removed_now[0], low_bits);
    if (lane == 0 && high_bits != 0) atomicOr(&removed_now[1], high_bits);
    __syncthreads();
    if (warp == 0) {
      const unsigned long long candidates = word_candidates & bits_in_range(begin, end, word) &
                                            ~make_word(removed_now[0], removed_now[1]);
      const unsigned long long resolved =
          resolve_word(candidates, low_candidate ? columns[word * stride + lane] : 0,
                       high_candidate ? columns[word * stride + lane + kWarpSize] : 0);
      if (lane == 0) kept[word] = resolved;
      if (lane < 2) removed[(word + 1) % 2][lane] = 0;
    }
    __syncthreads();
    const unsigned long long kept_bits = kept[word];
    const unsigned long long carried_bits =
        chunk.is_last ? 0 : kept_bits & bits_in_range(last_begin, end, word);
    const int i = word * kBoxesPerWord + thread;
    if (thread < kBoxesPerWord && i >= begin && i < end) {
      const int64_t rank = chunk.first + i;
      const bool is_kept = kept_bits >> thread & 1;
      const int64_t place = total + count_bits_below(kept_bits, thread);
      if (has_segments) {
        output.keep_by_score[output.score_ranks[rank]] = is_kept;
      } else if (is_kept && place < output.max_kept) {
        output.indices[place] = order[rank];
      }
      if (carried_bits >> thread & 1) {
        chunk.carried[carried_count + count_bits_below(carried_bits, thread)] = rank;
      }
    }
    total += __popcll(kept_bits);
    carried_count += __popcll(carried_bits);
    if (!has_segments && total >= output.max_kept) break;  // uniform in the block
  }
  if (thread == 0 && !has_segments) *output.count = min(total, output.max_kept);
  if (chunk.is_last && !has_segments) {
    for (int64_t i = total + thread; i < output.padded_size; i += kResolveThreads) {
      output.indices[i] = kNoIndex;
    }
  }
  if (thread == 0 && !chunk.is_last && begin < end && end == chunk.size) {
    *chunk.carried_count = carried_count;
  }
}

// Marks the boxes after the chunk that the chunk's kept boxes suppress. Only its last segment can
// continue there.
template <class Stored>
__global__ void __launch_bounds__(kSuppressThreads)
    suppress_later_kernel(RankedBoxes<Stored> ranked, NmsChunk chunk, NmsOutput output,
                          SuppressionRule<accumulate_t<Stored>> rule) {
  using T = accumulate_t<Stored>;
  __shared__ __align__(16) Box<T> tile[kCarriedPerTile];
  __shared__ T limits[kCarriedPerTile];
  const int64_t next = chunk.first + chunk.size;
  const int64_t segment = ranked.segment(next - 1);
  const int64_t block_first = next + static_cast<int64_t>(blockIdx.x) * kSuppressThreads;
  if (ranked.segment(block_first) != segment || output.is_full()) return;

  const int64_t rank = block_first + threadIdx.x;
  bool undecided =
      rank < ranked.count && !ranked.suppressed[rank] && ranked.segment(rank) == segment;
  const Box<T> mine = undecided ? ranked.box(rank) : Box<T>{};
  const T my_area = area(mine);
  const T my_limit = rule.limit_of(my_area);
  const int64_t carried_count = *chunk.carried_count;
  for (int64_t first = 0; first < carried_count; first += kCarriedPerTile) {
    const int size =
        static_cast<int>(min(static_cast<int64_t>(kCarriedPerTile), carried_count - first));
    if (threadIdx.x < size) {
      const Box<T> box = ranked.box(chunk.carried[first + threadIdx.x]);
      tile[threadIdx.x] = box;
      limits[threadIdx.x] = rule.limit_of(area(box));
    }
    if (!__syncthreads_or(undecided)) return;
    for (int k = 0; undecided && k < size; ++k) {
      if (intersection_area(tile[k], mine) > limits[k] + my_limit &&
          suppresses(tile[k], area(tile[k]), mine, my_area, rule.bound)) {
        ranked.suppressed[rank] = true;
        undecided = false;
      }
    }
    __syncthreads();  // the next tile overwrites this one
  }
}

// The indices of the kept boxes in order of score, by one block. by_score: [N], from score rank to
// index; indices: [max_kept]
static __global__ void __launch_bounds__(kCompactThreads)
    compact_kernel(const int64_t* by_score, int64_t size, NmsOutput output, int64_t* indices) {
  __shared__ int warp_counts[kCompactWarps];
  int64_t found = 0;
  for (int64_t first = 0; first < size && found < output.max_kept; first += kCompactThreads) {
    const int64_t i = first + threadIdx.x;
    const bool is_kept = i < size && output.keep_by_score[i];
    const BlockCount kept = block_count_flags(is_kept, warp_counts);
    const int64_t place = found + kept.before;
    if (is_kept && place < output.max_kept) indices[place] = by_score[i];
    found += kept.total;
    __syncthreads();  // the next round overwrites the counts of the warps
  }
  if (threadIdx.x == 0) *output.count = min(found, output.max_kept);
  for (int64_t i = found + threadIdx.x; i < output.padded_size; i += kCompactThreads) {
    indices[i] = kNoIndex;
  }
}

}  // namespace rcnn_ext
