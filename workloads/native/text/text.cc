#include <stdlib.h>
#include <string.h>

#include "abi.h"

namespace mms {

constexpr int64_t LONGEST = 1024;  // bytes of a word; what is longer is none
constexpr uint32_t APOSTROPHE = '\'', QUOTE = 0x2019;

struct Slot {
  uint64_t hash;
  uint64_t start : 48, length : 16;  // of its bytes; nothing is there when the length is 0
  int64_t number;
};

constexpr int64_t STEP = sizeof(uint64_t);  // of what compares words, which may read so much behind them

static inline bool equal(const char* a, const char* b, int64_t length) {
  uint64_t x, y;
  for (; length > 0; a += STEP, b += STEP, length -= STEP) {
    memcpy(&x, a, STEP);
    memcpy(&y, b, STEP);
    x ^= y;
    if (length < STEP) x <<= 8 * (STEP - length);  // little-endian: those behind are the highest
    if (x) return false;
  }
  return true;
}

static inline bool is_pair(const char* word, int64_t length) { return memchr(word, ' ', length) != nullptr; }

// Open addressing with linear probing, at most half full.
struct Words {
  Slot* slots;
  char* bytes;
  uint64_t mask;
  int64_t used, pairs;  // slots, and those of them that are pairs
  uint64_t filled, room;  // bytes

  bool make(uint64_t size) {
    mask = size - 1;
    slots = static_cast<Slot*>(calloc(size, sizeof(Slot)));
    return slots != nullptr;
  }

  Slot* find(uint64_t hash, const char* word, int64_t length) const {
    for (uint64_t at = hash & mask;; at = (at + 1) & mask) {
      Slot& slot = slots[at];
      if (!slot.length || (slot.hash == hash && slot.length == static_cast<uint64_t>(length) &&
                           equal(bytes + slot.start, word, length)))
        return &slot;
    }
  }

  bool add(uint64_t hash, const char* word, int64_t length, int64_t number) {
    Slot* slot = find(hash, word, length);
    if (!slot->length) {
      if (static_cast<uint64_t>(used + 1) * 2 > mask) {
        if (!rehash((mask + 1) * 2)) return false;
        slot = find(hash, word, length);
      }
      if (filled + length + STEP > room) {
        uint64_t larger = (filled + length + STEP) * 2;
        char* moved = static_cast<char*>(realloc(bytes, larger));
        if (!moved) return false;
        bytes = moved, room = larger;
      }
      memcpy(bytes + filled, word, length);
      slot->hash = hash, slot->start = filled, slot->length = length;
      filled += length;
      ++used;
      pairs += is_pair(word, length);
    }
    slot->number += number;
    return true;
  }

  void place(const Slot& slot) {
    uint64_t to = slot.hash & mask;
    while (slots[to].length) to = (to + 1) & mask;
    slots[to] = slot;
  }

  // Another table, of the same ones.
  bool rehash(uint64_t size) {
    Words next = {};
    if (!next.make(size)) return false;
    for (uint64_t at = 0; at <= mask; ++at) {
      if (slots[at].length) next.place(slots[at]);
    }
    free(slots);
    slots = next.slots, mask = next.mask;
    return true;
  }

  // Without those of a kind whose number is `floor` or less; the bytes of the others move together.
  bool prune(int64_t floor, bool of_pairs) {
    Words next = {};
    if (!next.make(mask + 1)) return false;
    next.bytes = static_cast<char*>(malloc(room ? room : 1)), next.room = room;
    if (!next.bytes) return free(next.slots), false;
    for (uint64_t at = 0; at <= mask; ++at) {
      Slot slot = slots[at];
      if (!slot.length) continue;
      bool pair = is_pair(bytes + slot.start, slot.length);
      if (slot.number <= floor && pair == of_pairs) continue;
      memcpy(next.bytes + next.filled, bytes + slot.start, slot.length);
      slot.start = next.filled;
      next.filled += slot.length;
      next.place(slot);
      ++next.used;
      next.pairs += pair;
    }
    free(slots);
    free(bytes);
    *this = next;
    return true;
  }
};

// FNV-1a with its result mixed: the table takes the low bits.
struct Hash {
  uint64_t state = 0xcbf29ce484222325;
  void add(uint8_t byte) { state = (state ^ byte) * 0x100000001b3; }
  uint64_t value() const { return state ^ (state >> 29); }
};

struct Word {
  uint64_t hash;
  Hash state;  // that the hash was made of
  int64_t length;
  char bytes[LONGEST + 8];
};

// Two words with a space between them.
struct Pair {
  uint64_t hash;
  int64_t length = 0;
  char bytes[2 * LONGEST + 16];
  Hash state;        // behind the first one
  int64_t first = 0;  // its length; 0: there is none

