// What mms_workloads.data.text calls by ctypes. Plain C; no call raises or keeps what it was given.
#pragma once

#include <stddef.h>
#include <stdint.h>

#define MMS_API extern "C" __attribute__((visibility("default")))

namespace mms {

enum Status : int32_t { OK = 0, NO_MEMORY = 1 };

enum Tokenizer : int32_t {
  WORDS = 0,       // runs of letters and digits with their marks and apostrophes inside, in lower case
  WHITESPACE = 1,  // whatever stands between white space, as it is
  CHARACTERS = 2,  // each letter or digit, in lower case
};

// What each code point c is, in pages of 256: entries[page[c >> 8] * 256 + (c & 255)] has these bits; LOWER of it is
// what must be added to c for its lower case.
enum Class : uint32_t { LETTER = 1u << 31, SPACE = 1u << 30, MARK = 1u << 29, LOWER = (1u << 21) - 1 };

struct Characters {
  const uint16_t* page;
  const uint32_t* entries;
};

// Words, in the order in which they were first put, each with a number.
struct Words;

}  // namespace mms

MMS_API int32_t mms_text_abi_version();

// Null when there is no memory.
MMS_API mms::Words* mms_text_words();
MMS_API void mms_text_release(mms::Words* words);

// Of those that are two words with a space between them (`pairs`), or of the others.
MMS_API int64_t mms_text_length(const mms::Words* words, bool pairs);

// How many words there are whose number is above `floor`, and their bytes.
MMS_API int64_t mms_text_size(const mms::Words* words, int64_t floor, int64_t* bytes);

// Writes them: bytes one after the other, where each ends, and its number.
MMS_API void mms_text_list(const mms::Words* words, int64_t floor, char* bytes, int64_t* ends, int64_t* numbers);

// Adds `numbers` to those of the words, which are put where they are not yet there.
MMS_API int32_t mms_text_put(mms::Words* words, const char* bytes, const int64_t* ends, const int64_t* numbers,
                             int64_t count);

// Forgets those of a kind whose number is `floor` or less.
MMS_API int32_t mms_text_prune(mms::Words* words, int64_t floor, bool pairs);

// Whether there is a letter whose lower case depends on others (U+03A3), or is more than one letter (U+0130).
MMS_API bool mms_text_special(const uint8_t* text, int64_t size);

// Adds one to the number of each word of the text, which is UTF-8 without such letters. With pairs also to that of each
// two words that follow one another in a line, written with a space between them.
MMS_API int32_t mms_text_count(mms::Words* words, const mms::Characters* characters, int32_t tokenizer,
                               const uint8_t* text, int64_t size, bool pairs);

// The numbers of the text's words; those that are not there are left out. -1 ends a sentence: a line, or `longest`
// words of one. With pairs, two words that follow one another and are there as a pair have its number, and no part in
// another. There must be room for `size` + `size` / `longest` + 2 numbers. Returns how many
// were written, -1 when there is no memory. Several threads may do so at once.
MMS_API int64_t mms_text_encode(mms::Words* words, const mms::Characters* characters, int32_t tokenizer,
                                const uint8_t* text, int64_t size, int32_t longest, bool pairs,
                                int32_t* numbers);

// What each word is made of: its own number w, then `words` + b for the bucket b of each n-gram of `<word>`, in
// characters, as often as they occur; its bucket is its CRC-32 modulo `buckets`. The marks alone are none. Word w has
// rows[starts[w] ... starts[w + 1]); rows null: starts alone is written, [words + 1].
MMS_API void mms_text_ngrams(const uint8_t* text, const int64_t* ends, int64_t words, int32_t shortest, int32_t longest,
                             uint32_t buckets, int64_t* starts, int32_t* rows);
