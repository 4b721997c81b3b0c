// Where suppression on the CPU keeps the boxes that it has kept, so that a candidate meets few of
// them, and why it meets all that matter. The kernels are in nms_cpu-inl.h.
//
// Every shortcut here is conservative: it may only leave out kept boxes for which suppresses() of
// box_math.h is false, and that function decides about all others. Notation: u is half the epsilon
// of T; b the suppression bound; I, a, a' the computed intersection and areas, S = fl(a + a'),
// D = fl(S - I). suppresses() is fl(I / D) > b.
//
// 1. Thresholds. A bound of 1 or more suppresses nothing: I is at most either area, since rounding
//    is monotonic, hence D = fl(fl(a + a') - I) >= fl(2I - I) = I. Below 0, non-overlapping boxes
//    suppress each other and nothing of what follows holds: then all kept boxes are tested exactly.
// 2. Boxes that take no part (b >= 0). Where x2 <= x1 or y2 <= y1, I is 0 and the quotient is not
//    above 0. An area of 0 (underflow) makes I <= 0 too; an infinite one makes S infinite and the
//    quotient 0 or NaN. Such boxes are kept and forgotten.
// 3. The filter, without a division: fl(I / D) > b implies I > b * D, rounding being monotonic,
//    and D >= (S - I)(1 - u), so I > S * c with c = b (1 - u) / (1 + b (1 - u)). (D = 0 means S =
//    I, and c < 1.) A box's limit is c' * area with c' = c (1 - 16u), which covers the rounding of
//    the product, of S and of the sum of two limits; where the product is not a normal number the
//    limit is -infinity and the exact test decides.
// 4. The grid. Let "safe" boxes have coordinates of at most 2^60 and an area of at least 2^-80.
//    Between two safe boxes the products of widths and heights neither overflow nor, where I is
//    above S * c with c >= 2^-6, underflow; subtractions never underflow inexactly. So the computed
//    IoU carries a relative error below 16u (S >= 2I bounds the cancellation in D), and suppression
//    implies an exact IoU above t = b (1 - 16u). The IoU of two boxes is at most that of their
//    projections on either axis: I = ix * iy and U >= (wx + wx' - ix) * iy. For intervals of widths
//    w and w' whose centers are d apart, an IoU above t implies d < (w + w') / 2 * (1 - t) / (1 +
//    t) where neither holds the other, and w' < w / t in any case; the most that d can be is w (1 -
//    t) / (2t), at w' = w / t, where containment begins and bounds d by the same. So the center of
//    a box that a kept one suppresses lies within that distance of the kept one's center, on both
//    axes. A kept box is entered in every cell that this reaches, a candidate looks into the cell
//    of its own center. Cells are numbered by a monotonic function of fl(x1 + x2), and the ends of
//    the reach are widened by more than their own rounding (reach_of), so that the cell of a
//    candidate lies within the range of cells.
// 5. Cells are hashed, and not compared: cells that share a bucket only meet more boxes. A box that
//    would enter too many cells goes to a coarser grid, beyond the coarsest to a list that every
//    candidate scans; so does a kept box that is not safe. A candidate that is not safe meets all.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <new>
#include <vector>

#include "../core/box_math.h"
#include "nms_suppression.h"

namespace rcnn_ext {

constexpr int kLanes = 16;  // of a block: one AVX-512 register of float32

// Kept boxes, column by column. Lanes not in use hold NaN coordinates and an infinite limit:
// neither the filter nor the exact test ever finds them.
template <class T>
struct alignas(64) Block {
  T x1[kLanes], y1[kLanes], x2[kLanes], y2[kLanes];
  T limit[kLanes];
  Block* next;  // an older one of the same list, or null
  int round;    // in which the newest box was added

  RCNN_INLINE void clear(Block* older) {
    for (int k = 0; k < kLanes; ++k) {
      x1[k] = y1[k] = x2[k] = y2[k] = std::numeric_limits<T>::quiet_NaN();
      limit[k] = std::numeric_limits<T>::infinity();
    }
    next = older;
  }
};

// Hands out aligned memory for blocks and keeps it until the end.
class BlockPool {
 public:
  explicit BlockPool(size_t block_bytes) : block_bytes_(block_bytes) {}