  void begin(const Word& word) {
    memcpy(bytes, word.bytes, word.length);
    bytes[word.length] = ' ';
    first = word.length;
    state = word.state;
    state.add(' ');
  }

  void end(const Word& word) {
    memcpy(bytes + first + 1, word.bytes, word.length);
    length = first + 1 + word.length;
    Hash both = state;
    for (int64_t i = 0; i < word.length; ++i) both.add(static_cast<uint8_t>(word.bytes[i]));
    hash = both.value();
  }
};

// Writes a word. By itself, in registers: the compiler takes bytes for something that may be anything.
struct Writer {
  Hash hash;
  char *at, *full;

  explicit Writer(Word& word) : at(word.bytes), full(word.bytes + LONGEST + 4) {}

  void put(uint32_t byte) {
    hash.add(static_cast<uint8_t>(byte));
    *at = static_cast<char>(byte);
    at += at < full;
  }

  void add(uint32_t c) {
    if (c < 0x80) return put(c);
    if (c < 0x800) {
      put(0xc0 | c >> 6);
    } else {
      if (c < 0x10000) {
        put(0xe0 | c >> 12);
      } else {
        put(0xf0 | c >> 18);
        put(0x80 | (c >> 12 & 63));
      }
      put(0x80 | (c >> 6 & 63));
    }
    put(0x80 | (c & 63));
  }

  void end(Word& word) const {
    word.hash = hash.value();
    word.state = hash;
    word.length = at - word.bytes;
  }
};

struct Text {
  const uint8_t *at, *end;

  // The next code point. The text is known to be UTF-8, but may be cut anywhere by its end.
  uint32_t next() {
    uint32_t c = *at++;
    if (c < 0x80) return c;
    int more = c >= 0xf0 ? 3 : c >= 0xe0 ? 2 : 1;
    c &= 0x3fu >> more;
    for (; more && at < end; --more) c = c << 6 | (*at++ & 63);
    return c;
  }
};

// What code points are; those of ASCII, most of most text, without a look at the pages.
struct Classes {
  const Characters& of;
  const uint32_t* ascii;

  explicit Classes(const Characters& characters) : of(characters), ascii(of.entries + of.page[0] * 256) {}

  uint32_t entry(uint32_t c) const { return c < 0x80 ? ascii[c] : of.entries[of.page[c >> 8] * 256 + (c & 255)]; }
  static uint32_t lower(uint32_t c, uint32_t entry) { return (c + entry) & LOWER; }
};

// Reads on behind a word's first letter; returns where its last one ends.
template <int32_t TOKENIZER>
static inline const uint8_t* finish(const Classes& classes, Text text, Writer& out) {
  Writer word = out;
  for (;;) {
    // Most text is ASCII, and most of that letters.
    if (text.at < text.end && *text.at < 0x80) {
      uint32_t c = *text.at, e = classes.ascii[c];
      if (TOKENIZER == WHITESPACE ? !(e & SPACE) : e & LETTER) {
        word.put(TOKENIZER == WHITESPACE ? c : Classes::lower(c, e));
        ++text.at;
        continue;
      }
    }
    Text behind = text;
    if (text.at == text.end) break;
    uint32_t c = behind.next(), e = classes.entry(c);
    if (TOKENIZER == WHITESPACE) {
      if (e & SPACE) break;
      word.add(c);
    } else if (e & (LETTER | MARK)) {
      word.add(Classes::lower(c, e));
    } else {
      if ((c != APOSTROPHE && c != QUOTE) || behind.at == behind.end) break;
      c = behind.next(), e = classes.entry(c);
      if (!(e & LETTER)) break;
      word.put(APOSTROPHE);
      word.add(Classes::lower(c, e));
    }
    text = behind;
  }
  out = word;
  return text.at;
}

// Words that were read and are still to be looked up: together, for the table is in no cache.
struct Batch {
  static constexpr int SIZE = 32;
  static constexpr int LINE = -1;

