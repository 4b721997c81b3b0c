// Segments that grow by being joined, and the order in which that happens.
#pragma once

#include <cmath>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "../cpu/prefetch.h"
#include "edges.h"

namespace rcnn_ext::selective_search {

// Properties of a segment.
struct Segment {
  float threshold;  // what an edge has to cost less than to join it to another
  int32_t size;
};

// Segments as trees of nodes: of pixels, or of what has been joined already. Which node is the root
// does not show in the result.
//
// A segment can be frozen, which makes its threshold negative (-0 counts as that).
class Forest {
 public:
  explicit Forest(int64_t max_nodes);
  // Each node a segment of its own, of one pixel.
  void reset(int32_t nodes, float threshold);
  void reset(const std::vector<Segment>& segments);

  int32_t nodes() const { return nodes_; }
  int32_t root(int32_t node) {
    while (parents_[node] != node) {
      const int32_t above = parents_[parents_[node]];
      parents_[node] = above;
      node = above;
    }
    return node;
  }
  // A node on the way from this one to its root, most often the root.
  int32_t near_root(int32_t node) const { return parents_[parents_[node]]; }
  // Halves the ways of all nodes to their roots.
  void shorten() {
    for (int32_t i = 0; i < nodes_; ++i) parents_[i] = parents_[parents_[i]];
  }
  float threshold(int32_t root) const { return segments_[root].threshold; }
  void set_threshold(int32_t root, float threshold) { segments_[root].threshold = threshold; }
  int32_t size(int32_t root) const { return segments_[root].size; }
  void freeze(int32_t root) { segments_[root].threshold = -std::fabs(threshold(root)); }
  bool is_frozen(int32_t root) const { return std::signbit(threshold(root)); }
  // As it was before it was frozen.
  Segment segment(int32_t root) const { return {std::fabs(threshold(root)), size(root)}; }
  void prefetch_node(int32_t node) const {
    prefetch(&parents_[node]);
    prefetch(&segments_[node]);
  }

  // Gives the root of the union.
  int32_t join(int32_t a, int32_t b) {
    if (size(a) < size(b)) std::swap(a, b);
    parents_[b] = a;
    segments_[a].size += segments_[b].size;
    return a;
  }

 private:
  int32_t nodes_ = 0;
  std::unique_ptr<int32_t[]> parents_;   // a root is its own
  std::unique_ptr<Segment[]> segments_;  // what a root knows of its segment
};

// An edge between two segments that were different when its round began.
struct Link {
  Edge edge;
  int32_t a;
  int32_t b;
};

// The links of one round. Keeps its memory, which is not initialized, from round to round.
class Links {
 public:
  // Drops the links; room for this many, to be written from `begin()` on.
  void clear(size_t max_links);
  // Says how far they have been written.
  void finish(const Link* end) { count_ = end - links_.get(); }
  // Puts them in the order of costs and names.
  void sort();

  size_t size() const { return count_; }
  Link* begin() const { return links_.get(); }
  const Link* end() const { return begin() + count_; }
  const Link& operator[](size_t i) const { return links_[i]; }

 private:
  void sort_cells();

  size_t count_ = 0;
  size_t capacity_ = 0;
  std::unique_ptr<Link[]> links_;
  std::unique_ptr<Link[]> sorted_;
  std::vector<uint32_t> starts_;
};

// Takes the links of a round in order: joins the segments of those that cost less than both
// thresholds, calls `refuse(edge, a, b)` with the roots for the others.
template <class Refuse>
void join_round(const Links& links, double scale, Forest& forest, Refuse refuse) {
  constexpr size_t kPrefetchLinks = 8;
  for (size_t i = 0; i < links.size(); ++i) {
    if (i + kPrefetchLinks < links.size()) {
      forest.prefetch_node(links[i + kPrefetchLinks].a);
      forest.prefetch_node(links[i + kPrefetchLinks].b);
    }
    const Edge& edge = links[i].edge;
    const int32_t a = forest.root(links[i].a);
    const int32_t b = forest.root(links[i].b);
    if (a == b) continue;
    const uint64_t bits = edge.cost_bits();
    double cost;
    std::memcpy(&cost, &bits, sizeof cost);
    // Thresholds are rounded to single precision, the cost is not: as in scikit-image.
    const float threshold =
        forest.threshold(a) < forest.threshold(b) ? forest.threshold(a) : forest.threshold(b);
    if (cost < static_cast<double>(threshold) && !edge.is_refused()) {
      const int32_t root = forest.join(a, b);
      forest.set_threshold(root, static_cast<float>(cost + scale / forest.size(root)));
    } else {
      refuse(edge, a, b);
    }
  }
}

}  // namespace rcnn_ext::selective_search
