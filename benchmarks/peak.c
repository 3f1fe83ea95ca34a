// What the machine can do: peak THREADS SECONDS -> GFLOP/s of fused multiply-adds in registers, and GB/s of reading
// and writing back memory that is in no cache, all threads at once, each on its own numbers; and the nanoseconds until
// what the first thread has written is seen by the second (0 for one thread).
#define _GNU_SOURCE
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#if defined(__AVX512F__)
#define WIDTH 16
#elif defined(__AVX2__)
#define WIDTH 8
#else
#define WIDTH 4
#endif
#if defined(__aarch64__)
#define REGISTER "w"
#else
#define REGISTER "v"
#endif
#define CHAINS 12
#define TURNS 100000
#define BYTES (256u << 20)
#define MOST 64
#define HANDOVERS 200000

typedef float Vector __attribute__((vector_size(4 * WIDTH)));

static long threads;
static double limit, handover;
static pthread_barrier_t all;
static double flops[MOST], bytes[MOST];
static volatile float sink;
static _Alignas(128) atomic_long turn;

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec + 1e-9 * t.tv_nsec;
}

static double multiply_add(void) {
#pragma clang fp contract(fast)
  Vector sums[CHAINS], by, plus;
  for (int j = 0; j < WIDTH; ++j) by[j] = 0.999f, plus[j] = 1e-3f;
  for (int i = 0; i < CHAINS; ++i) sums[i] = plus * (float)i;
  double began = now(), turns = 0;
  while (now() - began < limit) {
    for (int turn = 0; turn < TURNS; ++turn) {
#pragma clang loop unroll(full)
      for (int i = 0; i < CHAINS; ++i) sums[i] = sums[i] * by + plus;
#pragma clang loop unroll(full)
      for (int i = 0; i < CHAINS; ++i) __asm__("" : "+" REGISTER(sums[i]));  // not to be computed ahead
    }
    turns += TURNS;
  }
  double took = now() - began;
  for (int i = 0; i < CHAINS; ++i) sink = sums[i][0];
  return turns * CHAINS * WIDTH * 2 / took;
}

static double read_and_write(void) {
  char* memory = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) exit(1);
  madvise(memory, BYTES, MADV_HUGEPAGE);
  memset(memory, 1, BYTES);
  Vector* at = (Vector*)memory;
  double began = now(), moved = 0;
  while (now() - began < limit) {
    for (size_t i = 0; i < BYTES / sizeof(Vector); ++i) at[i] += 1.f;
    moved += 2.0 * BYTES;
  }
  double took = now() - began;
  munmap(memory, BYTES);
  return moved / took;
}

// The two first threads take turns with a cache line.
static void take_turns(long which) {
  for (long i = which; i < HANDOVERS; i += 2) {
    while (atomic_load_explicit(&turn, memory_order_acquire) != i) {}
    atomic_store_explicit(&turn, i + 1, memory_order_release);
  }
}

static void* run(void* place) {
  long i = (long)place;
  pthread_barrier_wait(&all);
  flops[i] = multiply_add();
  pthread_barrier_wait(&all);
  bytes[i] = read_and_write();
  pthread_barrier_wait(&all);
  if (threads < 2 || i > 1) return NULL;
  double began = now();
  take_turns(i);
  if (!i) handover = (now() - began) / HANDOVERS;
  return NULL;
}

int main(int count, char** arguments) {
  if (count < 3) return 2;
  threads = atol(arguments[1]);
  if (threads < 1 || threads > MOST) return 2;
  limit = atof(arguments[2]);
  pthread_barrier_init(&all, NULL, threads);
  pthread_t running[MOST];
  for (long i = 0; i < threads; ++i) pthread_create(&running[i], NULL, run, (void*)i);
  double f = 0, b = 0;
  for (long i = 0; i < threads; ++i) {
    pthread_join(running[i], NULL);
    f += flops[i], b += bytes[i];
  }
  printf("%.1f %.1f %.0f\n", f / 1e9, b / 1e9, handover * 1e9);
  return 0;
}
