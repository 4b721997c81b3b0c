// Python module of the native selective search. NumPy in and out, no torch; the GIL is released
// while it computes, so that images can be searched in several threads.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cmath>
#include <optional>
#include <stdexcept>
#include <string>

#include "../cpu/isa.h"
#include "felzenszwalb.h"
#include "grouping.h"
#include "neighbors.h"
#include "selectivesearch_compat.h"
#include "uijlings.h"

namespace py = pybind11;
namespace rcnn_ext::selective_search {
namespace {

template <class T>
using Contiguous = py::array_t<T, py::array::c_style>;

template <class T>
Image<T> view(const Contiguous<T>& image, double factor) {
  if (image.ndim() != 3 || image.shape(2) != 3) {
    throw std::invalid_argument("image: expected the shape (height, width, 3)");
  }
  const int64_t pixels = static_cast<int64_t>(image.shape(0)) * image.shape(1);
  if (pixels < 1 || pixels > kMaxPixels || image.shape(0) > kMaxPixels) {
    throw std::invalid_argument("image: expected 1 to 2^28 pixels, got " + std::to_string(pixels));
  }
  return {image.data(), static_cast<int>(image.shape(0)), static_cast<int>(image.shape(1)), factor};
}

void check(const Smoothing& smoothing) {
  if (smoothing.weights.empty() || smoothing.weights.size() > (1u << 20)) {
    throw std::invalid_argument("weights: expected 1 to 2^20 weights, the middle one first");
  }
}

template <class T>
py::array_t<T> copy_of(const T* values, std::vector<py::ssize_t> shape) {
  return py::array_t<T>(std::move(shape), values);
}

py::array_t<int32_t> labels_of(const Segmentation& segmentation, int height, int width) {
  return copy_of(segmentation.labels.data(), {height, width});
}

py::array_t<int32_t> boxes_of(const std::vector<PixelBox>& boxes) {
  static_assert(sizeof(PixelBox) == 4 * sizeof(int32_t));
  return copy_of(reinterpret_cast<const int32_t*>(boxes.data()),
                 {static_cast<py::ssize_t>(boxes.size()), 4});
}

py::array_t<int32_t> pairs_of(const std::vector<Pair>& pairs) {
  py::array_t<int32_t> result({static_cast<py::ssize_t>(pairs.size()), py::ssize_t{2}});
  auto values = result.mutable_unchecked<2>();
  for (size_t i = 0; i < pairs.size(); ++i) {
    values(i, 0) = pairs[i].first;
    values(i, 1) = pairs[i].second;
  }
  return result;
}

template <class T>
py::tuple selectivesearch_compat(const Contiguous<T>& array, double factor,
                                 std::vector<double> weights, double scale, int64_t min_size) {
  const Image<T> image = view(array, factor);
  const Smoothing smoothing{std::move(weights)};
  check(smoothing);
  Segmentation segmentation;
  std::vector<PixelBox> boxes;
  std::vector<int64_t> sizes;
  std::vector<Pair> merged;
  {
    py::gil_scoped_release release;
    segmentation = std::move(segment(image, smoothing, {{scale, min_size}}).front());
    SelectivesearchRegions regions(image, segmentation);
    merged = group(regions, segmentation.count, nested_corners(regions.boxes()));
    boxes = regions.boxes();
    sizes = regions.sizes();
  }
  return py::make_tuple(labels_of(segmentation, image.height, image.width), boxes_of(boxes),
                        copy_of(sizes.data(), {static_cast<py::ssize_t>(sizes.size())}),
                        pairs_of(merged));
}

template <class T>
py::array_t<int32_t> felzenszwalb(const Contiguous<T>& array, double factor,
                                  std::vector<double> weights, double scale, int64_t min_size,
                                  std::optional<int64_t> tile_pixels) {
  const Image<T> image = view(array, factor);
  const Smoothing smoothing{std::move(weights)};
  check(smoothing);
  TileSizes sizes;
  if (tile_pixels) {
    if (*tile_pixels < 1) throw std::invalid_argument("tile_pixels: expected at least 1");
    sizes = {*tile_pixels, *tile_pixels, 4 * *tile_pixels};
  }
  Segmentation segmentation;
  {
    py::gil_scoped_release release;
    segmentation = std::move(segment(image, smoothing, {{scale, min_size}}, sizes).front());
  }
  return labels_of(segmentation, image.height, image.width);
}

struct Grouping {
  std::vector<PixelBox> boxes;
  std::vector<int64_t> sizes;
};

// One grouping for each color space, scale and sum of similarities, in this order.
template <class T>
std::vector<Grouping> search_all(const Image<T>& rgb, const std::vector<std::string>& spaces,
                                 const Smoothing& smoothing, const Smoothing& before_derivatives,
                                 const std::vector<SegmentScale>& scales,
                                 const std::vector<unsigned>& strategies) {
  std::vector<Grouping> found;
  for (const std::string& space : spaces) {
    const ColorImage colors = convert(rgb, space);
    const Image<double> image{colors.pixels.data(), rgb.height, rgb.width, 1.0 / 255};
    const PixelCodes codes = code_pixels(colors, rgb.height, rgb.width, before_derivatives);
    for (const Segmentation& segmentation : segment(image, smoothing, scales)) {
      const UijlingsRegions segments(codes, segmentation);
      const std::vector<Pair> neighbors = adjacent_segments(segmentation, rgb.height, rgb.width);
      for (const unsigned strategy : strategies) {
        UijlingsRegions regions = segments;
        regions.use(strategy);
        group(regions, segmentation.count, neighbors);
        found.push_back({regions.boxes(), regions.sizes()});
      }
    }
  }
  return found;
}

template <class T>
py::list diversified_search(const Contiguous<T>& array, double factor,
                            std::vector<std::string> spaces, std::vector<double> weights,
                            std::vector<double> texture_weights,
                            std::vector<std::pair<double, int64_t>> scales,
                            std::vector<unsigned> strategies) {
  const Image<T> image = view(array, factor);
  const Smoothing smoothing{std::move(weights)};
  const Smoothing before_derivatives{std::move(texture_weights)};
  check(smoothing);
  check(before_derivatives);
  std::vector<SegmentScale> segment_scales;
  for (const auto& [scale, min_size] : scales) segment_scales.push_back({scale, min_size});
  std::vector<Grouping> found;
  {
    py::gil_scoped_release release;
    found = search_all(image, spaces, smoothing, before_derivatives, segment_scales, strategies);
  }
  py::list result;
  for (const Grouping& one : found) {
    result.append(
        py::make_tuple(boxes_of(one.boxes),
                       copy_of(one.sizes.data(), {static_cast<py::ssize_t>(one.sizes.size())})));
  }
  return result;
}

template <class T>
void define(py::module_& m) {
  const auto image = py::arg("image").noconvert();
  m.def("selectivesearch_compat", &selectivesearch_compat<T>, image, py::arg("factor"),
        py::arg("weights"), py::arg("scale"), py::arg("min_size"),
        "Searches as the selectivesearch package does: (labels, boxes, sizes, merged pairs).");
  m.def("felzenszwalb", &felzenszwalb<T>, image, py::arg("factor"), py::arg("weights"),
        py::arg("scale"), py::arg("min_size"), py::arg("tile_pixels") = py::none(),
        "Labels of the segments, [height, width]. They do not depend on how the image is cut.");
  m.def("diversified_search", &diversified_search<T>, image, py::arg("factor"), py::arg("spaces"),
        py::arg("weights"), py::arg("texture_weights"), py::arg("scales"), py::arg("strategies"),
        "Searches as the paper does: (boxes, sizes) for each color space, scale and strategy.");
}

}  // namespace
}  // namespace rcnn_ext::selective_search

PYBIND11_MODULE(_selective_search, m) {
  m.doc() = "Native selective search (rcnn_ext.selective_search).";
  rcnn_ext::selective_search::define<uint8_t>(m);
  rcnn_ext::selective_search::define<double>(m);
  m.attr("COLOR") = static_cast<unsigned>(rcnn_ext::selective_search::kColor);
  m.attr("TEXTURE") = static_cast<unsigned>(rcnn_ext::selective_search::kTexture);
  m.attr("SIZE") = static_cast<unsigned>(rcnn_ext::selective_search::kSize);
  m.attr("FILL") = static_cast<unsigned>(rcnn_ext::selective_search::kFill);
  m.def("instruction_set", [] { return rcnn_ext::name_of(rcnn_ext::active_isa()); });
  m.def("use_instruction_set", [](const std::string& name) { rcnn_ext::use_isa(name.c_str()); });
}
