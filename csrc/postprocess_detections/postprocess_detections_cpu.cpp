// Detections of a whole batch on the CPU. Contract: rcnn_ext/ops/postprocess_detections.py.
//
// Candidates, a RoI and a class each, are those whose probability is above the threshold; only they
// are decoded. NMS then runs per image, within each class. Exponentials and the softmax are
// PyTorch's, so that a result has the bits of torchvision's.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <tuple>
#include <vector>

#include "../core/dispatch.h"
#include "../core/register.h"
#include "../core/stable_ops.h"
#include "../nms/nms_per_image_cpu.h"
#include "postprocess_detections.h"

#define RCNN_TARGET_INCLUDE "../postprocess_detections/postprocess_detections_cpu-inl.h"
#include "../cpu/foreach_target.h"

namespace rcnn_ext {
namespace {

// The candidates, as positions in [R, K], grouped by image; starts[n] is the first one of image n.
struct CandidatesByImage {
  std::vector<uint32_t> positions;
  std::vector<int64_t> starts;

  CandidatesByImage(const std::vector<uint32_t>& found, const int64_t* image_ids, int64_t images,
                    int64_t classes)
      : positions(found.size()), starts(images + 1) {
    for (const uint32_t position : found) ++starts[image_ids[position / classes] + 1];
    for (int64_t n = 0; n < images; ++n) starts[n + 1] += starts[n];
    std::vector<int64_t> next(starts.begin(), starts.end() - 1);
    for (const uint32_t position : found) {
      positions[next[image_ids[position / classes]]++] = position;
    }
  }
};

// logits: [R, K], deltas: [R, 4 K] or [R, 4], rois: [R, 4], image_ids: [R] int64,
// image_sizes: [N, 2] -> boxes [N, D, 4], scores [N, D], labels [N, D], RoIs [N, D], counts [N]
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> postprocess_detections_cpu(
    const Tensor& logits, const Tensor& deltas, const Tensor& rois, const Tensor& image_ids,
    const Tensor& image_sizes, double score_threshold, double iou_threshold,
    int64_t detections_per_image, double min_size, const std::vector<double>& weights,
    const std::vector<double>& means, double max_log_ratio) {
  const DecodingOptions options{weights, means, max_log_ratio, min_size};
  check_postprocess_detections(logits, deltas, rois, image_ids, image_sizes, detections_per_image,
                               options);
  const int64_t count = logits.size(0);
  const int64_t classes = logits.size(1);
  const int64_t images = image_sizes.size(0);
  const int64_t max_detections = std::min(detections_per_image, count * (classes - 1));
  const DetectionTensors out = empty_detections(logits, images, max_detections);
  auto* count_of = out.counts.mutable_data_ptr<int64_t>();
  if (max_detections == 0 || images == 0) {
    std::fill(count_of, count_of + images, int64_t{0});
    return out.all();
  }
  const DetectionInputs in = dense_inputs(logits, deltas, rois, image_ids, image_sizes);

  dispatch_floating(logits.scalar_type(), "postprocess_detections", [&](auto tag) {
    using Stored = type_of<decltype(tag)>;
    using T = accumulate_t<Stored>;
    const auto* score_of = in.probabilities.const_data_ptr<T>();
    const auto* image_of = in.image_ids.const_data_ptr<int64_t>();
    const auto* delta_of = in.deltas.const_data_ptr<Stored>();
    const auto* roi_of = in.rois.const_data_ptr<T>();
    const auto* size_of = in.sizes.const_data_ptr<T>();
    std::vector<uint32_t> found;
    RCNN_DYNAMIC_DISPATCH(collect_candidates(
        score_of, count, classes, static_cast<T>(score_threshold), image_of, images, found));
    const CandidatesByImage candidates(found, image_of, images, classes);
    const auto candidate_count = static_cast<int64_t>(found.size());
    const bool per_class = deltas.size(1) == 4 * classes;
    const BoxCoder<T> coder = options.coder<T>();
    Tensor log_ratios = empty_on_device_of(logits, {candidate_count, 2}, in.sizes.scalar_type());
    auto* logarithms = log_ratios.mutable_data_ptr<T>();
    std::vector<BoxDeltas<T>> deltas_of(candidate_count);
    for (int64_t i = 0; i < candidate_count; ++i) {
      const int64_t position = candidates.positions[i];
      deltas_of[i] =
          load_deltas(delta_of + 4 * (per_class ? position : position / classes), 1, coder);
      logarithms[2 * i] = deltas_of[i].log_width;
      logarithms[2 * i + 1] = deltas_of[i].log_height;
    }
    const Tensor ratios = exponential(log_ratios);
    const auto* ratio_of = ratios.const_data_ptr<T>();
    const auto min_side = static_cast<T>(min_size);
    auto* out_boxes = reinterpret_cast<Box<T>*>(out.boxes.mutable_data_ptr<T>());
    auto* out_scores = out.scores.mutable_data_ptr<T>();
    auto* out_labels = out.labels.mutable_data_ptr<int64_t>();
    auto* out_rois = out.rois.mutable_data_ptr<int64_t>();

    torch::stable::parallel_for(0, images, 1, [&](int64_t begin, int64_t end) {
      PerImageNms<T> nms(iou_threshold, classes);
      for (int64_t n = begin; n < end; ++n) {
        nms.clear();
        for (int64_t i = candidates.starts[n]; i < candidates.starts[n + 1]; ++i) {
          const int64_t position = candidates.positions[i];
          const int64_t roi = position / classes;
          const Box<T> box = clip_box(decode_box(load_box<T>(roi_of + 4 * roi), deltas_of[i],
                                                 ratio_of[2 * i], ratio_of[2 * i + 1]),
                                      size_of[2 * n + 1], size_of[2 * n]);
          if (has_min_size(box, min_side)) {
            nms.add(box, score_of[position], static_cast<uint32_t>(position % classes),
                    static_cast<uint32_t>(roi));
          }
        }
        count_of[n] = nms.run(max_detections, [&](int64_t place, const Box<T>& box, T score,
                                                  uint32_t label, uint32_t roi) {
          const int64_t at = n * max_detections + place;
          out_boxes[at] = box;
          out_scores[at] = score;
          out_labels[at] = label;
          out_rois[at] = roi;
        });
        const int64_t first = n * max_detections + count_of[n];
        const int64_t last = (n + 1) * max_detections;
        std::fill(out_boxes + first, out_boxes + last, Box<T>{});
        std::fill(out_scores + first, out_scores + last, T(0));
        std::fill(out_labels + first, out_labels + last, int64_t{0});
        std::fill(out_rois + first, out_rois + last, int64_t{0});
      }
    });
  });
  return out.all();
}

}  // namespace
}  // namespace rcnn_ext

STABLE_TORCH_LIBRARY_IMPL(rcnn_ext, CPU, m) {
  RCNN_REGISTER(m, "postprocess_detections", postprocess_detections_cpu, logits, deltas, rois,
                image_ids, image_sizes);
}
