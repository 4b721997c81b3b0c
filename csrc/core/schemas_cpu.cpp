// The schemas of all operators, so that a process without Python can run them: load this library
// into it (and that of the CUDA kernels, which defines no schemas), and the dispatcher knows them.
// Where the library is not built, rcnn_ext/ops defines the operators by the schemas that it states
// itself; tests/ops/test_operator_library.py compares the two.
#include <torch/csrc/stable/library.h>

#include <cstdint>

#if defined(__GNUC__)
// Since torch 2.12; the headers that are compiled for torch 2.11 do not declare them.
extern "C" {
__attribute__((weak)) AOTITorchError torch_library_def_with_tags(TorchLibraryHandle library,
                                                                 const char* schema,
                                                                 const int32_t* tags,
                                                                 int32_t num_tags);
__attribute__((weak)) int32_t torch_tag_pt2_compliant_tag();
}
#endif

namespace {

constexpr const char* kSchemas[] = {
    "batched_nms(Tensor boxes, Tensor scores, Tensor idxs, float iou_threshold) -> Tensor",
    "batched_nms_padded(Tensor boxes, Tensor scores, Tensor idxs, float iou_threshold, "
    "SymInt max_output) -> (Tensor, Tensor)",
    "batched_soft_nms(Tensor boxes, Tensor scores, Tensor idxs, float iou_threshold, float sigma, "
    "float score_threshold, int method) -> (Tensor, Tensor)",
    "box_iou(Tensor boxes1, Tensor boxes2, int measure, float eps) -> Tensor",
    "box_iou_backward(Tensor grad, Tensor boxes1, Tensor boxes2, int measure, float eps) "
    "-> (Tensor, Tensor)",
    "conv3x3_winograd(Tensor x, Tensor packed, Tensor? bias, Tensor? other, bool relu, int tile, "
    "int out_channels) -> Tensor",
    "conv3x3_winograd_out(Tensor(a!) out, Tensor x, Tensor packed, Tensor? bias, Tensor? other, "
    "bool relu, int tile) -> ()",
    "generate_proposals(Tensor[] logits, Tensor[] deltas, Tensor anchors, Tensor image_sizes, "
    "int pre_nms_top_n, int post_nms_top_n, float iou_threshold, float score_threshold, "
    "float min_size, float[] weights, float[] means, float max_log_ratio) "
    "-> (Tensor, Tensor, Tensor)",
    "match_boxes(Tensor gt_boxes, SymInt[] gt_counts, Tensor boxes, SymInt[] box_counts, "
    "float high_threshold, float low_threshold, bool allow_low_quality_matches) "
    "-> (Tensor, Tensor)",
    "multiscale_roi_align(Tensor[] inputs, Tensor rois, float[] spatial_scales, "
    "int pooled_height, int pooled_width, int sampling_ratio, bool aligned, "
    "float canonical_scale, int canonical_level) -> Tensor",
    "multiscale_roi_align_backward(Tensor grad, Tensor rois, float[] spatial_scales, "
    "int pooled_height, int pooled_width, SymInt batch_size, SymInt channels, SymInt[] heights, "
    "SymInt[] widths, int sampling_ratio, bool aligned, float canonical_scale, "
    "int canonical_level, bool channels_last) -> Tensor[]",
    "nms(Tensor boxes, Tensor scores, float iou_threshold) -> Tensor",
    "nms_padded(Tensor boxes, Tensor scores, float iou_threshold, SymInt max_output) "
    "-> (Tensor, Tensor)",
    "non_max_merging(Tensor boxes, Tensor scores, Tensor idxs, float threshold, int metric) "
    "-> (Tensor, Tensor, Tensor)",
    "postprocess_detections(Tensor logits, Tensor deltas, Tensor rois, Tensor image_ids, "
    "Tensor image_sizes, float score_threshold, float iou_threshold, int detections_per_image, "
    "float min_size, float[] weights, float[] means, float max_log_ratio) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    "roi_align(Tensor input, Tensor rois, float spatial_scale, int pooled_height, "
    "int pooled_width, int sampling_ratio, bool aligned) -> Tensor",
    "roi_align_backward(Tensor grad, Tensor rois, float spatial_scale, int pooled_height, "
    "int pooled_width, SymInt batch_size, SymInt channels, SymInt height, SymInt width, "
    "int sampling_ratio, bool aligned, bool channels_last) -> Tensor",
    "roi_pool(Tensor input, Tensor rois, float spatial_scale, int pooled_height, "
    "int pooled_width) -> (Tensor, Tensor)",
    "roi_pool_backward(Tensor grad, Tensor argmax, Tensor rois, float spatial_scale, "
    "SymInt batch_size, SymInt channels, SymInt height, SymInt width, bool channels_last) "
    "-> Tensor",
    "soft_nms(Tensor boxes, Tensor scores, float iou_threshold, float sigma, "
    "float score_threshold, int method) -> (Tensor, Tensor)",
};

// The definitions of this library, for as long as it is loaded. A fragment, so that other libraries
// can add operators to the namespace, as rcnn_ext/ops does for those that are not listed here.
class Definitions {
 public:
  Definitions() {
    STABLE_TORCH_ERROR_CODE_CHECK(
        aoti_torch_library_init_fragment("rcnn_ext", __FILE__, __LINE__, &library_));
    // An operator that another library has defined before stays as it is: PyTorch logs that, and an
    // exception would end the process here, where the library is being loaded.
    for (const char* schema : kSchemas) define(schema);
  }
  ~Definitions() { aoti_torch_delete_library_object(library_); }
  Definitions(const Definitions&) = delete;
  Definitions& operator=(const Definitions&) = delete;

 private:
  // With the tag pt2_compliant_tag where the torch of this process can set tags: torch.compile may
  // be told to take no operators without it.
  void define(const char* schema) {
#if defined(__GNUC__)
    if (torch_library_def_with_tags && torch_tag_pt2_compliant_tag) {
      const int32_t tag = torch_tag_pt2_compliant_tag();
      torch_library_def_with_tags(library_, schema, &tag, 1);
      return;
    }
#endif
    aoti_torch_library_def(library_, schema);
  }

  TorchLibraryHandle library_ = nullptr;
};

const Definitions kDefinitions;

}  // namespace
