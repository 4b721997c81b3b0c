// Contract: felzenszwalb.h.
//
// Kruskal's algorithm takes the edges in order of cost. Most of them join pixels that cheaper edges
// have joined already, so they come in rounds of ascending cost, and those of a round that still
// matter when its turn comes are sorted then. In a round edges lie in the order of the pixels,
// which makes finding the ones that do not matter cheap.
//
// All data should stay in the cache, and that of a large image does not. But the fate of a segment
// depends only on the edges that touch it, up to their costs. So a tile can be
// segmented by itself as long as a segment meets no edge that leaves the tile. From that edge on
// the segment is frozen: all its later edges wait, and freeze what they touch in turn. When each
// tile is done, what waits is less than half of the edges, between segments that are a small
// fraction of the pixels, and goes through the same rounds once more.
#include "felzenszwalb.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <utility>

#include "../cpu/huge_pages.h"
#include "edges.h"
#include "forest.h"

namespace rcnn_ext::selective_search {
namespace {

// How an image is cut, into about equal tiles.
struct Tiling {
  int height;
  int width;
  int down;
  int across;

  Tiling(int height, int width, const TileSizes& sizes)
      : height(height), width(width), down(1), across(1) {
    const int64_t area = static_cast<int64_t>(height) * width;
    if (area <= sizes.whole) return;
    const auto parts = [](int64_t length, int64_t part) {
      return static_cast<int>((length + part - 1) / part);
    };
    // About square, but for what the band allows.
    const auto side = static_cast<int64_t>(std::sqrt(static_cast<double>(sizes.tile)));
    const int64_t tallest = std::max<int64_t>(sizes.band / width, 1);
    const int64_t narrowest = std::min<int64_t>(side, width);
    down = parts(height, std::max<int64_t>(std::min(tallest, sizes.tile / narrowest), 1));
    across = parts(width, std::max<int64_t>(sizes.tile / parts(height, down), 1));
  }
  bool is_whole() const { return down * static_cast<int64_t>(across) == 1; }
  int tallest() const { return (height + down - 1) / down; }
  int widest() const { return (width + across - 1) / across; }
  Window tile(int y, int x) const {
    const auto cut = [](int64_t length, int64_t part, int64_t parts) {
      return static_cast<int>(length * part / parts);
    };
    const int left = cut(width, x, across), top = cut(height, y, down);
    return {left, top, cut(width, x + 1, across) - left, cut(height, y + 1, down) - top};
  }
  // A tile and the pixels around it.
  Window around(const Window& tile) const {
    const int left = std::max(tile.x - 1, 0), top = std::max(tile.y - 1, 0);
    const int right = std::min(tile.x + tile.width + 1, width);
    const int bottom = std::min(tile.y + tile.height + 1, height);
    return {left, top, right - left, bottom - top};
  }
};

// Working memory of the segmentation of tiles and of the whole image, kept from round to round.
struct Rounds {
  Forest forest;
  Links links;

  explicit Rounds(int64_t nodes) : forest(nodes) {}
};

// The edges of a tile that wait for the other tiles, in order of cost.
struct Waiting {
  std::unique_ptr<Edge[]> edges;
  size_t count = 0;
  size_t next = 0;
};

// The segmentation of an image at one scale.
class Segmenter {
 public:
  Segmenter(const SegmentScale& scale, const Tiling& tiling)
      : scale_(scale.scale / 255.0), min_size_(scale.min_size), tiling_(tiling) {}

  void add_tile(const Edges& edges, const Window& tile, Rounds& rounds);
  Segmentation finish();

 private:
  void start_tile(const Window& tile, const Window& window, Forest& forest) const;
  void keep_tile(const Window& tile, const Window& window, Forest& forest);
  void join_waiting(Rounds& rounds);
  void absorb_small(Forest& forest);
  void number(Forest& forest);
  bool is_small(const Forest& forest, int32_t root) const { return forest.size(root) < min_size_; }

