// What mms_workloads.embedding calls by ctypes. Plain C; no call raises or keeps what it was given.
#pragma once

#include <stddef.h>
#include <stdint.h>

#define MMS_API extern "C" __attribute__((visibility("default")))

namespace mms {

enum Status : int32_t { OK = 0, NO_MEMORY = 1 };

// Noise by the alias method (Walker, 1977; Vose, 1991): a column at random, then its word with probability
// share / 2^32, else the other one.
struct Column {
  uint32_t share;
  int32_t other;
};

// Word vectors and how they are trained. Threads may train the same model at the same time, without locks, each on
// other tokens (Recht et al., 2011): an update that is lost now and then does no harm.
struct Words {
  float* vectors;   // [words] rows of `stride` floats, of words as inputs; with subwords more
  float* contexts;  // of words as outputs; for hierarchical softmax of the tree's inner nodes
  // Where the matrices hold some of the rows only: row r is at [places[r]]. Null: at [r].
  const int32_t* vector_places;
  const int32_t* context_places;
  // How often each row's gradient was added, or null.
  float* vector_touches;
  float* context_touches;
  // Word w is the mean of the vectors subwords[subword_starts[w] ... subword_starts[w + 1]), its own among them
  // (Bojanowski et al., 2017); null: its own alone.
  const int64_t* subword_starts;
  const int32_t* subwords;
  const float* keep;  // [words] probability that an occurrence is used
  const Column* noise;  // [words]
  // Hierarchical softmax: word w has the nodes tree_nodes[tree_starts[w] ... tree_starts[w + 1]), root first, and as
  // many codes; null for negative sampling.
  const int64_t* tree_starts;
  const int32_t* tree_nodes;
  const uint8_t* tree_codes;
  int64_t words;
  int64_t stride;  // floats of a row, a multiple of 16; those beyond the dimension are zero and stay so
  int32_t window;  // words to each side of the centre, at most
  int32_t fixed;   // not 0: as many for each centre; else how many is drawn
  int32_t negatives;
  int32_t bag;  // not 0: the mean of a window's words predicts its centre (CBOW); else each of them does (skip-gram)
};

// One way over some tokens.
struct Pass {
  const int32_t* tokens;  // below 0: the end of a sentence
  int64_t count;
  uint64_t seed;
  float first_rate, last_rate;  // learning rate, linear in between
  int32_t replay;               // not 0: draws the same, counts touches and leaves the rows alone
  int32_t threads;              // that train the model at the same time
  // What was done.
  int64_t words;  // tokens, without ends of sentences and before subsampling
  int64_t pairs;  // of a word with a word of its window; for a bag, centres
  int64_t measured;  // pairs that `loss` is of
  double loss;       // their sum of -log of the probabilities that should have been 1
};

}  // namespace mms

MMS_API int32_t mms_embedding_abi_version();

// The instructions in use: avx512, avx2, neon or scalar. Choosing returns false for those that this processor lacks.
MMS_API const char* mms_embedding_kernels();
MMS_API bool mms_embedding_kernels_choose(const char* name);

MMS_API int32_t mms_embedding_train(const mms::Words* words, mms::Pass* pass);

// What `working` [.., columns] has changed in some rows of `base`: out [count, columns], and the sum of its squares.
// Rows of both have `stride` floats; `rows` are numbers in them.
MMS_API double mms_embedding_changes(const float* base, const float* working, const int64_t* rows, int64_t count,
                                     int64_t columns, int64_t stride, float* out);

// base += scale * changes in those rows, and `working` the same. Never fused: all processors get the same bits.
MMS_API void mms_embedding_settle(float* base, float* working, const int64_t* rows, int64_t count, int64_t columns,
                                  int64_t stride, const float* changes, const float* scale);
