#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "../common/cpu.h"
#include "abi.h"

// Sums of products are what it does: they may be fused, so that results differ between processors in the last bits.
#pragma clang fp contract(fast)

namespace mms {

// wyrand (Wang Yi, 2019).
struct Random {
  uint64_t state;

  explicit Random(uint64_t seed) : state(seed * 0x9e3779b97f4a7c15) {}

  uint64_t next() {
    state += 0xa0761d6478bd642f;
    __uint128_t product = static_cast<__uint128_t>(state) * (state ^ 0xe7037ed1a0b428db);
    return static_cast<uint64_t>(product >> 64) ^ static_cast<uint64_t>(product);
  }

  // [0, bound)
  uint32_t below(uint32_t bound) { return static_cast<uint32_t>(((next() >> 32) * bound) >> 32); }

  // [0, 1)
  float fraction() { return static_cast<float>(next() >> 40) * (1.f / 16777216.f); }
};

struct Kernels {
  const char* name;
  int32_t (*run)(const Words*, Pass*);
  double (*changes)(const float*, const float*, const int64_t*, int64_t, int64_t, int64_t, float*);
  void (*settle)(float*, float*, const int64_t*, int64_t, int64_t, int64_t, const float*, const float*);
};

#define WIDTH 4
namespace narrow {
#include "vectors.inc"
//
#include "merge.inc"
//
#include "rows.inc"
//
#include "pool.inc"
//
#include "window.inc"
//
#include "trainer.inc"
#if defined(__aarch64__)
static const Kernels table = {"neon", run, changes, settle};
#else
static const Kernels table = {"scalar", run, changes, settle};
#endif
}  // namespace narrow
#undef WIDTH

#if defined(__x86_64__)

#define WIDTH 8
#pragma clang attribute push(__attribute__((target("avx2,fma,bmi,bmi2"))), apply_to = function)
namespace avx2 {
#include "vectors.inc"
//
#include "merge.inc"
//
#include "rows.inc"
//
#include "pool.inc"
//
#include "window.inc"
//
#include "trainer.inc"
static const Kernels table = {"avx2", run, changes, settle};
}  // namespace avx2
#pragma clang attribute pop
#undef WIDTH

#define WIDTH 16
#pragma clang attribute push(__attribute__((target("avx2,fma,bmi,bmi2,avx512f,avx512bw,avx512dq,avx512vl"))), \
                             apply_to = function)
namespace avx512 {
#include "vectors.inc"
//
#include "merge.inc"
//
#include "rows.inc"
//
#include "pool.inc"
//
#include "window.inc"
//
#include "trainer.inc"
static const Kernels table = {"avx512", run, changes, settle};
}  // namespace avx512
#pragma clang attribute pop
#undef WIDTH

static const Kernels* find(const char* name) {
  Cpu cpu = examine();
  return first<Kernels, 3>({cpu.avx512 ? &avx512::table : nullptr, cpu.avx2 ? &avx2::table : nullptr, &narrow::table},
                           name);
}

#else

static const Kernels* find(const char* name) { return first<Kernels, 1>({&narrow::table}, name); }

#endif

static const Kernels* kernels = &narrow::table;

__attribute__((constructor)) static void choose() { kernels = find(nullptr); }

}  // namespace mms

int32_t mms_embedding_abi_version() { return 5; }

const char* mms_embedding_kernels() { return mms::kernels->name; }

bool mms_embedding_kernels_choose(const char* name) {
  const mms::Kernels* found = mms::find(name);
  if (found) mms::kernels = found;
  return found != nullptr;
}

int32_t mms_embedding_train(const mms::Words* words, mms::Pass* pass) { return mms::kernels->run(words, pass); }

double mms_embedding_changes(const float* base, const float* working, const int64_t* rows, int64_t count,
                             int64_t columns, int64_t stride, float* out) {
  return mms::kernels->changes(base, working, rows, count, columns, stride, out);
}

void mms_embedding_settle(float* base, float* working, const int64_t* rows, int64_t count, int64_t columns,
                          int64_t stride, const float* changes, const float* scale) {
  mms::kernels->settle(base, working, rows, count, columns, stride, changes, scale);
}
