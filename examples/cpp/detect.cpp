// Finds objects in a picture with a package that `rcnn-ext export RUN --format aoti` wrote, and
// with LibTorch alone: no Python, and no code of the models.
//
//   detect PACKAGE OPERATORS [PICTURE HEIGHT WIDTH]
//
// PACKAGE is the package, OPERATORS the library of the operators (rcnn_ext/_C.abi3.so of the
// installed package), and PICTURE a file of float32 in [0, 1], [3, HEIGHT, WIDTH] in RGB; without
// it a picture of two squares is made. A line of output is one object: class, score, x1, y1, x2, y2
// in pixels of the picture.
#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>
#include <c10/util/Exception.h>
#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <exception>
#include <fstream>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <vector>

namespace {

using Metadata = std::unordered_map<std::string, std::string>;

at::Tensor read_picture(const char* path, int64_t height, int64_t width) {
  at::Tensor picture = at::empty({3, height, width}, at::kFloat);
  std::ifstream file(path, std::ios::binary);
  file.read(static_cast<char*>(picture.mutable_data_ptr()),
            static_cast<std::streamsize>(picture.nbytes()));
  if (!file || file.peek() != std::ifstream::traits_type::eof()) {
    throw std::runtime_error(std::string(path) + " does not hold " +
                             std::to_string(picture.numel()) + " numbers of type float32");
  }
  return picture;
}

at::Tensor make_picture() {
  at::Tensor picture = at::full({3, 120, 160}, 0.5);
  picture[0].slice(0, 20, 70).slice(1, 30, 80).fill_(1.0);
  picture[2].slice(0, 60, 110).slice(1, 90, 150).fill_(0.0);
  return picture;
}

// The size that the model was trained to see a picture in: the package takes any, and finds best in
// this one.
std::vector<int64_t> choose_size(const Metadata& metadata, const at::Tensor& picture) {
  if (metadata.count("fixed_width")) {
    return {std::stoll(metadata.at("fixed_height")), std::stoll(metadata.at("fixed_width"))};
  }
  const auto height = static_cast<double>(picture.size(1));
  const auto width = static_cast<double>(picture.size(2));
  const double scale = std::min(std::stod(metadata.at("min_size")) / std::min(height, width),
                                std::stod(metadata.at("max_size")) / std::max(height, width));
  return {static_cast<int64_t>(std::max(1.0, std::floor(height * scale))),
          static_cast<int64_t>(std::max(1.0, std::floor(width * scale)))};
}

void detect(torch::inductor::AOTIModelPackageLoader& package, const at::Tensor& picture) {
  const Metadata metadata = package.get_metadata();
  const std::vector<int64_t> size = choose_size(metadata, picture);
  const at::Tensor images =
      at::upsample_bilinear2d(picture.unsqueeze(0), size, /*align_corners=*/false);
  const at::Tensor sizes = at::tensor({size[0], size[1]}, at::kFloat).unsqueeze(0);

  // A batch of one: boxes [1, D, 4], scores [1, D], labels [1, D], and the count of those found
  // [1].
  const std::vector<at::Tensor> found = package.run({images, sizes});
  const auto x_ratio = static_cast<float>(size[1]) / static_cast<float>(picture.size(2));
  const auto y_ratio = static_cast<float>(size[0]) / static_cast<float>(picture.size(1));
  const at::Tensor boxes = found[0][0] / at::tensor({x_ratio, y_ratio, x_ratio, y_ratio});
  const at::Tensor scores = found[1][0];
  const at::Tensor labels = found[2][0];
  const auto box = boxes.accessor<float, 2>();
  for (int64_t i = 0; i < found[3][0].item<int64_t>(); ++i) {
    const std::string label = std::to_string(labels[i].item<int64_t>());
    std::printf("%s\t%.6f\t%.4f\t%.4f\t%.4f\t%.4f\n", metadata.at("class." + label).c_str(),
                scores[i].item<float>(), box[i][0], box[i][1], box[i][2], box[i][3]);
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3 && argc != 6) {
    std::fprintf(stderr, "usage: %s PACKAGE OPERATORS [PICTURE HEIGHT WIDTH]\n", argv[0]);
    return 2;
  }
  // The library registers its operators with PyTorch's dispatcher, where the package looks for
  // them.
  if (dlopen(argv[2], RTLD_NOW | RTLD_GLOBAL) == nullptr) {
    std::fprintf(stderr, "%s: cannot load the operators: %s\n", argv[0], dlerror());
    return 1;
  }
  try {
    const c10::InferenceMode without_gradients;
    torch::inductor::AOTIModelPackageLoader package(argv[1]);
    detect(package, argc == 6 ? read_picture(argv[3], std::stoll(argv[4]), std::stoll(argv[5]))
                              : make_picture());
  } catch (const c10::Error& error) {
    std::fprintf(stderr, "%s: %s\n", argv[0], error.what_without_backtrace());
    return 1;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s: %s\n", argv[0], error.what());
    return 1;
  }
  return 0;
}