  Words* words;
  Word word[SIZE];
  int length[SIZE];  // LINE: the end of a line
  int size;

  template <typename On>
  bool flush(On& on) {
    for (int i = 0; i < size; ++i) {
      const Slot& slot = words->slots[word[i].hash & words->mask];
      if (length[i] != LINE && slot.length) __builtin_prefetch(words->bytes + slot.start);
    }
    bool done = true;
    for (int i = 0; i < size && done; ++i) {
      if (length[i] == LINE) {
        on.line();
      } else {
        done = on.word(word[i]);
      }
    }
    size = 0;
    return done;
  }
};

// Calls on.word for each word and on.line at the end of each line.
template <int32_t TOKENIZER, typename On>
static bool read(const Characters& characters, Text text, Batch& batch, On& on) {
  Classes classes(characters);
  while (text.at < text.end) {
    uint32_t c = text.next(), e = classes.entry(c);
    Word& word = batch.word[batch.size];
    if (TOKENIZER == WHITESPACE ? !(e & SPACE) : e & LETTER) {
      Writer out(word);
      out.add(TOKENIZER == WHITESPACE ? c : Classes::lower(c, e));
      if (TOKENIZER != CHARACTERS) text.at = finish<TOKENIZER>(classes, text, out);
      out.end(word);
      if (word.length > LONGEST) continue;
      __builtin_prefetch(batch.words->slots + (word.hash & batch.words->mask));
      batch.length[batch.size++] = static_cast<int>(word.length);
    } else if (c == '\n') {
      batch.length[batch.size++] = Batch::LINE;
    }
    if (batch.size == Batch::SIZE && !batch.flush(on)) return false;
  }
  return batch.flush(on);
}

template <typename On>
static int32_t read(Words& words, const Characters& characters, int32_t tokenizer, const uint8_t* text, int64_t size,
                    On& on) {
  Text all = {text, text + size};
  Batch* memory = static_cast<Batch*>(malloc(sizeof(Batch)));
  if (!memory) return NO_MEMORY;
  Batch& batch = *memory;
  batch.words = &words, batch.size = 0;
  bool done = tokenizer == WORDS        ? read<WORDS>(characters, all, batch, on)
              : tokenizer == WHITESPACE ? read<WHITESPACE>(characters, all, batch, on)
                                        : read<CHARACTERS>(characters, all, batch, on);
  free(memory);
  return done ? OK : NO_MEMORY;
}

struct Count {
  Words& words;
  bool pairs;
  Pair pair;

  void line() { pair.first = 0; }

  bool word(const Word& w) {
    if (!words.add(w.hash, w.bytes, w.length, 1)) return false;
    if (!pairs) return true;
    if (pair.first) {
      pair.end(w);
      if (!words.add(pair.hash, pair.bytes, pair.length, 1)) return false;
    }
    pair.begin(w);
    return true;
  }
};

struct Encode {
  Words& words;
  int32_t longest;
  int32_t* out;
  bool pairs;
  int32_t length = 0;  // of the sentence, with the words that are left out
  Pair pair;
  const Slot* waiting = nullptr;  // the first word of what may become a pair

  void line() {
    put(waiting);
    pair.first = 0;
    waiting = nullptr;
    if (length) *out++ = -1;
    length = 0;
  }

  void put(const Slot* slot) {
    if (slot && slot->length) *out++ = static_cast<int32_t>(slot->number);
  }

