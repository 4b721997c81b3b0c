// Proposals of a whole batch on the CPU. Contract: rcnn_ext/ops/generate_proposals.py.
//
// The pre_nms_top_n anchors of each level are selected by their logits alone, in the memory layout
// of the head's output, and only those are decoded. NMS then runs per image, within each level.
// Exponentials and sigmoids are PyTorch's, so that a result has the bits of torchvision's.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <tuple>
#include <vector>

#include "../core/dispatch.h"
#include "../core/register.h"
#include "../core/sort_key.h"
#include "../core/stable_ops.h"
#include "../nms/nms_per_image_cpu.h"
#include "generate_proposals.h"

#define RCNN_TARGET_INCLUDE "../generate_proposals/generate_proposals_cpu-inl.h"
#include "../cpu/foreach_target.h"

namespace rcnn_ext {
namespace {

// Estimate, from a sample, a threshold that probably at least `top` logits reach; -infinity where a
// sample would not save time. An estimate that is too high costs a second pass, not correctness.
template <class T, class Stored>
T estimate_threshold(const Stored* logits, int64_t count, int64_t top,
                     std::vector<ScoreKey<T>>& sample) {
  constexpr int64_t kSampleSize = 2048;
  constexpr T kLowest = -std::numeric_limits<T>::infinity();
  // Three standard deviations above the expected number of wanted logits in the sample.
  const double mean = static_cast<double>(kSampleSize) * top / count;
  const auto rank = static_cast<int64_t>(mean + 3 * std::sqrt(mean) + 2);
  if (count < 4 * kSampleSize || rank >= kSampleSize / 2) return kLowest;
  sample.clear();
  for (int64_t i = 0; i < kSampleSize; ++i) {
    const int64_t at = i * count / kSampleSize;
    sample.push_back(
        ScoreKey<T>::make(descending_key(static_cast<T>(logits[at])), static_cast<uint32_t>(at)));
  }
  std::nth_element(sample.begin(), sample.begin() + rank, sample.end());
  return static_cast<T>(logits[sample[rank].index()]);
}

// The keys of the `top` highest logits, in descending order of the logit, equal ones by anchor
// index.
template <class T, class Stored>
void select_top_anchors(const Stored* logits, int64_t planes, int64_t plane_size, int64_t top,
                        std::vector<ScoreKey<T>>& found) {
  const int64_t count = planes * plane_size;
  const T threshold = estimate_threshold<T>(logits, count, top, found);
  const auto collect_from = [&](T min_logit) {
    found.clear();
    RCNN_DYNAMIC_DISPATCH(collect_anchors(logits, planes, plane_size, min_logit, found));
  };
  collect_from(threshold);
  if (static_cast<int64_t>(found.size()) < top) {
    collect_from(-std::numeric_limits<T>::infinity());
  }
  if (static_cast<int64_t>(found.size()) > 4 * top) {
    // Many equal logits: select before sorting.
    std::nth_element(found.begin(), found.begin() + top, found.end());
    found.resize(top);
  }
  const auto size = static_cast<int64_t>(found.size());
  found.resize(2 * size);
  ScoreKey<T>* sorted = radix_sort(found.data(), found.data() + size, size);
  // The sort is stable, but the keys were collected in the order of memory, not of anchor indices.
  for (int64_t begin = 0; begin < size;) {
    int64_t end = begin + 1;
    while (end < size && sorted[end].key() == sorted[begin].key()) ++end;
    if (end - begin > 1) std::sort(sorted + begin, sorted + end);
    begin = end;
  }
  if (sorted != found.data()) std::copy(sorted, sorted + top, found.data());
  found.resize(top);
}

struct DeltaStrides {
  int64_t image, channel, row, column;
  explicit DeltaStrides(const Tensor& map)
      : image(map.strides()[0]),
        channel(map.strides()[1]),
        row(map.strides()[2]),
        column(map.strides()[3]) {}
};

// The selected anchors and their predictions, [N, top] each.
template <class T>
struct SelectedAnchors {
  uint32_t* anchors;
  T* logits;
  T* dx;
  T* dy;
  T* log_ratios;  // [N, top, 2]
};

template <class Stored>
void decode_selected(const AnchorPyramid& pyramid, const std::vector<DenseMap>& logits,
                     const std::vector<Tensor>& deltas, const BoxCoder<accumulate_t<Stored>>& coder,
                     const SelectedAnchors<accumulate_t<Stored>>& selected) {
  using T = accumulate_t<Stored>;
  const auto levels = static_cast<int64_t>(pyramid.levels.size());
  torch::stable::parallel_for(0, pyramid.images * levels, 1, [&](int64_t begin, int64_t end) {
    std::vector<ScoreKey<T>> keys;
    for (int64_t task = begin; task < end; ++task) {
      const int64_t image = task % pyramid.images;
      const int64_t l = task / pyramid.images;
      const AnchorLevel& level = pyramid.levels[l];
      if (level.top == 0) continue;
      const auto* in_level = logits[l].tensor.const_data_ptr<Stored>() + image * level.anchors();
      const int64_t planes = logits[l].channels_last ? 1 : level.anchors_per_position;
      select_top_anchors<T>(in_level, planes, level.anchors() / planes, level.top, keys);

      const DeltaStrides strides(deltas[l]);
      const auto* delta_data = deltas[l].const_data_ptr<Stored>() + image * strides.image;
      for (int64_t i = 0; i < level.top; ++i) {
        const int64_t anchor = keys[i].index();
        const int64_t k = anchor % level.anchors_per_position;
        const int64_t position = anchor / level.anchors_per_position;
        const int64_t row = position / level.width;
        const int64_t column = position % level.width;
        const BoxDeltas<T> box_deltas = load_deltas(
            delta_data + 4 * k * strides.channel + row * strides.row + column * strides.column,
            strides.channel, coder);
        const int64_t at = image * pyramid.top + level.first_top + i;
        selected.anchors[at] = static_cast<uint32_t>(anchor);
        selected.logits[at] =
            static_cast<T>(in_level[planes == 1 ? anchor : k * level.positions() + position]);
        selected.dx[at] = box_deltas.dx;
        selected.dy[at] = box_deltas.dy;
        selected.log_ratios[2 * at] = box_deltas.log_width;
        selected.log_ratios[2 * at + 1] = box_deltas.log_height;
      }
    }
  });
}

// logits: [N, K_l, H_l, W_l], deltas: [N, 4 K_l, H_l, W_l], anchors: [A, 4] or [N, A, 4],
// image_sizes: [N, 2] -> boxes [N, P, 4], scores [N, P], counts [N]
std::tuple<Tensor, Tensor, Tensor> generate_proposals_cpu(
    const std::vector<Tensor>& logits, const std::vector<Tensor>& deltas, const Tensor& anchors,
    const Tensor& image_sizes, int64_t pre_nms_top_n, int64_t post_nms_top_n, double iou_threshold,
    double score_threshold, double min_size, const std::vector<double>& weights,
    const std::vector<double>& means, double max_log_ratio) {
  const DecodingOptions options{weights, means, max_log_ratio, min_size};
  const AnchorPyramid pyramid = check_generate_proposals(logits, deltas, anchors, image_sizes,
                                                         pre_nms_top_n, post_nms_top_n, options);
  const int64_t images = pyramid.images;
  const int64_t top = pyramid.top;
  const int64_t max_proposals = std::min(post_nms_top_n, top);
  const ScalarType dtype = logits[0].scalar_type();
  const ScalarType computed = accumulate_dtype(dtype);
  Tensor boxes = empty_on_device_of(logits[0], {images, max_proposals, 4}, computed);
  Tensor scores = empty_on_device_of(logits[0], {images, max_proposals}, computed);
  Tensor counts = empty_on_device_of(logits[0], {images}, ScalarType::Long);
  auto* count_of = counts.mutable_data_ptr<int64_t>();
  if (max_proposals == 0 || images == 0) {
    std::fill(count_of, count_of + images, int64_t{0});
    return {boxes, scores, counts};
  }
  std::vector<DenseMap> maps;
  for (const Tensor& map : logits) maps.push_back(dense_map(map));
  const Tensor all_anchors = contiguous_as(anchors, computed);
  const Tensor sizes = contiguous_as(image_sizes, computed);

  dispatch_floating(dtype, "generate_proposals", [&](auto tag) {
    using Stored = type_of<decltype(tag)>;
    using T = accumulate_t<Stored>;
    Tensor selected_logits = empty_on_device_of(logits[0], {images, top}, computed);
    Tensor log_ratios = empty_on_device_of(logits[0], {images, top, 2}, computed);
    std::vector<T> shifts(2 * images * top);
    std::vector<uint32_t> anchor_indices(images * top);
    const SelectedAnchors<T> selected{anchor_indices.data(), selected_logits.mutable_data_ptr<T>(),
                                      shifts.data(), shifts.data() + images * top,
                                      log_ratios.mutable_data_ptr<T>()};
    decode_selected<Stored>(pyramid, maps, deltas, options.coder<T>(), selected);
    const Tensor probabilities = sigmoid(selected_logits);
    const Tensor ratios = exponential(log_ratios);
    const auto* score_of = probabilities.const_data_ptr<T>();
    const auto* ratio_of = ratios.const_data_ptr<T>();
    const auto* size_of = sizes.const_data_ptr<T>();
    const int64_t anchor_stride = anchors.dim() == 3 ? 4 * pyramid.anchors : 0;
    const auto min_score = static_cast<T>(score_threshold);
    const auto min_side = static_cast<T>(min_size);
    auto* out_boxes = reinterpret_cast<Box<T>*>(boxes.mutable_data_ptr<T>());
    auto* out_scores = scores.mutable_data_ptr<T>();

    torch::stable::parallel_for(0, images, 1, [&](int64_t begin, int64_t end) {
      PerImageNms<T> nms(iou_threshold, static_cast<int64_t>(pyramid.levels.size()));
      for (int64_t n = begin; n < end; ++n) {
        nms.clear();
        const auto* anchors_of = all_anchors.const_data_ptr<T>() + n * anchor_stride;
        uint32_t group = 0;
        for (const AnchorLevel& level : pyramid.levels) {
          for (int64_t i = 0; i < level.top; ++i) {
            const int64_t at = n * top + level.first_top + i;
            if (!(score_of[at] >= min_score)) continue;
            const BoxDeltas<T> box_deltas{selected.dx[at], selected.dy[at], T(0), T(0)};
            const Box<T> anchor =
                load_box<T>(anchors_of + 4 * (level.first_anchor + selected.anchors[at]));
            const Box<T> box =
                clip_box(decode_box(anchor, box_deltas, ratio_of[2 * at], ratio_of[2 * at + 1]),
                         size_of[2 * n + 1], size_of[2 * n]);
            if (has_min_size(box, min_side)) nms.add(box, score_of[at], group, 0);
          }
          ++group;
        }
        count_of[n] = nms.run(max_proposals,
                              [&](int64_t place, const Box<T>& box, T score, uint32_t, uint32_t) {
                                out_boxes[n * max_proposals + place] = box;
                                out_scores[n * max_proposals + place] = score;
                              });
        std::fill(out_boxes + n * max_proposals + count_of[n], out_boxes + (n + 1) * max_proposals,
                  Box<T>{});
        std::fill(out_scores + n * max_proposals + count_of[n],
                  out_scores + (n + 1) * max_proposals, T(0));
      }
    });
  });
  return {boxes, scores, counts};
}

}  // namespace
}  // namespace rcnn_ext

STABLE_TORCH_LIBRARY_IMPL(rcnn_ext, CPU, m) {
  RCNN_REGISTER(m, "generate_proposals", generate_proposals_cpu, logits, deltas, anchors,
                image_sizes);
}
