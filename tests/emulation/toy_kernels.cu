// Small kernels for the tests of the emulator: some use one intrinsic each and say what they got,
// the others are broken in one way each.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <launch.h>

#include <map>
#include <stdexcept>
#include <string>

namespace {

struct Buffers {
  int* in;
  int* out;
  int count;  // numbers in each
};

__device__ int thread_number() {
  return static_cast<int>(threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z));
}

// --- Correct -----------------------------------------------------------------------------------

__global__ void order_kernel(Buffers b) { b.out[atomicAdd(b.in, 1)] = thread_number(); }

__global__ void blocks_kernel(Buffers b) {
  const unsigned block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  atomicAdd(&b.out[block], 1);
  if (thread_number() == 0) b.in[atomicAdd(&b.in[b.count - 1], 1)] = static_cast<int>(block);
}

__global__ void reverse_kernel(Buffers b) {
  int* const values = static_cast<int*>(rcnn_emulation::dynamic_shared());
  values[threadIdx.x] = b.in[threadIdx.x];
  __syncthreads();
  b.out[threadIdx.x] = values[blockDim.x - 1 - threadIdx.x];
}

__global__ void vote_kernel(Buffers b) {
  const int value = b.in[threadIdx.x];
  int* const out = b.out + 6 * threadIdx.x;
  out[0] = static_cast<int>(__ballot_sync(0xffffffffu, value > 0));
  out[1] = __any_sync(0xffffffffu, value > 0);
  out[2] = __all_sync(0xffffffffu, value > 0);
  out[3] = __syncthreads_count(value > 0);
  out[4] = __syncthreads_and(value > 0);
  out[5] = __syncthreads_or(value > 0);
}

__global__ void shuffle_kernel(Buffers b) {
  const int value = b.in[threadIdx.x];
  int* const out = b.out + 7 * threadIdx.x;
  out[0] = __shfl_sync(0xffffffffu, value, 3);
  out[1] = __shfl_sync(0xffffffffu, value, 5, 4);
  out[2] = __shfl_up_sync(0xffffffffu, value, 2);
  out[3] = __shfl_down_sync(0xffffffffu, value, 2, 8);
  out[4] = __shfl_xor_sync(0xffffffffu, value, 1);
  out[5] = static_cast<int>(__shfl_down_sync(0xffffffffu, double(value), 16));
  const float sum = __shfl_xor_sync(0xffffffffu, float(value), 31);
  out[6] = static_cast<int>(sum);
}

// Halves of a warp go their own ways, each with its own mask.
__global__ void halves_kernel(Buffers b) {
  const bool low = threadIdx.x % 32 < 16;
  const unsigned mask = low ? 0x0000ffffu : 0xffff0000u;
  int sum = b.in[threadIdx.x];
  if (low) {
    for (int step = 8; step > 0; step /= 2) sum += __shfl_xor_sync(mask, sum, step);
    __syncwarp(mask);
  } else {
    sum = __reduce_max_sync(mask, sum);
  }
  b.out[threadIdx.x] = sum;
}

__global__ void match_kernel(Buffers b) {
  const int value = b.in[threadIdx.x];
  int all = -1;
  int* const out = b.out + 3 * threadIdx.x;
  out[0] = static_cast<int>(__match_any_sync(0xffffffffu, value));
  out[1] = static_cast<int>(__match_all_sync(0xffffffffu, value, &all));
  out[2] = all;
}

__global__ void reduce_kernel(Buffers b) {
  const int value = b.in[threadIdx.x];
  const auto bits = static_cast<unsigned>(value);
  int* const out = b.out + 8 * threadIdx.x;
  out[0] = __reduce_add_sync(0xffffffffu, value);
  out[1] = __reduce_min_sync(0xffffffffu, value);
  out[2] = __reduce_max_sync(0xffffffffu, value);
  out[3] = static_cast<int>(__reduce_min_sync(0xffffffffu, bits));
  out[4] = static_cast<int>(__reduce_max_sync(0xffffffffu, bits));
  out[5] = static_cast<int>(__reduce_and_sync(0xffffffffu, bits));
  out[6] = static_cast<int>(__reduce_or_sync(0xffffffffu, bits));
  out[7] = static_cast<int>(__reduce_xor_sync(0xffffffffu, bits));
}

__global__ void bits_kernel(Buffers b) {
  const int value = b.in[threadIdx.x];
  int* const out = b.out + 6 * threadIdx.x;
  out[0] = __popc(static_cast<unsigned>(value));
  out[1] = __ffs(value);
  out[2] = __clz(value);
  out[3] = __clzll(value);
  out[4] = __float_as_int(__int_as_float(value));
  out[5] = (__activemask() >> (threadIdx.x % 32)) & 1;
}

