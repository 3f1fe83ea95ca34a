// What the collectives of a ring have in common: each begins with a header, waits for both neighbours, and can be gone
// on with after a signal.
#pragma once

#include "abi.h"
#include "stream.h"

namespace mms {

enum Kind : uint32_t { ALL_REDUCE = 1, ALL_GATHER = 2, BROADCAST = 3 };

struct Header {
  uint32_t magic;
  uint32_t kind;  // | wire or source << 8
  uint64_t fence, sequence, length;
};

struct Memory {
  uint8_t* data;
  size_t size;

  bool reserve(size_t wanted);
};

struct Ring {
  Stream *next, *previous;
  uint32_t position, size;
  uint64_t fence, sequence;
  Memory slots, scratch;

  // The collective under way. A call that a signal interrupted goes on from here.
  bool active;
  Header mine, theirs;
  uint64_t header_sent, header_received;
  uint64_t sent, received;  // bytes (relay), chunks (exchange), places (ring)
  uint64_t partly_sent, partly_received, encoded;

  bool sent_header() const { return header_sent == sizeof(Header); }
  bool received_header() const { return header_received == sizeof(Header); }
};

constexpr uint32_t RING_MOST = 64;  // members

void begin(Ring* ring, Kind kind, uint32_t detail, uint64_t length);

// What can be sent at once of `data`, after what is left of the header; what can be received at once, after the other's
// header, which is checked. `moved` counts data alone, and 0 is no failure.
Status send(Ring* ring, const uint8_t* data, size_t size, size_t* moved);
Status receive(Ring* ring, uint8_t* into, size_t size, size_t* moved);

// Waits until something that is wanted can go on. expected: bytes that are to be received.
Status wait(Ring* ring, bool reading, uint64_t expected, bool writing, int64_t idle_ns);

// Ends a collective once its last bytes are with the socket.
Status finish(Ring* ring, int64_t idle_ns);

// Sends `sending` bytes of the parts `out` and receives `receiving` bytes into `in`. Of what is sent the first `own`
// bytes are there, and each that follows is one that was received.
Status relay(Ring* ring, Parts out, uint64_t sending, uint64_t own, Parts in, uint64_t receiving, int64_t idle_ns);

}  // namespace mms