  const double scale_;
  const int64_t min_size_;
  const Tiling tiling_;
  // By pixel: what is left of it in `segments_`. In the end, the labels.
  Segmentation result_;
  std::vector<Segment> segments_;  // of all tiles so far
  std::vector<Waiting> waiting_;   // by tile
  RankCounts waiting_ranks_{};
  std::vector<Edge> waiting_here_;
  std::vector<int32_t> node_of_;  // by the root of a segment of the tile
  // Between segments of which one was too small when the edge was refused, in order. Larger ones
  // need no neighbor.
  std::vector<std::pair<int32_t, int32_t>> refused_;
};

// Collects the edges of a round that seem to lie between segments; some turn out not to. There is
// no branch to guess: whether an edge matters cannot be foreseen.
void find_links(const Edges& edges, int round, const Forest& forest, Links& links) {
  const Ends ends(edges.window().width);
  links.clear(edges.size(round));
  Link* next = links.begin();
  edges.for_each(round, [&](const Edge& edge) {
    const int32_t a = forest.near_root(edge.pixel() + ends.first[edge.direction()]);
    const int32_t b = forest.near_root(edge.pixel() + ends.second[edge.direction()]);
    *next = {edge, a, b};
    next += a != b;
  });
  links.finish(next);
}

// Each pixel a segment, those around the tile frozen.
void Segmenter::start_tile(const Window& tile, const Window& window, Forest& forest) const {
  forest.reset(static_cast<int32_t>(window.area()), static_cast<float>(scale_));
  const int left = tile.x - window.x, top = tile.y - window.y;
  for (int y = 0; y < window.height; ++y) {
    const int32_t row = y * window.width;
    const bool is_outside = y < top || y >= top + tile.height;
    for (int x = 0; x < (is_outside ? window.width : left); ++x) forest.freeze(row + x);
    for (int x = left + tile.width; x < window.width; ++x) forest.freeze(row + x);
  }
}

void Segmenter::add_tile(const Edges& edges, const Window& tile, Rounds& rounds) {
  // Shortening all paths in every round takes longer than it saves.
  constexpr int kRoundsPerShorteningInTile = 4;
  const Window& window = edges.window();
  Forest& forest = rounds.forest;
  start_tile(tile, window, forest);
  waiting_here_.clear();
  const auto wait = [&](const Edge& edge, bool is_refused) {
    const int y = window.y + edge.pixel() / window.width;
    const int x = window.x + edge.pixel() % window.width;
    // An edge that several tiles meet is the one's that has the pixel of its name.
    if (y < tile.y || y >= tile.y + tile.height || x < tile.x || x >= tile.x + tile.width) return;
    waiting_here_.push_back(edge.renamed(y * tiling_.width + x, is_refused));
    ++waiting_ranks_[rank_of(edge.cost_bits())];
  };
  const auto refuse = [&](const Edge& edge, int32_t a, int32_t b) {
    if (forest.is_frozen(a) || forest.is_frozen(b)) {
      forest.freeze(a);
      forest.freeze(b);
      wait(edge, false);
    } else if (is_small(forest, a) || is_small(forest, b)) {
      if (tiling_.is_whole()) {
        refused_.emplace_back(a, b);
      } else {
        wait(edge, true);
      }
    }
  };
  for (int round = 0; round < edges.rounds(); ++round) {
    find_links(edges, round, forest, rounds.links);
    rounds.links.sort();
    join_round(rounds.links, scale_, forest, refuse);
    if (round % kRoundsPerShorteningInTile == kRoundsPerShorteningInTile - 1) forest.shorten();
  }
  if (tiling_.is_whole()) {
    absorb_small(forest);
    result_.labels.resize(window.area());
    for (int32_t i = 0; i < forest.nodes(); ++i) result_.labels[i] = i;
    number(forest);
  } else {
    keep_tile(tile, window, forest);
  }
}

void Segmenter::keep_tile(const Window& tile, const Window& window, Forest& forest) {
  if (result_.labels.empty()) {
    const size_t pixels = static_cast<size_t>(tiling_.height) * tiling_.width;
    result_.labels.reserve(pixels);
    advise_huge_pages(result_.labels.data(), pixels * sizeof(int32_t));
    result_.labels.resize(pixels);
  }
  node_of_.assign(forest.nodes(), -1);
  for (int y = tile.y; y < tile.y + tile.height; ++y) {
    int32_t* labels = &result_.labels[static_cast<size_t>(y) * tiling_.width];
    const int32_t first = (y - window.y) * window.width - window.x;
    for (int x = tile.x; x < tile.x + tile.width; ++x) {
      const int32_t root = forest.root(first + x);
      if (node_of_[root] < 0) {
        node_of_[root] = static_cast<int32_t>(segments_.size());
        segments_.push_back(forest.segment(root));
      }
      labels[x] = node_of_[root];
    }
  }
  Waiting waiting{std::unique_ptr<Edge[]>(new Edge[waiting_here_.size()]), waiting_here_.size()};
  advise_huge_pages(waiting.edges.get(), waiting.count * sizeof(Edge));
  std::copy(waiting_here_.begin(), waiting_here_.end(), waiting.edges.get());
  waiting_.push_back(std::move(waiting));
}

// The rounds of the edges of all tiles.
void Segmenter::join_waiting(Rounds& rounds) {
  // As many as fit into the cache.
  constexpr int64_t kRoundEdges = int64_t{1} << 17;
  constexpr int kRoundsPerShortening = 16;
  constexpr size_t kPrefetchEdges = 16;
  Forest& forest = rounds.forest;
  const Ends ends(tiling_.width);
  const int32_t* node = result_.labels.data();
  const auto refuse = [&](const Edge&, int32_t a, int32_t b) {
    if (is_small(forest, a) || is_small(forest, b)) refused_.emplace_back(a, b);
  };
  const std::vector<int> plan = plan_rounds(waiting_ranks_, kRoundEdges);
  for (size_t round = 0, rank = 0; round < plan.size(); ++round) {
    size_t max_links = 0;
    for (; rank < static_cast<size_t>(plan[round]); ++rank) max_links += waiting_ranks_[rank];
    rounds.links.clear(max_links);
    Link* next = rounds.links.begin();
    for (Waiting& tile : waiting_) {
      const Edge* edges = tile.edges.get();
      for (; tile.next < tile.count; ++tile.next) {
        const Edge& edge = edges[tile.next];
        if (rank_of(edge.cost_bits()) >= plan[round]) break;
        if (tile.next + kPrefetchEdges < tile.count) {
          const Edge& ahead = edges[tile.next + kPrefetchEdges];
          prefetch(&node[ahead.pixel() + ends.first[ahead.direction()]]);
          prefetch(&node[ahead.pixel() + ends.second[ahead.direction()]]);
        }
        const int32_t a = forest.near_root(node[edge.pixel() + ends.first[edge.direction()]]);
        const int32_t b = forest.near_root(node[edge.pixel() + ends.second[edge.direction()]]);
        *next = {edge, a, b};
        next += a != b;
      }
      if (tile.next == tile.count) tile.edges.reset();
    }
    rounds.links.finish(next);
    rounds.links.sort();
    join_round(rounds.links, scale_, forest, refuse);
    if (round % kRoundsPerShortening == kRoundsPerShortening - 1) forest.shorten();
  }
}

void Segmenter::absorb_small(Forest& forest) {
  for (const auto& pair : refused_) {
    const int32_t a = forest.root(pair.first);
    const int32_t b = forest.root(pair.second);
    if (a == b) continue;
    if (is_small(forest, a) || is_small(forest, b)) forest.join(a, b);
  }
}

// From nodes to labels, which count up in the order of the pixels.
void Segmenter::number(Forest& forest) {
  std::vector<int32_t> label_of(forest.nodes(), -1);
  for (int32_t& place : result_.labels) {
    int32_t& label = label_of[forest.root(place)];
    if (label < 0) label = result_.count++;
    place = label;
  }
}

Segmentation Segmenter::finish() {
  if (!tiling_.is_whole()) {
    Rounds rounds(segments_.size());
    rounds.forest.reset(segments_);
    std::vector<Segment>().swap(segments_);
    join_waiting(rounds);
    absorb_small(rounds.forest);
    number(rounds.forest);
  }
  return std::move(result_);
}

}  // namespace

template <class T>
std::vector<Segmentation> segment(const Image<T>& image, const Smoothing& smoothing,
                                  const std::vector<SegmentScale>& scales, const TileSizes& sizes) {
  const Tiling tiling(image.height, image.width, sizes);
  std::vector<Segmenter> segmenters;
  for (const SegmentScale& scale : scales) segmenters.emplace_back(scale, tiling);
  {
    // One column of tiles can do with the rows at hand; several go over the same rows in turn.
    const int tallest = std::min(tiling.tallest() + 2, image.height);
    const int widest = std::min(tiling.widest() + 2, image.width);
    SmoothedBand<T> rows(image, smoothing, tiling.across > 1 ? tallest : std::min(tallest, 2));
    Edges edges(static_cast<int64_t>(tallest) * widest);
    Rounds rounds(static_cast<int64_t>(tallest) * widest);
    for (int y = 0; y < tiling.down; ++y) {
      for (int x = 0; x < tiling.across; ++x) {
        const Window tile = tiling.tile(y, x);
        edges.find(image, smoothing, rows, tiling.around(tile));
        for (Segmenter& segmenter : segmenters) segmenter.add_tile(edges, tile, rounds);
      }
    }
  }
  std::vector<Segmentation> results;
  for (Segmenter& segmenter : segmenters) results.push_back(segmenter.finish());
  return results;
}

template std::vector<Segmentation> segment(const Image<uint8_t>&, const Smoothing&,
                                           const std::vector<SegmentScale>&, const TileSizes&);
template std::vector<Segmentation> segment(const Image<double>&, const Smoothing&,
                                           const std::vector<SegmentScale>&, const TileSizes&);

}  // namespace rcnn_ext::selective_search
