// The edges of the 8-connected pixel graph, tile by tile, in rounds of ascending cost.
#pragma once

#include <array>
#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

#include "image.h"
#include "smoothing.h"

namespace rcnn_ext::selective_search {

// Edges go right, down, down and right, or down and left; ties in cost are broken in this order,
// and then by pixel, as scikit-image has them. The pixel that names the last is the upper left one
// of the four that it crosses.
constexpr int kDirections = 4;
constexpr int kPixelBits = 28;
static_assert(kMaxPixels == int64_t{1} << kPixelBits);

// 12 bytes, since there are four edges per pixel.
class Edge {
 public:
  Edge() = default;
  // Of a cost that is not negative.
  Edge(double cost, int direction, int32_t pixel)
      : name_(static_cast<uint32_t>(direction) << (kPixelBits + 1) | static_cast<uint32_t>(pixel)
                                                                         << 1) {
    std::memcpy(cost_, &cost, sizeof cost);
  }

  // They ascend as the costs do.
  uint64_t cost_bits() const {
    uint64_t bits;
    std::memcpy(&bits, cost_, sizeof bits);
    return bits;
  }
  // Ascending in the direction, then in the pixel.
  uint32_t name() const { return name_; }
  int direction() const { return static_cast<int>(name_ >> (kPixelBits + 1)); }
  int32_t pixel() const { return static_cast<int32_t>(name_ >> 1 & (kMaxPixels - 1)); }
  // Whether this edge is known to join nothing.
  bool is_refused() const { return name_ & 1; }

  // This edge in an image that numbers its pixels in another way.
  Edge renamed(int32_t pixel, bool is_refused) const {
    Edge edge = *this;
    edge.name_ = static_cast<uint32_t>(direction()) << (kPixelBits + 1) |
                 static_cast<uint32_t>(pixel) << 1 | static_cast<uint32_t>(is_refused);
    return edge;
  }

 private:
  uint32_t cost_[2];
  uint32_t name_;
};
static_assert(sizeof(Edge) == 12);

// The offsets of the ends of an edge from the pixel of its name, in an image of a given width.
struct Ends {
  explicit Ends(int width) : first{0, 0, 0, 1}, second{1, width, width + 1, width} {}
  int32_t first[kDirections];
  int32_t second[kDirections];
};

// Costs are ranked by their exponent and the first bits of their mantissa, 64 ranks to an octave
// from 2^-20 to 4; what is smaller or larger has the first or the last rank.
constexpr int kRankShift = 46;
constexpr int kFirstRank = ((1023 - 20) << 6) - 1;
constexpr int kRanks = 22 * 64 + 2;
using RankCounts = std::array<int64_t, kRanks>;

inline int rank_of(uint64_t cost_bits) {
  const auto rank = static_cast<int64_t>(cost_bits >> kRankShift) - kFirstRank;
  return static_cast<int>(rank < 0 ? 0 : rank < kRanks ? rank : kRanks - 1);
}

// Cuts the ranks into rounds of about as many edges, `enough` or a little more. Returns the end
// of each round.
std::vector<int> plan_rounds(const RankCounts& counts, int64_t enough);

// A rectangle of pixels.
struct Window {
  int x;
  int y;
  int width;
  int height;

  int64_t area() const { return static_cast<int64_t>(height) * width; }
};

// The edges within a window, whose pixels are numbered row by row, in rounds. Ranks are never
// split. All edges of a round cost more than those before it; in a round they lie about in the
// order of the pixels. Keeps its memory from window to window.
class Edges {
 public:
  // pixels: The most pixels that a window has.
  explicit Edges(int64_t pixels);

  // Finds those of a window of an image: measures the distances of neighboring pixels in color
  // space. `rows` are of this image.
  template <class T>
  void find(const Image<T>& image, const Smoothing& smoothing, SmoothedBand<T>& rows,
            const Window& window);

  const Window& window() const { return window_; }
  int rounds() const { return static_cast<int>(chunks_.size()); }
  size_t size(int round) const {
    return (chunks_[round].size() - 1) * kChunk + next_[round] - chunks_[round].back();
  }
  // Calls `visit(edge)` for the edges of a round.
  template <class Visit>
  void for_each(int round, Visit visit) const {
    for (const size_t begin : chunks_[round]) {
      const size_t end = begin == chunks_[round].back() ? next_[round] : begin + kChunk;
      for (size_t i = begin; i < end; ++i) visit(edges_[i]);
    }
  }

 private:
  // How many edges a round has shows only in the end. So it grows by chunks.
  static constexpr size_t kChunk = 1024;
  // More rounds find out sooner which edges no longer matter; fewer meet more edges of a
  // neighborhood at once, while it is in the cache. Chosen by timing, which is not recorded.
  static constexpr int kRounds = 48;

  void plan(const RankCounts& sample);
  void open_chunk(int round);
  // The edges of the pixels of a row in one direction.
  void add(int y, int direction, PlanarRow& first, PlanarRow& second, int x);

  Window window_{};
  std::unique_ptr<Edge[]> edges_;
  size_t used_ = 0;
  std::array<uint8_t, kRanks> round_of_;
  std::vector<std::vector<size_t>> chunks_;  // by round, where they begin
  std::vector<size_t> next_;                 // by round, where the next edge goes
  std::vector<double> costs_;                // of one row
  std::vector<uint16_t> ranks_;
};

}  // namespace rcnn_ext::selective_search