__global__ void atomics_kernel(Buffers b) {
  const int value = b.in[threadIdx.x];
  atomicAdd(&b.out[0], value);
  atomicMin(&b.out[1], value);
  atomicMax(&b.out[2], value);
  atomicOr(&b.out[3], 1 << (threadIdx.x % 31));
  atomicInc(reinterpret_cast<unsigned*>(&b.out[4]), 1000u);
  atomicAdd(reinterpret_cast<float*>(&b.out[5]), 0.5f);
  atomicAdd(reinterpret_cast<unsigned long long*>(&b.out[6]), 0x100000001ull);
  atomicAdd(reinterpret_cast<__half2*>(&b.out[8]), __floats2half2_rn(1.0f, 2.0f));
  atomicAdd(reinterpret_cast<__nv_bfloat162*>(&b.out[9]), __floats2bfloat162_rn(1.0f, 2.0f));
  atomicAdd(reinterpret_cast<float4*>(&b.out[12]), make_float4(1.0f, 2.0f, 3.0f, 4.0f));
  int seen = b.out[10];  // a maximum by compare and swap
  while (value > seen) {
    const int before = atomicCAS(&b.out[10], seen, value);
    if (before == seen) break;
    seen = before;
  }
}

__global__ void vector_kernel(Buffers b) {
  const int4 value = __ldg(reinterpret_cast<const int4*>(b.in) + threadIdx.x);
  reinterpret_cast<int4*>(b.out)[threadIdx.x] = make_int4(value.w, value.z, value.y, value.x);
}

// --- Broken ------------------------------------------------------------------------------------

__global__ void no_barrier_kernel(Buffers b) {
  __shared__ int values[64];
  values[threadIdx.x] = b.in[threadIdx.x];
  b.out[threadIdx.x] = values[blockDim.x - 1 - threadIdx.x];
}

__global__ void unwritten_shared_kernel(Buffers b) {
  __shared__ int values[64];
  if (threadIdx.x % 2 == 0) values[threadIdx.x] = 0;
  __syncthreads();
  b.out[threadIdx.x] = values[threadIdx.x];
}

__global__ void stale_dynamic_shared_kernel(Buffers b) {
  int* const values = static_cast<int*>(rcnn_emulation::dynamic_shared());
  if (blockIdx.x == 0) values[threadIdx.x] = 1;
  b.out[threadIdx.x] = values[threadIdx.x];
}

__global__ void divergent_barrier_kernel(Buffers) {
  if (threadIdx.x != 7) __syncthreads();
}

__global__ void two_barriers_kernel(Buffers) {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}

__global__ void absent_lane_kernel(Buffers) {
  if (threadIdx.x == 5) {
    __syncthreads();
  } else {
    __ballot_sync(0xffffffffu, 1);
    __syncthreads();
  }
}

__global__ void exited_lane_kernel(Buffers) {
  if (threadIdx.x == 5) return;
  __any_sync(0xffffffffu, 1);
}

__global__ void unnamed_self_kernel(Buffers) { __ballot_sync(0x0000fffeu, 1); }

__global__ void masks_disagree_kernel(Buffers) {
  __ballot_sync(threadIdx.x % 32 == 3 ? 0x0000000fu : 0xffffffffu, 1);
}

__global__ void collectives_disagree_kernel(Buffers) {
  if (threadIdx.x % 2 == 0) {
    __ballot_sync(0xffffffffu, 1);
  } else {
    __any_sync(0xffffffffu, 1);
  }
}

__global__ void undefined_shuffle_kernel(Buffers b) {
  if (threadIdx.x < 16) b.out[threadIdx.x] = __shfl_sync(0x0000ffffu, 5, 20);
}

__global__ void misaligned_kernel(Buffers b) {
  const auto* values = reinterpret_cast<const float4*>(b.in + threadIdx.x);
  b.out[threadIdx.x] = static_cast<int>(values->x);
}

__global__ void misaligned_atomic_kernel(Buffers b) {
  atomicAdd(reinterpret_cast<unsigned long long*>(b.out + 1), 1ull);
}

__global__ void misaligned_vector_atomic_kernel(Buffers b) {
  atomicAdd(reinterpret_cast<float4*>(b.out + 2), make_float4(1.0f, 2.0f, 3.0f, 4.0f));
}

