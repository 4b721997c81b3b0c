// Contract: edges.h.
#include "edges.h"

#include <algorithm>
#include <cmath>

#include "../cpu/huge_pages.h"

#define RCNN_TARGET_INCLUDE "../selective_search/edges-inl.h"
#include "../cpu/foreach_target.h"

namespace rcnn_ext::selective_search {
std::vector<int> plan_rounds(const RankCounts& counts, int64_t enough) {
  std::vector<int> ends;
  int64_t sum = 0;
  for (int rank = 0; rank < kRanks; ++rank) {
    sum += counts[rank];
    if (sum < enough && rank + 1 < kRanks) continue;
    ends.push_back(rank + 1);
    sum = 0;
  }
  return ends;
}

// Distances along one direction, from pixels of one row to pixels of another, and their ranks. The
// rows are given with the columns where they begin.
static void measure(PlanarRow& a, int column_a, PlanarRow& b, int column_b, int count,
                    double* costs, uint16_t* ranks) {
  const double* from[3] = {a.channel(0), a.channel(1), a.channel(2)};
  const double* to[3] = {b.channel(0), b.channel(1), b.channel(2)};
  RCNN_DYNAMIC_DISPATCH(distances(from, to, column_a, column_b, count, costs, ranks));
}

// Counts the ranks in strips of a window. Their surroundings are left out, so that this is not
// exact.
template <class T>
static RankCounts sample_ranks(const Image<T>& image, const Smoothing& smoothing,
                               const Window& window) {
  constexpr int kRows = 4;    // of a strip
  constexpr int kEvery = 48;  // rows
  RankCounts counts{};
  const int width = window.width;
  std::vector<T> pixels;
  std::vector<double> costs(width);
  std::vector<uint16_t> ranks(width);
  const auto count = [&](PlanarRow& a, PlanarRow& b, int shift) {
    measure(a, 0, b, shift, width - shift, costs.data(), ranks.data());
    for (int x = 0; x < width - shift; ++x) ++counts[ranks[x]];
  };
  for (int top = 0; top < window.height; top += kEvery) {
    const int height = std::min(kRows, window.height - top);
    pixels.clear();
    for (int y = 0; y < height; ++y) {
      const T* row = image.row(window.y + top + y) + 3 * static_cast<size_t>(window.x);
      pixels.insert(pixels.end(), row, row + 3 * static_cast<size_t>(width));
    }
    const Image<T> strip{pixels.data(), height, width, image.factor};
    SmoothedBand<T> rows(strip, smoothing, 2);
    for (int y = 0; y < height; ++y) {
      count(rows.row(y), rows.row(y), 1);
      if (y == 0) continue;
      count(rows.row(y - 1), rows.row(y), 0);
      count(rows.row(y - 1), rows.row(y), 1);
    }
  }
  return counts;
}

Edges::Edges(int64_t pixels) : edges_(new Edge[kDirections * pixels + (kRounds + 1) * kChunk]) {
  advise_huge_pages(edges_.get(), kDirections * pixels * sizeof(Edge));
}

void Edges::plan(const RankCounts& sample) {
  int64_t total = 0;
  for (const int64_t count : sample) total += count;
  const std::vector<int> ends = plan_rounds(sample, total / kRounds + 1);
  used_ = 0;
  chunks_.assign(ends.size(), {});
  next_.assign(ends.size(), 0);
  for (int round = 0, rank = 0; round < rounds(); ++round) {
    open_chunk(round);
    for (; rank < ends[round]; ++rank) round_of_[rank] = static_cast<uint8_t>(round);
  }
}

void Edges::open_chunk(int round) {
  chunks_[round].push_back(used_);
  next_[round] = used_;
  used_ += kChunk;
}

void Edges::add(int y, int direction, PlanarRow& first, PlanarRow& second, int x) {
  const Ends ends(0);
  const int columns = direction == 1 ? window_.width : window_.width - 1;
  measure(first, x + ends.first[direction], second, x + ends.second[direction], columns,
          costs_.data(), ranks_.data());
  for (int i = 0; i < columns; ++i) {
    const int round = round_of_[ranks_[i]];
    size_t& next = next_[round];
    edges_[next++] = Edge(costs_[i], direction, y * window_.width + i);
    if (next % kChunk == 0) open_chunk(round);
  }
}

template <class T>
void Edges::find(const Image<T>& image, const Smoothing& smoothing, SmoothedBand<T>& rows,
                 const Window& window) {
  window_ = window;
  costs_.resize(window.width);
  ranks_.resize(window.width);
  plan(sample_ranks(image, smoothing, window));
  for (int y = 0; y < window.height; ++y) {
    PlanarRow& lower = rows.row(window.y + y);
    if (y > 0) {
      PlanarRow& upper = rows.row(window.y + y - 1);
      for (int direction = 1; direction < kDirections; ++direction) {
        add(y - 1, direction, upper, lower, window.x);
      }
    }
    add(y, 0, lower, lower, window.x);
  }
}

template void Edges::find(const Image<uint8_t>&, const Smoothing&, SmoothedBand<uint8_t>&,
                          const Window&);
template void Edges::find(const Image<double>&, const Smoothing&, SmoothedBand<double>&,
                          const Window&);

}  // namespace rcnn_ext::selective_search
