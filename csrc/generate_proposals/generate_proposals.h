// The sizes of generate_proposals' arguments, checked for CPU and CUDA.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

#include "../core/box_decoding_options.h"
#include "../core/checks.h"

namespace rcnn_ext {

// A level of the feature pyramid: logits [N, K, H, W], deltas [N, 4 K, H, W]. The index of an
// anchor within its level counts rows, then columns, then k.
struct AnchorLevel {
  int64_t anchors_per_position;  // K
  int64_t height, width;         // H, W
  int64_t first_anchor;          // index of its first anchor among the anchors of all levels
  int64_t top;                   // min(pre_nms_top_n, anchors()): how many are decoded
  int64_t first_top;             // index of its first decoded anchor among those of all levels

  int64_t positions() const { return height * width; }
  int64_t anchors() const { return anchors_per_position * positions(); }
};

struct AnchorPyramid {
  std::vector<AnchorLevel> levels;
  int64_t images = 0;
  int64_t anchors = 0;  // per image
  int64_t top = 0;      // decoded anchors per image

  int64_t max_top() const {
    int64_t result = 0;
    for (const AnchorLevel& level : levels) result = std::max(result, level.top);
    return result;
  }
};

// anchors: [A, 4] or [N, A, 4], image_sizes: [N, 2]
inline AnchorPyramid check_generate_proposals(const std::vector<Tensor>& logits,
                                              const std::vector<Tensor>& deltas,
                                              const Tensor& anchors, const Tensor& image_sizes,
                                              int64_t pre_nms_top_n, int64_t post_nms_top_n,
                                              const DecodingOptions& options) {
  const char* op = "generate_proposals";
  RCNN_CHECK(!logits.empty() && logits.size() == deltas.size(), op,
             ": expected logits and deltas of the same levels, at least one, got ", logits.size(),
             " and ", deltas.size());
  check_max_count(pre_nms_top_n, op, "pre_nms_top_n");
  check_max_count(post_nms_top_n, op, "post_nms_top_n");
  options.check(op);
  AnchorPyramid pyramid;
  for (size_t l = 0; l < logits.size(); ++l) {
    const Tensor& map = logits[l];
    check_floating(map, op, "logits");
    RCNN_CHECK(map.dim() == 4, op, ": expected logits[", l, "] of shape [N, K, H, W], got ",
               shape_of(map));
    RCNN_CHECK(map.size(0) == logits[0].size(0), op, ": expected logits[", l, "] of ",
               logits[0].size(0), " images, as the first, got ", map.size(0));
    const Tensor& delta = deltas[l];
    RCNN_CHECK(delta.dim() == 4 && delta.size(0) == map.size(0) &&
                   delta.size(1) == 4 * map.size(1) && delta.size(2) == map.size(2) &&
                   delta.size(3) == map.size(3),
               op, ": expected deltas[", l, "] of shape [", map.size(0), ", ", 4 * map.size(1),
               ", ", map.size(2), ", ", map.size(3), "], got ", shape_of(delta));
    RCNN_CHECK(map.scalar_type() == logits[0].scalar_type() &&
                   delta.scalar_type() == logits[0].scalar_type(),
               op, ": expected logits and deltas of one dtype, got ",
               name_of(logits[0].scalar_type()), ", ", name_of(map.scalar_type()), " and ",
               name_of(delta.scalar_type()));
    check_same_device(map, logits[0], op, "all levels of logits", "the first");
    check_same_device(delta, logits[0], op, "deltas", "logits");
    AnchorLevel level{map.size(1), map.size(2), map.size(3), pyramid.anchors, 0, pyramid.top};
    RCNN_CHECK(level.anchors() <= int64_t{1} << 30, op,
               ": expected at most 2^30 anchors in a level, got ", level.anchors());
    level.top = std::min(pre_nms_top_n, level.anchors());
    pyramid.anchors += level.anchors();
    pyramid.top += level.top;
    pyramid.levels.push_back(level);
  }
  pyramid.images = logits[0].size(0);
  check_floating(anchors, op, "anchors");
  const bool shared = anchors.dim() == 2;
  RCNN_CHECK((shared || (anchors.dim() == 3 && anchors.size(0) == pyramid.images)) &&
                 anchors.size(shared ? 0 : 1) == pyramid.anchors &&
                 anchors.size(shared ? 1 : 2) == 4,
             op, ": expected anchors of shape [", pyramid.anchors, ", 4] or [", pyramid.images,
             ", ", pyramid.anchors, ", 4], got ", shape_of(anchors));
  check_same_device(anchors, logits[0], op, "anchors", "logits");
  check_image_sizes(image_sizes, logits[0], op);
  RCNN_CHECK(image_sizes.size(0) == pyramid.images, op, ": expected image_sizes of ",
             pyramid.images, " images, got ", image_sizes.size(0));
  RCNN_CHECK(
      pyramid.top * std::max<int64_t>(pyramid.images, 1) <= std::numeric_limits<int32_t>::max(), op,
      ": expected at most 2^31 - 1 anchors to choose among, got ", pyramid.images, " times ",
      pyramid.top);
  return pyramid;
}

}  // namespace rcnn_ext
