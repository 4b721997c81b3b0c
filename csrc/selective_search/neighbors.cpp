// Contract: neighbors.h.
#include "neighbors.h"

#include <algorithm>
#include <cstring>

#define RCNN_TARGET_INCLUDE "../selective_search/neighbors-inl.h"
#include "../cpu/foreach_target.h"

namespace rcnn_ext::selective_search {

std::vector<Pair> nested_corners(const std::vector<PixelBox>& boxes) {
  const int count = static_cast<int>(boxes.size());
  std::vector<int32_t> columns[4];
  for (auto& column : columns) column.reserve(count);
  for (const PixelBox& box : boxes) {
    columns[0].push_back(box.min_x);
    columns[1].push_back(box.min_y);
    columns[2].push_back(box.max_x);
    columns[3].push_back(box.max_y);
  }
  std::vector<Pair> pairs;
  constexpr int kWord = 8;  // marks that are skipped at once
  std::vector<uint8_t> marks(count + kWord, 0);
  for (int a = 0; a + 1 < count; ++a) {
    const PixelBox& box = boxes[a];
    // No box begins above its predecessors: those from here on lie below this one.
    const auto below = std::lower_bound(columns[1].begin() + a + 1, columns[1].end(), box.max_y);
    const int first = a + 1, rest = static_cast<int>(below - columns[1].begin()) - first;
    RCNN_DYNAMIC_DISPATCH(mark_corners_inside(
        &columns[0][first], &columns[1][first], &columns[2][first], &columns[3][first], rest,
        box.min_x, box.min_y, box.max_x, box.max_y, marks.data()));
    std::memset(&marks[rest], 0, kWord);
    for (int word = 0; word < rest; word += kWord) {
      uint64_t any;
      std::memcpy(&any, &marks[word], sizeof any);
      if (any == 0) continue;
      for (int i = word; i < word + kWord; ++i) {
        if (marks[i]) pairs.emplace_back(a, first + i);
      }
    }
  }
  return pairs;
}

std::vector<Pair> adjacent_segments(const Segmentation& segmentation, int height, int width) {
  std::vector<Pair> pairs;
  const auto meet = [&](int32_t a, int32_t b) {
    if (a == b) return;
    const Pair pair{std::min(a, b), std::max(a, b)};
    // Borders run along rows and columns, so that a pair mostly comes several times in a row.
    if (pairs.empty() || pairs.back() != pair) pairs.push_back(pair);
  };
  for (int y = 0; y < height; ++y) {
    const int32_t* row = &segmentation.labels[static_cast<size_t>(y) * width];
    for (int x = 0; x + 1 < width; ++x) meet(row[x], row[x + 1]);
    if (y + 1 == height) break;
    for (int x = 0; x < width; ++x) meet(row[x], row[x + width]);
  }
  std::sort(pairs.begin(), pairs.end());
  pairs.erase(std::unique(pairs.begin(), pairs.end()), pairs.end());
  return pairs;
}

}  // namespace rcnn_ext::selective_search
