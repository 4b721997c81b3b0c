// Contract: forest.h.
#include "forest.h"

#include <algorithm>

#include "../cpu/huge_pages.h"

namespace rcnn_ext::selective_search {

Forest::Forest(int64_t max_nodes)
    : parents_(new int32_t[max_nodes]), segments_(new Segment[max_nodes]) {
  advise_huge_pages(parents_.get(), max_nodes * sizeof(int32_t));
  advise_huge_pages(segments_.get(), max_nodes * sizeof(Segment));
}

void Forest::reset(int32_t nodes, float threshold) {
  nodes_ = nodes;
  for (int32_t i = 0; i < nodes_; ++i) parents_[i] = i;
  std::fill_n(segments_.get(), nodes_, Segment{threshold, 1});
}

void Forest::reset(const std::vector<Segment>& segments) {
  nodes_ = static_cast<int32_t>(segments.size());
  for (int32_t i = 0; i < nodes_; ++i) parents_[i] = i;
  std::copy(segments.begin(), segments.end(), segments_.get());
}

static bool earlier(const Link& x, const Link& y) {
  const uint64_t cost_x = x.edge.cost_bits(), cost_y = y.edge.cost_bits();
  return cost_x < cost_y || (cost_x == cost_y && x.edge.name() < y.edge.name());
}

void Links::clear(size_t max_links) {
  count_ = 0;
  if (max_links <= capacity_) return;
  capacity_ = max_links + max_links / 4;
  links_.reset(new Link[capacity_]);
  sorted_.reset(new Link[capacity_]);
}

void Links::sort() {
  if (count_ < 2) return;
  uint64_t low = links_[0].edge.cost_bits(), high = low;
  for (const Link& link : *this) {
    low = std::min(low, link.edge.cost_bits());
    high = std::max(high, link.edge.cost_bits());
  }
  // The bits of costs are about evenly spread in a round: put them into twice as many cells as
  // links, then sort the few in each.
  int shift = 0;
  while ((high - low) >> shift > 2 * count_) ++shift;
  const auto cell = [&](const Link& link) { return (link.edge.cost_bits() - low) >> shift; };
  starts_.assign(((high - low) >> shift) + 2, 0);
  for (const Link& link : *this) ++starts_[cell(link) + 1];
  for (size_t i = 1; i < starts_.size(); ++i) starts_[i] += starts_[i - 1];
  for (const Link& link : *this) sorted_[starts_[cell(link)]++] = link;
  links_.swap(sorted_);
  sort_cells();
}

// `starts_` has come to hold where cells end.
void Links::sort_cells() {
  constexpr ptrdiff_t kFew = 24;
  Link* begin = links_.get();
  for (size_t i = 0; i + 1 < starts_.size(); ++i) {
    Link* end = links_.get() + starts_[i];
    if (end - begin > kFew) {
      std::sort(begin, end, earlier);
    } else {
      for (Link* next = begin + 1; next < end; ++next) {
        const Link link = *next;
        Link* place = next;
        for (; place > begin && earlier(link, place[-1]); --place) *place = place[-1];
        *place = link;
      }
    }
    begin = end;
  }
}

}  // namespace rcnn_ext::selective_search
