// CUDA's vector types, with the alignment that the device asks for.
#pragma once

struct uint3 {
  unsigned x, y, z;
};

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

#define RCNN_VECTORS(Scalar, name)                                                  \
  struct alignas(2 * sizeof(Scalar)) name##2 { Scalar x, y; };                      \
  struct name##3 { Scalar x, y, z; };                                               \
  struct alignas(4 * sizeof(Scalar) < 16 ? 4 * sizeof(Scalar) : 16) name##4 {       \
    Scalar x, y, z, w;                                                              \
  };                                                                                \
  inline name##2 make_##name##2(Scalar x, Scalar y) { return {x, y}; }              \
  inline name##3 make_##name##3(Scalar x, Scalar y, Scalar z) { return {x, y, z}; } \
  inline name##4 make_##name##4(Scalar x, Scalar y, Scalar z, Scalar w) { return {x, y, z, w}; }

RCNN_VECTORS(signed char, char)
RCNN_VECTORS(unsigned char, uchar)
RCNN_VECTORS(short, short)
RCNN_VECTORS(unsigned short, ushort)
RCNN_VECTORS(int, int)
RCNN_VECTORS(long long, longlong)
RCNN_VECTORS(unsigned long long, ulonglong)
RCNN_VECTORS(float, float)
RCNN_VECTORS(double, double)
#undef RCNN_VECTORS

struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint3 make_uint3(unsigned x, unsigned y, unsigned z) { return {x, y, z}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
