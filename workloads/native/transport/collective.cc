#include "collective.h"

#include <stdlib.h>

#include "error.h"

namespace mms {

constexpr uint32_t MAGIC = 0x31434d4d;  // MMC1

bool Memory::reserve(size_t wanted) {
  if (wanted <= size) return true;
  free(data);
  data = static_cast<uint8_t*>(malloc(wanted));
  size = data ? wanted : 0;
  return data != nullptr;
}

static const char* kind_name(uint32_t kind) {
  switch (kind & 0xff) {
    case ALL_REDUCE:
      return "all-reduce";
    case ALL_GATHER:
      return "all-gather";
    default:
      return "broadcast";
  }
}

void begin(Ring* ring, Kind kind, uint32_t detail, uint64_t length) {
  ring->active = true;
  ring->mine = {MAGIC, kind | detail << 8, ring->fence, ring->sequence++, length};
  ring->header_sent = ring->header_received = 0;
  ring->sent = ring->received = ring->partly_sent = ring->partly_received = ring->encoded = 0;
}

static Status check(Ring* ring) {
  const Header &a = ring->mine, &b = ring->theirs;
  if (a.magic != b.magic) return fail(MISMATCH, "the previous member sent something else than a collective");
  if (a.fence != b.fence) return fail(MISMATCH, "the previous member's collective is of another epoch");
  if (a.sequence != b.sequence || a.kind != b.kind || a.length != b.length) {
    return fail(MISMATCH, "this member runs collective %llu, %s/%u of %llu, and the previous one %llu, %s/%u of %llu",
                static_cast<unsigned long long>(a.sequence), kind_name(a.kind), a.kind >> 8,
                static_cast<unsigned long long>(a.length), static_cast<unsigned long long>(b.sequence),
                kind_name(b.kind), b.kind >> 8, static_cast<unsigned long long>(b.length));
  }
  return OK;
}

Status send(Ring* ring, const uint8_t* data, size_t size, size_t* moved) {
  Part parts[2] = {{reinterpret_cast<uint8_t*>(&ring->mine) + ring->header_sent, sizeof(Header) - ring->header_sent},
                   {const_cast<uint8_t*>(data), size}};
  uint64_t sent;
  Status status = stream_send(ring->next, {parts, 2, 0, 0}, &sent);
  uint64_t head = sent < parts[0].size ? sent : parts[0].size;
  ring->header_sent += head;
  *moved = sent - head;
  return status == AGAIN ? OK : status;
}

static Status receive_header(Ring* ring) {
  uint8_t* into = reinterpret_cast<uint8_t*>(&ring->theirs) + ring->header_received;
  Part head = {into, sizeof(Header) - ring->header_received};
  uint64_t got;
  Status status = stream_receive(ring->previous, {&head, 1, 0, 0}, &got);
  ring->header_received += got;
  return status == OK && ring->received_header() ? check(ring) : status;
}

Status receive(Ring* ring, uint8_t* into, size_t size, size_t* moved) {
  *moved = 0;
  if (!ring->received_header()) {
    Status status = receive_header(ring);
    if (status != OK || !ring->received_header()) return status == AGAIN ? OK : status;
  }
  Part part = {into, size};
  uint64_t got;
  Status status = stream_receive(ring->previous, {&part, 1, 0, 0}, &got);
  *moved = got;
  return status == AGAIN ? OK : status;
}

Status wait(Ring* ring, bool reading, uint64_t expected, bool writing, int64_t idle_ns) {
  if (!ring->received_header()) {
    reading = true;
    expected += sizeof(Header);
  }
  writing |= !ring->sent_header();
  // Records that TLS has made wait for the socket, and nothing else does: what it lacks room for has not been made.
  Status flushed = stream_flush(ring->next);
  if (flushed != OK && flushed != AGAIN) return flushed;
  if (ring->next->tls) writing = flushed == AGAIN;
  if (!reading && !writing) return OK;
  return stream_wait(reading ? ring->previous : nullptr, expected, writing ? ring->next : nullptr, idle_ns);
}

Status finish(Ring* ring, int64_t idle_ns) {
  Status status;
  while ((status = stream_flush(ring->next)) == AGAIN) {
    status = stream_wait(nullptr, 0, ring->next, idle_ns);
    if (status != OK) return status;
  }
  if (status == OK) ring->active = false;
  return status;
}

static Part rest_of_part(Parts parts, uint64_t done) {
  parts.seek(done);
  if (parts.done()) return {nullptr, 0};
  const Part& part = parts.parts[parts.index];
  return {part.data + parts.offset, part.size - parts.offset};
}

Status relay(Ring* ring, Parts out, uint64_t sending, uint64_t own, Parts in, uint64_t receiving, int64_t idle_ns) {
  auto sendable = [&] { return own + ring->received < sending ? own + ring->received : sending; };
  for (;;) {
    bool both_headers = ring->sent_header() && ring->received_header();
    if (ring->sent == sending && ring->received == receiving && both_headers) return finish(ring, idle_ns);
    size_t moved = 0, got = 0;
    if (ring->sent < sendable() || !ring->sent_header()) {
      Part part = rest_of_part(out, ring->sent);
      uint64_t open = sendable() - ring->sent;
      Status status = send(ring, part.data, part.size < open ? part.size : open, &moved);
      if (status != OK) return status;
      ring->sent += moved;
    }
    if (ring->received < receiving || !ring->received_header()) {
      // No more than is missing: a previous member that is done may have begun the next collective already.
      Part part = rest_of_part(in, ring->received);
      uint64_t missing = receiving - ring->received;
      Status status = receive(ring, part.data, part.size < missing ? part.size : missing, &got);
      if (status != OK) return status;
      ring->received += got;
    }
    if (moved || got) continue;
    if (ring->sent == sending && ring->received == receiving && ring->sent_header() && ring->received_header())
      continue;
    uint64_t missing = receiving - ring->received;
    Status status = wait(ring, missing > 0, missing, ring->sent < sendable(), idle_ns);
    if (status != OK) return status;
  }
}

}  // namespace mms
