// The loops over tensors: sums in float32, and the formats in which gradients travel. Chosen for the processor at load.
//
// What is on the wire, for n values:
//   FLOAT32  n float32
//   BF16     n bfloat16, rounded to nearest, ties to even
//   INT8     for every INT8_BLOCK values a float32 scale, all scales first; then n codes. A code is the value over its
//            block's scale, rounded to nearest, -126 to 126; 127, -127 and -128 are +Inf, -Inf and NaN. A block's scale
//            is its largest finite magnitude over 126.
// NaN and Inf come out as NaN and Inf, one by one. Every NaN that a kernel writes has the same bits.
//
// Error feedback (Seide et al., 2014; Karimireddy et al., 2019): `error`, where it is given, is added to what is
// encoded and then holds what encoding lost; 0 where the value was not finite.
#pragma once

#include "abi.h"

namespace mms {

constexpr size_t INT8_BLOCK = 256;

struct Format {
  // out = encoded(x + error)
  void (*encode)(uint8_t* out, const float* x, float* error, size_t n);
  // out = encoded(x + error + decoded(partial)); back, if given, = decoded(out). out may not be partial; back may be x.
  void (*encode_sum)(uint8_t* out, const float* x, const uint8_t* partial, float* error, float* back, size_t n);
  void (*decode)(float* x, const uint8_t* in, size_t n);
  void (*decode_add)(float* x, const uint8_t* in, size_t n);  // x += decoded(in)
  void (*decode_sum)(float* x, const uint8_t* one, const uint8_t* other,
                     size_t n);  // x = decoded(one) + decoded(other)
};

struct Kernels {
  const char* name;
  Format bf16, int8;
  void (*add)(float* x, const float* y, size_t n);  // x += y
};

extern const Kernels* kernels;  // the chosen ones

inline size_t wire_bytes(Wire wire, size_t n) {
  switch (wire) {
    case BF16:
      return n * 2;
    case INT8:
      return (n + INT8_BLOCK - 1) / INT8_BLOCK * sizeof(float) + n;
    default:
      return n * sizeof(float);
  }
}

}  // namespace mms