__global__ void read_behind_kernel(Buffers b) { b.out[0] = b.in[b.count]; }
__global__ void read_before_kernel(Buffers b) { b.out[0] = b.in[-1]; }
__global__ void read_far_kernel(Buffers b) { b.out[0] = b.in[b.count + 4096]; }
__global__ void write_behind_kernel(Buffers b) { b.out[b.count] = 0; }
__global__ void write_before_kernel(Buffers b) { b.out[-1] = 0; }

__global__ void shared_index_kernel(Buffers b) {
  __shared__ int values[4][8];
  for (int i = 0; i < 32; ++i) values[i / 8][i % 8] = i;
  b.out[0] = values[1][b.in[0]];  // 8 is the next row's: wrong, though inside the array
}

__global__ void shared_pointer_kernel(Buffers b) {
  __shared__ int values[32];
  __shared__ int others[32];
  int* const target = b.in[1] ? others : values;
  target[b.in[0]] = 1;
  b.out[0] = values[0] + others[0];
}

__global__ void dynamic_shared_end_kernel(Buffers b) {
  static_cast<int*>(rcnn_emulation::dynamic_shared())[b.in[0]] = 1;
}

__global__ void static_shared_kernel(Buffers b) {
  __shared__ char values[48 * 1024 + 1];
  values[threadIdx.x] = 0;
  b.out[0] = values[0];
}

__global__ void some_static_shared_kernel(Buffers b) {
  __shared__ char values[1024];
  values[threadIdx.x] = 0;
  b.out[0] = values[0];
}

__global__ void null_kernel(Buffers b) { b.out[0] = *reinterpret_cast<int*>(uintptr_t{16}); }
__global__ void divide_kernel(Buffers b) { b.out[0] = 1 / b.in[0]; }
__global__ void shift_kernel(Buffers b) { b.out[0] = 1 << b.in[0]; }
__global__ void overflow_kernel(Buffers b) { b.out[0] = b.in[0] + 2147483647; }
__global__ void cast_kernel(Buffers b) { b.out[0] = static_cast<int>(float(b.in[0]) * 1e20f); }
__global__ void trap_kernel(Buffers) { __trap(); }

__global__ void unwritten_bool_kernel(Buffers b) {
  __shared__ bool flags[64];
  if (flags[threadIdx.x]) b.out[threadIdx.x] = 1;
}

__global__ void recursive_kernel(Buffers b) {
  volatile char frame[8192];
  frame[b.in[0]] = 1;
  if (b.out[0] == frame[b.in[0]]) return;
  recursive_kernel(b);
  frame[b.in[1]] = 2;
}

}  // namespace

// Launches a kernel by its name; gives the message of its error, or an empty text.
extern "C" __attribute__((visibility("default"))) const char* toy_launch(
    const char* name, const unsigned* grid, const unsigned* block, size_t shared_bytes, int* in,
    int* out, int count) {
#define TOY(kernel)          \
  {                          \
    #kernel, kernel##_kernel \
  }
  static const std::map<std::string, void (*)(Buffers)> kernels = {
      TOY(order),
      TOY(blocks),
      TOY(reverse),
      TOY(vote),
      TOY(shuffle),
      TOY(halves),
      TOY(match),
      TOY(reduce),
      TOY(bits),
      TOY(atomics),
      TOY(vector),
      TOY(no_barrier),
      TOY(unwritten_shared),
      TOY(stale_dynamic_shared),
      TOY(divergent_barrier),
      TOY(two_barriers),
      TOY(absent_lane),
      TOY(exited_lane),
      TOY(unnamed_self),
      TOY(masks_disagree),
      TOY(collectives_disagree),
      TOY(undefined_shuffle),
      TOY(misaligned),
      TOY(misaligned_atomic),
      TOY(misaligned_vector_atomic),
      TOY(read_behind),
      TOY(read_before),
      TOY(read_far),
      TOY(write_behind),
      TOY(write_before),
      TOY(shared_index),
      TOY(shared_pointer),
      TOY(dynamic_shared_end),
      TOY(static_shared),
      TOY(some_static_shared),
      TOY(null),
      TOY(divide),
      TOY(shift),
      TOY(overflow),
      TOY(cast),
      TOY(trap),
      TOY(unwritten_bool),
      TOY(recursive),
  };
  static std::string message;
  message.clear();
  try {
    rcnn_emulation::launch(name, kernels.at(name), dim3(grid[0], grid[1], grid[2]),
                           dim3(block[0], block[1], block[2]), shared_bytes,
                           Buffers{in, out, count});
  } catch (const std::exception& error) {
    message = error.what();
  }
  return message.c_str();
}
