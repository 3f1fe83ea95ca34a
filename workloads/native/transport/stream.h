// A connected socket, plain or TLS, with an Abort in all that it waits for.
#pragma once

#include "abi.h"
#include "tls.h"

namespace mms {

struct Abort {
  int descriptor;  // an eventfd that is written once and never read: whoever polls it sees it for ever
  bool set;        // atomic
  int references;  // atomic

  bool is_set() const { return __atomic_load_n(&set, __ATOMIC_ACQUIRE); }
};

struct Stream {
  int descriptor;
  Abort* abort;
  Tls* tls;        // null: plain
  int wants;       // poll events of the last AGAIN
  int low_water;   // SO_RCVLOWAT as it is set
  uint8_t* ahead;  // plain: what came with what was asked for, [begin, end)
  size_t begin, end;
};

struct Part {
  uint8_t* data;
  uint64_t size;
};

// Parts that are sent or received in order, from a position on.
struct Parts {
  const Part* parts;
  uint64_t count;
  uint64_t index, offset;  // where it is

  bool done() {
    while (index < count && offset == parts[index].size) {
      ++index;
      offset = 0;
    }
    return index == count;
  }
  void advance(uint64_t bytes);
  void seek(uint64_t bytes) {
    index = offset = 0;
    advance(bytes);
  }
};

// What can be moved without waiting. AGAIN: nothing. `moved` is set in any case.
Status stream_send(Stream* stream, Parts parts, uint64_t* moved);
Status stream_receive(Stream* stream, Parts parts, uint64_t* moved);
// AGAIN while bytes that stream_send took have not been handed to the socket.
Status stream_flush(Stream* stream);

// Waits until one of the streams can go on. expected: bytes that are to come, so that it is not woken for each segment.
Status stream_wait(Stream* reading, uint64_t expected, Stream* writing, int64_t idle_ns);

constexpr size_t CALL = 1 << 20;  // bytes of one system call; measured in docs/adr/0004-native-transport.md

}  // namespace mms
