// The boxes that NMS on the CPU has kept, in a grid of cells, so that a candidate is compared with
// few of them, and the proof that it is compared with all that can suppress it. The kernels are in
// nms_cpu-inl.h.
//
// Every shortcut is conservative: it skips only kept boxes for which suppresses() of box_math.h is
// false, and that function decides about all others. Notation: u is half the epsilon of T; b the
// suppression bound; I, a, a' the computed intersection and areas, S = fl(a + a'), D = fl(S - I).
// suppresses() is fl(I / D) > b.
//
// 1. Thresholds. A bound of 1 or more suppresses nothing: I is at most either area, since rounding
//    is monotonic, hence D = fl(fl(a + a') - I) >= fl(2I - I) = I. Below 0, boxes that do not
//    overlap suppress each other and nothing of what follows holds: all kept boxes are tested.
// 2. Boxes without an area (b >= 0). Where x2 <= x1 or y2 <= y1, I is 0 and the quotient is not
//    above 0. An area of 0 (underflow) makes I <= 0 too; an infinite one makes S infinite and the
//    quotient 0 or NaN. Such boxes are kept, and never compared with others.
// 3. The filter, without a division: fl(I / D) > b implies I > b * D, rounding being monotonic,
//    and D >= (S - I)(1 - u), so I > S * c with c = b (1 - u) / (1 + b (1 - u)). (D = 0 means S =
//    I, and c < 1.) A box's limit is c' * area with c' = c (1 - 16u), which covers the rounding of
//    the product, of S and of the sum of two limits; where the product is not a normal number the
//    limit is -infinity and the exact test decides.
// 4. The grid. Let boxes be "in range" with coordinates of at most 2^60 and an area of at least
//    2^-80. Between two boxes in range the products of widths and heights neither overflow nor,
//    where I is above S * c with c >= 2^-6, underflow; subtractions never underflow inexactly. So
//    the computed IoU carries a relative error below 16u (S >= 2I bounds the cancellation in D),
//    and suppression implies an exact IoU above t = b (1 - 16u). The IoU of two boxes is at most
//    that of their projections on either axis: I = ix * iy and U >= (wx + wx' - ix) * iy. For
//    intervals of widths w and w' whose centers are d apart, an IoU above t implies d < (w + w') /
//    2 * (1 - t) / (1 + t) where neither contains the other, and w' < w / t in any case; the
//    maximum of d is w (1 - t) / (2t), at w' = w / t, where containment begins, and containment
//    bounds d by the same value. So the center of a box that a kept one suppresses lies within that
//    distance of the kept one's center, on both axes. A kept box is inserted into every cell within
//    that distance, a candidate looks into the cell of its own center. Cells are numbered by a
//    monotonic function of fl(x1 + x2), and the distance is widened by more than its rounding
//    (suppression_radius_of), so that the cell of a candidate lies within the range of cells.
// 5. Cells are hashed without comparing them: cells that share a bucket only compare more boxes. A
//    kept box that covers too many cells goes to a coarser level, and beyond the coarsest to the
//    overflow list, which every candidate scans; so does a kept box out of range. A candidate out
//    of range is compared with all kept boxes.
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

constexpr int kBoxesPerKeptBlock = 16;  // one AVX-512 register of float32

// Kept boxes by columns (structure of arrays). Unused lanes hold NaN coordinates and an infinite
// limit, so that neither the filter nor the exact test selects them.
template <class T>
struct alignas(64) KeptBlock {
  T x1[kBoxesPerKeptBlock], y1[kBoxesPerKeptBlock], x2[kBoxesPerKeptBlock], y2[kBoxesPerKeptBlock];
  T limit[kBoxesPerKeptBlock];
  KeptBlock* next;  // older, in the same list, or null
  int round;        // of its newest box

  RCNN_INLINE void clear(KeptBlock* older) {
    for (int k = 0; k < kBoxesPerKeptBlock; ++k) {
      x1[k] = y1[k] = x2[k] = y2[k] = std::numeric_limits<T>::quiet_NaN();
      limit[k] = std::numeric_limits<T>::infinity();
    }
    next = older;
  }
};

