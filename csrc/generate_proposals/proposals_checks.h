// The arguments of generate_proposals and postprocess_detections, checked for CPU and CUDA.
#pragma once

#include <algorithm>
#include <vector>

#include "../core/box_coding.h"
#include "../core/checks.h"
#include "../core/dispatch.h"

namespace rcnn_ext {

// What a box has to be, and how it is decoded; the numbers as the operators get them.
struct DecodingOptions {
  const std::vector<double>& weights;
  const std::vector<double>& means;
  double max_log_ratio;
  double min_size;

  void check(const char* op) const {
    RCNN_CHECK(weights.size() == 4 && means.size() == 4, op,
               ": expected four weights and four means, got ", weights.size(), " and ",
               means.size());
    for (const double weight : weights) {
      RCNN_CHECK(weight > 0, op, ": expected positive weights, got ", weight);
    }
  }
  template <class T>
  BoxCoding<T> coding() const {
    BoxCoding<T> coding;
    for (int c = 0; c < 4; ++c) {
      coding.weights[c] = static_cast<T>(weights[c]);
      coding.shifts[c] = static_cast<T>(means[c] * weights[c]);
    }
    coding.max_log_ratio = static_cast<T>(max_log_ratio);
    return coding;
  }
};

inline void check_most(int64_t most, const char* op, const char* argument) {
  RCNN_CHECK(most > 0, op, ": expected a positive ", argument, ", got ", most);
}

// image_sizes: [N, 2] (height, width)
inline void check_image_sizes(const Tensor& image_sizes, const Tensor& like, const char* op) {
  RCNN_CHECK(image_sizes.dim() == 2 && image_sizes.size(1) == 2, op,
             ": expected image_sizes of shape [N, 2] (height, width), got ", shape_of(image_sizes));
  RCNN_CHECK(!is_complex(image_sizes.scalar_type()), op,
             ": expected image_sizes to be real numbers, got ", name_of(image_sizes.scalar_type()));
  check_same_device(image_sizes, like, op, "image_sizes", "logits");
}

// A level of the pyramid: logits [N, K, H, W], deltas [N, 4 K, H, W]. Its anchors are numbered by
// row, column and k.
struct Level {
  int64_t shapes;         // K
  int64_t height, width;  // H, W
  int64_t first;          // of its anchors among those of all levels
  int64_t top;            // how many of them go on
  int64_t first_top;      // of those among those of all levels

  int64_t positions() const { return height * width; }
  int64_t anchors() const { return shapes * positions(); }
};

struct Pyramid {
  std::vector<Level> levels;
  int64_t images = 0;
  int64_t anchors = 0;  // of an image
  int64_t top = 0;      // of an image

  int64_t longest_top() const {
    int64_t longest = 0;
    for (const Level& level : levels) longest = std::max(longest, level.top);
    return longest;
  }
};

inline Pyramid check_generate_proposals(const std::vector<Tensor>& logits,
                                        const std::vector<Tensor>& deltas, const Tensor& anchors,
                                        const Tensor& image_sizes, int64_t pre_nms_top_n,
                                        int64_t post_nms_top_n, const DecodingOptions& options) {
  const char* op = "generate_proposals";
  RCNN_CHECK(!logits.empty() && logits.size() == deltas.size(), op,
             ": expected logits and deltas of the same levels, at least one, got ", logits.size(),
             " and ", deltas.size());
  check_most(pre_nms_top_n, op, "pre_nms_top_n");
  check_most(post_nms_top_n, op, "post_nms_top_n");
  options.check(op);
  Pyramid pyramid;
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
    Level level{map.size(1), map.size(2), map.size(3), pyramid.anchors, 0, pyramid.top};
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

// logits: [R, K], deltas: [R, 4 K] or [R, 4], rois: [R, 4], image_ids: [R] int64
inline void check_postprocess_detections(const Tensor& logits, const Tensor& deltas,
                                         const Tensor& rois, const Tensor& image_ids,
                                         const Tensor& image_sizes, int64_t detections_per_image,
                                         const DecodingOptions& options) {
  const char* op = "postprocess_detections";
  check_floating(logits, op, "logits");
  RCNN_CHECK(logits.dim() == 2 && logits.size(1) > 0, op, ": expected logits of shape [R, K], got ",
             shape_of(logits));
  const int64_t count = logits.size(0);
  const int64_t classes = logits.size(1);
  RCNN_CHECK(deltas.dim() == 2 && deltas.size(0) == count &&
                 (deltas.size(1) == 4 * classes || deltas.size(1) == 4),
             op, ": expected deltas of shape [", count, ", ", 4 * classes, "] or [", count,
             ", 4], got ", shape_of(deltas));
  RCNN_CHECK(deltas.scalar_type() == logits.scalar_type(), op,
             ": expected logits and deltas of one dtype, got ", name_of(logits.scalar_type()),
             " and ", name_of(deltas.scalar_type()));
  check_floating(rois, op, "rois");
  RCNN_CHECK(rois.dim() == 2 && rois.size(0) == count && rois.size(1) == 4, op,
             ": expected rois of shape [", count, ", 4], got ", shape_of(rois));
  RCNN_CHECK(image_ids.dim() == 1 && image_ids.size(0) == count, op,
             ": expected image_ids of shape [", count, "], got ", shape_of(image_ids));
  RCNN_CHECK(image_ids.scalar_type() == ScalarType::Long, op,
             ": expected image_ids to be int64, got ", name_of(image_ids.scalar_type()));
  check_same_device(deltas, logits, op, "deltas", "logits");
  check_same_device(rois, logits, op, "rois", "logits");
  check_same_device(image_ids, logits, op, "image_ids", "logits");
  check_image_sizes(image_sizes, logits, op);
  check_most(detections_per_image, op, "detections_per_image");
  options.check(op);
  RCNN_CHECK(count * classes <= std::numeric_limits<int32_t>::max(), op,
             ": expected at most 2^31 - 1 scores, got ", count, " times ", classes);
}

}  // namespace rcnn_ext
