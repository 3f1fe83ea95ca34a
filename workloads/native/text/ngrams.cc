// N-grams of words' characters, as fastText has them (Bojanowski et al., 2017), each with a bucket.
#include "abi.h"

namespace mms {
namespace {

// CRC-32 as zlib's, a byte at a time: that of an n-gram goes on to that of the next longer one.
struct Crc {
  uint32_t table[256];

  constexpr Crc() : table() {
    for (uint32_t i = 0; i < 256; ++i) {
      uint32_t value = i;
      for (int bit = 0; bit < 8; ++bit) value = value & 1 ? 0xedb88320u ^ value >> 1 : value >> 1;
      table[i] = value;
    }
  }

  uint32_t add(uint32_t value, uint8_t byte) const { return table[(value ^ byte) & 0xff] ^ value >> 8; }
};

constexpr Crc crc;

struct Marked {
  const uint8_t* word;
  int64_t size;  // with the marks

  uint8_t operator[](int64_t i) const { return i == 0 ? '<' : i == size - 1 ? '>' : word[i - 1]; }
  bool begins(int64_t i) const { return ((*this)[i] & 0xc0) != 0x80; }  // a character
};

// Calls with the CRC of each n-gram.
template <typename Found>
void each(const Marked& word, int32_t shortest, int32_t longest, Found found) {
  for (int64_t start = 0; start < word.size; ++start) {
    if (!word.begins(start)) continue;
    uint32_t value = ~0u;
    int32_t length = 0;
    for (int64_t i = start; i < word.size && length < longest;) {
      do value = crc.add(value, word[i++]);
      while (i < word.size && !word.begins(i));
      bool mark = ++length == 1 && (start == 0 || start == word.size - 1);
      if (length >= shortest && !mark) found(~value);
    }
  }
}

}  // namespace
}  // namespace mms

void mms_text_ngrams(const uint8_t* text, const int64_t* ends, int64_t words, int32_t shortest, int32_t longest,
                     uint32_t buckets, int64_t* starts, int32_t* rows) {
  int64_t at = 0;
  for (int64_t w = 0; w < words; ++w) {
    int64_t begin = w ? ends[w - 1] : 0;
    starts[w] = at;
    if (rows) rows[at] = static_cast<int32_t>(w);
    ++at;
    mms::each({text + begin, ends[w] - begin + 2}, shortest, longest, [&](uint32_t value) {
      if (rows) rows[at] = static_cast<int32_t>(words + value % buckets);
      ++at;
    });
  }
  starts[words] = at;
}