// Aligned memory for blocks, freed all at once.
class KeptBlockArena {
 public:
  explicit KeptBlockArena(size_t block_bytes) : block_bytes_(block_bytes) {}

  void* allocate() {
    if (next_ == end_) grow();
    void* block = next_;
    next_ += block_bytes_;
    return block;
  }
  // Free all blocks; their memory is used again.
  void clear() {
    used_ = 0;
    next_ = end_ = nullptr;
  }
  // Call visit(block) for every allocated block until it returns true; return whether it did.
  template <class KeptBlock, class Visit>
  bool any(Visit&& visit) const {
    for (size_t slab = 0; slab < used_; ++slab) {
      const char* begin = slabs_[slab].get();
      const char* end = slab + 1 == used_ ? next_ : begin + kBlocksPerSlab * block_bytes_;
      for (; begin != end; begin += block_bytes_) {
        if (visit(*reinterpret_cast<const KeptBlock*>(begin))) return true;
      }
    }
    return false;
  }

 private:
  static constexpr size_t kBlocksPerSlab = 64;
  static constexpr std::align_val_t kAlignment{64};
  struct Free {
    void operator()(char* memory) const { ::operator delete(memory, kAlignment); }
  };

  void grow() {
    const size_t bytes = kBlocksPerSlab * block_bytes_;
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

// A list of kept boxes in blocks, the newest block first; all others are full. Boxes are added in
// rounds of ascending index.
template <class T>
struct KeptList {
  KeptBlock<T>* newest = nullptr;
  int used = kBoxesPerKeptBlock;  // boxes in the newest block

  RCNN_INLINE void add(const Box<T>& box, T limit, KeptBlockArena& arena, int round = 0) {
    if (used == kBoxesPerKeptBlock) {
      auto* block = static_cast<KeptBlock<T>*>(arena.allocate());
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

// A hierarchy of grids, each level with cells four times as wide as the level before, in one hash
// table.
template <class T>
struct KeptGrid {
  static constexpr int kLevels = 4;
  static constexpr int kMaxCellsPerBox = 36;  // more, and a box goes to the next level
  static constexpr int kCellOffset = 1 << 20;

  T cells_per_unit_x[kLevels];  // 1 / (2 * cell width), for sums of two coordinates
  T cells_per_unit_y[kLevels];
  unsigned levels_in_use = 0;  // one bit each
  int shift = 32;              // 32 - log2(bucket count)
  std::vector<KeptList<T>> buckets;
  KeptList<T> overflow;

  // Make the grid empty, for `count` boxes, with cells of the given size at level 0. Return false
  // if the size is out of range.
  bool reset(int64_t count, double width, double height) {
    constexpr double kMaxCellSize = int64_t{1} << 50;
    const bool in_range = width > 1 / kMaxCellSize && width < kMaxCellSize &&
                          height > 1 / kMaxCellSize && height < kMaxCellSize;
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
    overflow = {};
    buckets.assign(size_t{1} << bits, {});
    return true;
  }
  // The index of a cell along an axis, monotonic in `sum`, which must be finite.
  static RCNN_INLINE int cell(T sum, T cells_per_unit) {
    const T position = sum * cells_per_unit;
    const T inside = minimum(maximum(position, T(-kCellOffset)), T(kCellOffset));
    return static_cast<int>(inside + T(kCellOffset));
  }
  RCNN_INLINE KeptList<T>& bucket(int level, int x, int y) {
    const uint32_t hash = static_cast<uint32_t>(x) * 0x9E3779B1u +
                          static_cast<uint32_t>(y) * 0x85EBCA77u +
                          static_cast<uint32_t>(level) * 0xC2B2AE3Du;
    return buckets.data()[(hash ^ (hash >> 15)) * 0x2C1B3C6Du >> shift];
  }
};

}  // namespace rcnn_ext