  bool word(const Word& w) {
    if (length == longest) line();
    ++length;
    const Slot* slot = words.find(w.hash, w.bytes, w.length);
    if (!pairs) return put(slot), true;
    if (pair.first) {
      pair.end(w);
      const Slot* both = words.find(pair.hash, pair.bytes, pair.length);
      pair.first = 0;
      if (both->length) {
        waiting = nullptr;
        return put(both), true;
      }
      put(waiting);
    }
    pair.begin(w);
    waiting = slot;
    return true;
  }
};

}  // namespace mms

int32_t mms_text_abi_version() { return 3; }

mms::Words* mms_text_words() {
  mms::Words* words = static_cast<mms::Words*>(calloc(1, sizeof(mms::Words)));
  if (words && !words->make(1 << 12)) {
    free(words);
    return nullptr;
  }
  return words;
}

void mms_text_release(mms::Words* words) {
  free(words->slots);
  free(words->bytes);
  free(words);
}

int64_t mms_text_length(const mms::Words* words, bool pairs) {
  return pairs ? words->pairs : words->used - words->pairs;
}

int64_t mms_text_size(const mms::Words* words, int64_t floor, int64_t* bytes) {
  if (floor == INT64_MIN) {  // all
    *bytes = words->filled;
    return words->used;
  }
  int64_t count = 0;
  *bytes = 0;
  for (uint64_t at = 0; at <= words->mask; ++at) {
    const mms::Slot& slot = words->slots[at];
    if (!slot.length || slot.number <= floor) continue;
    ++count;
    *bytes += slot.length;
  }
  return count;
}

void mms_text_list(const mms::Words* words, int64_t floor, char* bytes, int64_t* ends, int64_t* numbers) {
  int64_t end = 0;
  for (uint64_t at = 0; at <= words->mask; ++at) {
    const mms::Slot& slot = words->slots[at];
    if (!slot.length || slot.number <= floor) continue;
    memcpy(bytes + end, words->bytes + slot.start, slot.length);
    end += slot.length;
    *ends++ = end;
    *numbers++ = slot.number;
  }
}

bool mms_text_special(const uint8_t* text, int64_t size) {
  static constexpr uint8_t LETTERS[][2] = {{0xce, 0xa3}, {0xc4, 0xb0}};
  for (const uint8_t* letter : LETTERS) {
    const uint8_t *at = text, *end = text + size - 1;
    while (at < end && (at = static_cast<const uint8_t*>(memchr(at, letter[0], end - at)))) {
      if (*++at == letter[1]) return true;
    }
  }
  return false;
}

int32_t mms_text_put(mms::Words* words, const char* bytes, const int64_t* ends, const int64_t* numbers,
                     int64_t count) {
  int64_t start = 0;
  mms::Pair pair;  // has room to read behind the word
  for (int64_t i = 0; i < count; ++i) {
    int64_t length = ends[i] - start;
    if (length > 0 && length < static_cast<int64_t>(sizeof pair.bytes) - mms::STEP) {
      mms::Hash hash;
      for (int64_t k = start; k < ends[i]; ++k) hash.add(static_cast<uint8_t>(bytes[k]));
      memcpy(pair.bytes, bytes + start, length);
      if (!words->add(hash.value(), pair.bytes, length, numbers[i])) return mms::NO_MEMORY;
    }
    start = ends[i];
  }
  return mms::OK;
}

int32_t mms_text_prune(mms::Words* words, int64_t floor, bool pairs) {
  return words->prune(floor, pairs) ? mms::OK : mms::NO_MEMORY;
}

int32_t mms_text_count(mms::Words* words, const mms::Characters* characters, int32_t tokenizer, const uint8_t* text,
                       int64_t size, bool pairs) {
  mms::Count count = {*words, pairs, {}};
  return mms::read(*words, *characters, tokenizer, text, size, count);
}

int64_t mms_text_encode(mms::Words* words, const mms::Characters* characters, int32_t tokenizer, const uint8_t* text,
                        int64_t size, int32_t longest, bool pairs, int32_t* numbers) {
  mms::Encode encode = {*words, longest, numbers, pairs, 0, {}, nullptr};
  if (mms::read(*words, *characters, tokenizer, text, size, encode) != mms::OK) return -1;
  encode.line();
  return encode.out - numbers;
}