  void* allocate() {
    if (next_ == end_) grow();
    void* block = next_;
    next_ += block_bytes_;
    return block;
  }
  // Forgets all blocks; their memory serves again.
  void clear() {
    used_ = 0;
    next_ = end_ = nullptr;
  }
  // Calls visit(block) with every block handed out until it returns true; whether it did.
  template <class Block, class Visit>
  bool any(Visit&& visit) const {
    for (size_t slab = 0; slab < used_; ++slab) {
      const char* begin = slabs_[slab].get();
      const char* end = slab + 1 == used_ ? next_ : begin + kBlocksOfASlab * block_bytes_;
      for (; begin != end; begin += block_bytes_) {
        if (visit(*reinterpret_cast<const Block*>(begin))) return true;
      }
    }
    return false;
  }

 private:
  static constexpr size_t kBlocksOfASlab = 64;
  static constexpr std::align_val_t kAlignment{64};
  struct Free {
    void operator()(char* memory) const { ::operator delete(memory, kAlignment); }
  };

  void grow() {
    const size_t bytes = kBlocksOfASlab * block_bytes_;
    if (used_ == slabs_.size()) {
      slabs_.emplace_back(static_cast<char*>(::operator new(bytes, kAlignment)));
    }
    next_ = slabs_[used_++].get();
    end_ = next_ + bytes;
  }

  size_t block_bytes_;
  size_t used_ = 0;  // slabs
  char* next_ = nullptr;
  char* end_ = nullptr;
  std::vector<std::unique_ptr<char, Free>> slabs_;
};

// A list of blocks, the newest first; all but the newest are full. Boxes are added in rounds, whose
// numbers ascend.
template <class T>
struct BlockList {
  Block<T>* newest = nullptr;
  int used = kLanes;  // lanes of the newest

  RCNN_INLINE void add(const Box<T>& box, T limit, BlockPool& pool, int round = 0) {
    if (used == kLanes) {
      auto* block = static_cast<Block<T>*>(pool.allocate());
      block->clear(newest);
      newest = block;
      used = 0;
    }
    newest->x1[used] = box.x1;
    newest->y1[used] = box.y1;
    newest->x2[used] = box.x2;
    newest->y2[used] = box.y2;
    newest->limit[used] = limit;
    newest->round = round;
    ++used;
  }
};

// Grids of cells, each four times as coarse as the one before, in one hash table.
template <class T>
struct Grid {
  static constexpr int kLevels = 4;
  static constexpr int kMostCells = 36;  // that one box may enter
  static constexpr int kOffset = 1 << 20;

  T cells_per_unit_x[kLevels];  // 1 / (2 * width of a cell): of sums of two coordinates
  T cells_per_unit_y[kLevels];
  unsigned levels_in_use = 0;  // a bit each
  int shift = 32;              // 32 - log2(number of buckets)
  std::vector<BlockList<T>> buckets;
  BlockList<T> everywhere;

  // Makes an empty grid for `count` boxes with cells of the given size. False where their size is
  // out of range.
  bool reset(int64_t count, double width, double height) {
    constexpr double kMost = int64_t{1} << 50;
    const bool in_range =
        width > 1 / kMost && width < kMost && height > 1 / kMost && height < kMost;
    if (!in_range) return false;
    for (int level = 0; level < kLevels; ++level) {
      const double scale = 2 << (2 * level);
      cells_per_unit_x[level] = static_cast<T>(1 / (scale * width));
      cells_per_unit_y[level] = static_cast<T>(1 / (scale * height));
    }
    int bits = 8;
    while (bits < 24 && (int64_t{4} << bits) < count) ++bits;
    shift = 32 - bits;
    levels_in_use = 0;
    everywhere = {};
    buckets.assign(size_t{1} << bits, {});
    return true;
  }
  // The number of a cell along an axis: monotonic in `sum`, a finite number.
  static RCNN_INLINE int cell(T sum, T cells_per_unit) {
    const T at = sum * cells_per_unit;
    const T inside = minimum(maximum(at, T(-kOffset)), T(kOffset));
    return static_cast<int>(inside + T(kOffset));
  }
  RCNN_INLINE BlockList<T>& bucket(int level, int x, int y) {
    const uint32_t hash = static_cast<uint32_t>(x) * 0x9E3779B1u +
                          static_cast<uint32_t>(y) * 0x85EBCA77u +
                          static_cast<uint32_t>(level) * 0xC2B2AE3Du;
    return buckets.data()[(hash ^ (hash >> 15)) * 0x2C1B3C6Du >> shift];
  }
};

}  // namespace rcnn_ext
