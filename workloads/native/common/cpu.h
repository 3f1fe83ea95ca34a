// What this processor has, and what the system saves of a thread's registers.
#pragma once

#include <stdint.h>
#include <string.h>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace mms {

// The first that is there and has this name, or any: kernels are compiled for several processors, the best first.
template <typename Kernels, int N>
static inline const Kernels* first(const Kernels* const (&every)[N], const char* name) {
  for (const Kernels* one : every) {
    if (one && (!name || !strcmp(name, one->name))) return one;
  }
  return nullptr;
}

#if defined(__x86_64__)

struct Cpu {
  bool avx2, avx512;  // with fused multiply-add, and the parts of AVX-512 that all servers have
};

static inline Cpu examine() {
  uint32_t a, b, c, d;
  Cpu cpu = {};
  if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_OSXSAVE) || !(c & bit_FMA)) return cpu;
  uint32_t low, high;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return cpu;
  constexpr uint32_t WIDE = bit_AVX512F | bit_AVX512BW | bit_AVX512DQ | bit_AVX512VL;
  cpu.avx2 = (low & 0x06) == 0x06 && (b & bit_AVX2) && (b & bit_BMI2) && (b & bit_BMI);
  cpu.avx512 = cpu.avx2 && (low & 0xe6) == 0xe6 && (b & WIDE) == WIDE;
  return cpu;
}

#endif

}  // namespace mms
