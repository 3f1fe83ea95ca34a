#include "kernels.h"

#include <string.h>

#include "../common/cpu.h"

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "what is on the wire is little endian");

#pragma clang fp contract(off)

// After the kernels of a namespace.
#define MMS_KERNELS(NAME)                                                            \
  static const Kernels table = {                                                     \
      NAME,                                                                          \
      {bf16_encode, bf16_encode_sum, bf16_decode, bf16_decode_add, bf16_decode_sum}, \
      {int8_encode, int8_encode_sum, int8_decode, int8_decode_add, int8_decode_sum}, \
      add,                                                                           \
  };

namespace mms {

namespace scalar {
#include "kernels_for.inc"
#if defined(__aarch64__)
MMS_KERNELS("neon")  // part of every 64-bit ARM processor
#else
MMS_KERNELS("scalar")
#endif
}  // namespace scalar

#if defined(__x86_64__)

#pragma clang attribute push(__attribute__((target("avx2,bmi,bmi2"))), apply_to = function)
namespace avx2 {
#include "kernels_for.inc"
MMS_KERNELS("avx2")
}  // namespace avx2
#pragma clang attribute pop

#pragma clang attribute push(__attribute__((target("avx2,bmi,bmi2,avx512f,avx512bw,avx512dq,avx512vl"))), \
                             apply_to = function)
namespace avx512 {
#include "kernels_for.inc"
MMS_KERNELS("avx512")
}  // namespace avx512
#pragma clang attribute pop

static const Kernels* find(const char* name) {
  Cpu cpu = examine();
  return first<Kernels, 3>({cpu.avx512 ? &avx512::table : nullptr, cpu.avx2 ? &avx2::table : nullptr, &scalar::table},
                           name);
}

#else

static const Kernels* find(const char* name) { return first<Kernels, 1>({&scalar::table}, name); }

#endif

const Kernels* kernels = &scalar::table;

__attribute__((constructor)) static void choose() { kernels = find(nullptr); }

}  // namespace mms

const char* mms_kernels() { return mms::kernels->name; }

bool mms_kernels_choose(const char* name) {
  const mms::Kernels* found = mms::find(name);
  if (found) mms::kernels = found;
  return found != nullptr;
}
