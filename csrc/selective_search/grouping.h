// Hierarchical grouping: the two most similar neighbors merge into one region, repeatedly.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "neighbors.h"

namespace rcnn_ext::selective_search {

// The regions that are left and the pairs of neighbors among them, numbered in order of age.
//
// A region keeps the pairs that it was made with. Where a neighbor has been merged since, its
// union took its place, with a pair that is as old as the union. So nothing is written to the
// neighbors of a union, which can be thousands, when it is made.
class PairGraph {
 public:
  struct Neighbor {
    int64_t number;  // of the pair
    int region;
  };
  using Neighbors = std::vector<Neighbor>;

  PairGraph(int count, const std::vector<Pair>& pairs)
      : neighbors_(count), first_number_(count, 0), union_of_(count), last_union_(count, 0) {
    const size_t max_regions = 2 * static_cast<size_t>(count);
    neighbors_.reserve(max_regions);
    first_number_.reserve(max_regions);
    union_of_.reserve(max_regions);
    last_union_.reserve(max_regions);
    for (int region = 0; region < count; ++region) union_of_[region] = region;
    for (const auto& [a, b] : pairs) {
      neighbors_[a].push_back({next_number_, b});
      neighbors_[b].push_back({next_number_++, a});
    }
  }

  bool is_left(int region) const { return union_of_[region] == region; }
  // The pairs that a region was made with, ascending.
  const Neighbors& neighbors(int region) const { return neighbors_[region]; }

  // Puts the union of two regions, with the next free index, in their place. Its pairs keep the
  // order of those that they replace.
  void merge(int a, int b) {
    const int united = static_cast<int>(neighbors_.size());
    union_of_[a] = union_of_[b] = united;
    union_of_.push_back(united);
    last_union_.push_back(united);
    first_number_.push_back(next_number_);
    Neighbors &x = neighbors_[a], &y = neighbors_[b];
    later_.clear();
    keep_left(x);
    keep_left(y);
    // A number of a later pair may be off, but not so that it would pass a pair of another region.
    std::sort(later_.begin(), later_.end(), before);
    made_.resize(x.size() + y.size());
    std::merge(x.begin(), x.end(), y.begin(), y.end(), made_.begin(), before);
    Neighbors& own = x.capacity() < y.capacity() ? y : x;
    own.resize(made_.size() + later_.size());
    std::merge(made_.begin(), made_.end(), later_.begin(), later_.end(), own.begin(), before);
    size_t kept = 0;
    for (const Neighbor& neighbor : own) {
      if (last_union_[neighbor.region] == united) continue;
      last_union_[neighbor.region] = united;
      own[kept++] = {next_number_++, neighbor.region};
    }
    own.resize(kept);
    // Memory is reused: a region that is made near the end has many neighbors and a short life.
    Neighbors taken = std::move(own);
    Neighbors().swap(x);
    Neighbors().swap(y);
    neighbors_.push_back(std::move(taken));
  }

 private:
  static bool before(const Neighbor& x, const Neighbor& y) { return x.number < y.number; }

  // Moves the pairs whose regions have been merged to `later_`.
  void keep_left(Neighbors& neighbors) {
    size_t kept = 0;
    for (const Neighbor& neighbor : neighbors) {
      if (is_left(neighbor.region)) {
        neighbors[kept++] = neighbor;
      } else {
        const int region = find_union(neighbor.region);
        later_.push_back({first_number_[region], region});
      }
    }
    neighbors.resize(kept);
  }

  // The region that is left of those that this one was merged into.
  int find_union(int region) {
    while (union_of_[region] != region) {
      union_of_[region] = union_of_[union_of_[region]];
      region = union_of_[region];
    }
    return region;
  }

  std::vector<Neighbors> neighbors_;
  std::vector<int64_t> first_number_;  // of the pairs that a union was made with
  std::vector<int> union_of_;    // the union that a region was merged into; itself if it is left
  std::vector<int> last_union_;  // the last union that a region became a neighbor of
  Neighbors made_;
  Neighbors later_;
  int64_t next_number_ = 0;
};

// A pair of a region with an older one. In a heap the most similar is on top, among equals the
// youngest.
struct PairCandidate {
  double similarity;
  int64_t number;
  int region;
  int older;

  bool operator<(const PairCandidate& x) const {
    return similarity < x.similarity || (similarity == x.similarity && number < x.number);
  }
};

// The candidates of one region.
class PairCandidates {
 public:
  void push_back(const PairCandidate& candidate) { values_.push_back(candidate); }
  bool empty() const { return values_.empty(); }

  // The first time this takes one pass: many regions are merged before a second.
  PairCandidate take_best() {
    if (is_new_) {
      is_new_ = false;
      std::swap(*std::max_element(values_.begin(), values_.end()), values_.back());
    } else {
      if (!is_heap_) std::make_heap(values_.begin(), values_.end());
      is_heap_ = true;
      std::pop_heap(values_.begin(), values_.end());
    }
    const PairCandidate best = values_.back();
    values_.pop_back();
    return best;
  }
  void clear() {
    values_.clear();
    is_new_ = true;
    is_heap_ = false;
  }
  size_t capacity() const { return values_.capacity(); }

 private:
  std::vector<PairCandidate> values_;
  bool is_new_ = true;
  bool is_heap_ = false;
};

// Merges regions until no two are neighbors. `regions` has
//   double similarity(int a, int b);   of two regions, in any order
//   int merge(int a, int b);           adds their union and gives its index, the next free one
// Among equal similarities the youngest pair goes first. Returns the merged pairs, in order.
//
// Only the best pair of each region is in the common heap; the region sorts the rest itself.
template <class Regions>
std::vector<Pair> group(Regions& regions, int count, const std::vector<Pair>& neighbors) {
  PairGraph graph(count, neighbors);
  std::vector<PairCandidates> candidates(count);  // by region, those that are not in the heap
  candidates.reserve(2 * static_cast<size_t>(count));
  std::vector<PairCandidate> heap;
  // Puts the best pair of a region that is still there into the heap.
  const auto push_best = [&](int region) {
    PairCandidates& own = candidates[region];
    while (!own.empty()) {
      const PairCandidate best = own.take_best();
      if (!graph.is_left(best.older)) continue;
      heap.push_back(best);
      std::push_heap(heap.begin(), heap.end());
      return;
    }
  };
  const auto compare = [&](int region) {
    for (const auto& [number, other] : graph.neighbors(region)) {
      if (other > region) continue;
      candidates[region].push_back({regions.similarity(region, other), number, region, other});
    }
    push_best(region);
  };

  for (int region = 0; region < count; ++region) compare(region);
  std::vector<Pair> merged;
  while (!heap.empty()) {
    std::pop_heap(heap.begin(), heap.end());
    const PairCandidate best = heap.back();
    heap.pop_back();
    if (!graph.is_left(best.region)) continue;
    if (!graph.is_left(best.older)) {
      push_best(best.region);
      continue;
    }
    // Of two segments, the older one is the first.
    const auto [a, b] =
        best.region < count ? Pair{best.older, best.region} : Pair{best.region, best.older};
    merged.emplace_back(a, b);
    graph.merge(a, b);
    const int larger = candidates[a].capacity() < candidates[b].capacity() ? b : a;
    PairCandidates taken = std::move(candidates[larger]);
    candidates[a] = candidates[b] = PairCandidates();
    taken.clear();
    candidates.push_back(std::move(taken));
    compare(regions.merge(a, b));
  }
  return merged;
}

}  // namespace rcnn_ext::selective_search
