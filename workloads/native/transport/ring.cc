// Collectives among the members of one membership epoch. Each one sends to the next and receives from the previous, in
// one thread: whatever can be sent, received or summed is, and it waits only when nothing can.
//
// All-reduce, three ways. What all have in common: every value on the wire is rounded by one member, which uses the
// rounded value itself, so that all members end with the same bits.
//   relay    small tensors: each member's contribution goes round, and everyone sums them in the order of positions.
//            size - 1 hops.
//   exchange two members: both send all they have. As many bytes as the ring, half the hops, one rounding.
//   ring     reduce-scatter and all-gather (Patarasuk and Yuan, 2009), 2 (size - 1) hops, over blocks of the tensor of
//            which many are under way at a time: a part is sent on while the next are received, and what it touches
//            stays in the cache.
//
// The ring's order. A block is cut into `size` parts. At hop t a member sends part (position - t) mod size of the block
// and receives part (previous - t) mod size. Hops up to size - 2 carry partial sums; who receives at hop size - 2 has
// the sum. Later hops carry sums. At time T hop t serves block T - t * LAG: the places of a stream are (T, t) with t
// falling, and all streams have the same order. What is received at place p is what is sent at place p + delta,
// delta = LAG * hops - 1. A member receives place p only while p + delta < sent + window: slots for what is to be sent
// are as many as the window. With window > delta this cannot lock: the member that has sent least can always send,
// because the next one has room for all that it lacks.
#include <stdlib.h>
#include <string.h>

#include "collective.h"
#include "error.h"
#include "kernels.h"

namespace mms {

// Sizes were measured; docs/adr/0004-native-transport.md has the figures.
constexpr size_t RELAY_BYTES = 1 << 16;                        // that a member may send of a tensor that is relayed
constexpr size_t CHUNK_MOST = 1 << 17, CHUNK_LEAST = 1 << 12;  // values that two members encode and sum at a time
constexpr size_t CHUNKS_LEAST = 4;                             // into which they cut a tensor that is large enough
constexpr uint64_t SLOTS = 4;                                  // chunks that are encoded and not yet summed
constexpr size_t PART_MOST = 1 << 15, PART_LEAST = 1 << 12;    // values of a part of the ring
constexpr size_t RING_VALUES = 1 << 19;                        // of all the ring's slots together, about
constexpr uint64_t LAG = 1;

static const Format* format(Wire wire) { return wire == BF16 ? &kernels->bf16 : &kernels->int8; }

static Status relay_all_reduce(Ring* ring, float* data, size_t count, Wire wire, float* error, int64_t idle_ns) {
  uint32_t size = ring->size;
  size_t bytes = wire_bytes(wire, count), stride = (bytes + 63) / 64 * 64;
  bool fresh = !ring->active;
  if (fresh) {
    if (!ring->scratch.reserve(stride * size + 64)) return NO_MEMORY;
    begin(ring, ALL_REDUCE, wire, count);
  }
  auto from = [&](uint32_t hops) { return ring->scratch.data + stride * hops; };  // the one so many places before
  if (fresh && count) {  // the address of no values may be null, which memcpy must not be given
    if (wire == FLOAT32) {
      memcpy(from(0), data, bytes);
    } else {
      format(wire)->encode(from(0), data, error, count);
    }
  }
  Part parts[RING_MOST];
  for (uint32_t hops = 0; hops < size; ++hops) parts[hops] = {from(hops), bytes};
  uint64_t all = (size - 1) * bytes;
  Status status = relay(ring, {parts, size - 1, 0, 0}, all, bytes, {parts + 1, size - 1, 0, 0}, all, idle_ns);
  if (status != OK) return status;
  for (uint32_t position = 0; count && position < size; ++position) {
    const uint8_t* theirs = from((ring->position + size - position) % size);
    if (wire == FLOAT32) {
      if (position == 0) {
        memcpy(data, theirs, bytes);
      } else {
        kernels->add(data, reinterpret_cast<const float*>(theirs), count);
      }
    } else {
      (position == 0 ? format(wire)->decode : format(wire)->decode_add)(data, theirs, count);
    }
  }
  return OK;
}

// ---- exchange: two members

static uint64_t chunk_of(uint64_t count) {
  uint64_t values = (count / CHUNKS_LEAST + INT8_BLOCK) / INT8_BLOCK * INT8_BLOCK;
  return values > CHUNK_MOST ? CHUNK_MOST : values < CHUNK_LEAST ? CHUNK_LEAST : values;
}

static Status exchange(Ring* ring, float* data, size_t count, Wire wire, float* error, int64_t idle_ns) {
  const uint64_t chunk_values = chunk_of(count);
  size_t stride = wire_bytes(wire, chunk_values);
  if (!ring->active) {
    if (!ring->scratch.reserve(stride) || (wire != FLOAT32 && !ring->slots.reserve(stride * SLOTS))) return NO_MEMORY;
    begin(ring, ALL_REDUCE, wire, count);
  }
  uint64_t chunks = (count + chunk_values - 1) / chunk_values;
  auto length = [&](uint64_t chunk) {
    uint64_t left = count - chunk * chunk_values;
    return left < chunk_values ? left : chunk_values;
  };
  auto slot = [&](uint64_t chunk) { return ring->slots.data + stride * (chunk % SLOTS); };
  // A slot is free when its chunk was sent and has been summed; nothing is encoded long before it can be sent.
  auto may_encode = [&] {
    uint64_t used = ring->sent < ring->received ? ring->sent : ring->received;
    return wire != FLOAT32 && ring->encoded < chunks && ring->encoded < used + SLOTS && ring->encoded <= ring->sent;
  };
  auto sendable = [&] { return wire == FLOAT32 ? chunks : ring->encoded; };
  // A chunk is summed into data when its own values have been sent (float32) or encoded.
  auto receivable = [&] { return wire == FLOAT32 ? ring->sent : ring->encoded; };
  while (ring->sent < chunks || ring->received < chunks || !ring->sent_header() || !ring->received_header()) {
    bool progress = false;
    if (may_encode()) {
      uint64_t chunk = ring->encoded++, first = chunk * chunk_values;
      format(wire)->encode(slot(chunk), data + first, error ? error + first : nullptr, length(chunk));
    }
    if (ring->sent < sendable()) {
      uint64_t chunk = ring->sent;
      const uint8_t* from = wire == FLOAT32 ? reinterpret_cast<uint8_t*>(data + chunk * chunk_values) : slot(chunk);
      size_t bytes = wire_bytes(wire, length(chunk)), moved;
      Status status = send(ring, from + ring->partly_sent, bytes - ring->partly_sent, &moved);
      if (status != OK) return status;
      progress |= moved > 0;
      if ((ring->partly_sent += moved) == bytes) ++ring->sent, ring->partly_sent = 0;
    }
    if (ring->received < receivable() || !ring->received_header()) {
      uint64_t chunk = ring->received;
      size_t bytes = chunk < receivable() ? wire_bytes(wire, length(chunk)) : 0, moved;
      uint8_t* into = ring->scratch.data + ring->partly_received;
      Status status = receive(ring, into, bytes - ring->partly_received, &moved);
      if (status != OK) return status;
      progress |= moved > 0;
      if ((ring->partly_received += moved) == bytes && bytes) {
        float* sum = data + chunk * chunk_values;
        if (wire == FLOAT32) {
          kernels->add(sum, reinterpret_cast<float*>(ring->scratch.data), length(chunk));
        } else {
          format(wire)->decode_sum(sum, slot(chunk), ring->scratch.data, length(chunk));
        }
        ++ring->received;
        ring->partly_received = 0;
      }
    }
    if (progress) continue;
    if (may_encode()) continue;
    bool reading = ring->received < receivable();
    uint64_t expected = reading ? wire_bytes(wire, length(ring->received)) - ring->partly_received : 0;
    Status status = wait(ring, reading, expected, ring->sent < sendable(), idle_ns);
    if (status != OK) return status;
  }
  return finish(ring, idle_ns);
}

// ---- ring: three members and more

struct Plan {
  uint64_t count;
  uint32_t size, hops;
  uint64_t part, block, blocks, delta, window, places;

  Plan(uint64_t values, uint32_t members) : count(values), size(members), hops(2 * (members - 1)) {
    window = 2 * LAG * hops;
    part = RING_VALUES / window;
    part = part > PART_MOST ? PART_MOST : part < PART_LEAST ? PART_LEAST : part;
    uint64_t whole = (values + size - 1) / size;  // of a tensor that is one block
    whole = (whole + INT8_BLOCK - 1) / INT8_BLOCK * INT8_BLOCK;
    part = part < whole ? part : whole;
    part = part / INT8_BLOCK * INT8_BLOCK;
    block = part * size;
    blocks = (values + block - 1) / block;
    delta = LAG * hops - 1;
    places = (blocks + (hops - 1) * LAG) * hops;
  }
};

struct Item {
  bool there;  // a place may be empty at the beginning and the end of a stream
  uint32_t hop;
  uint64_t first, length;  // of its values
};

static Item item(const Plan& plan, uint32_t sender, uint64_t place) {
  uint32_t hop = plan.hops - 1 - place % plan.hops;
  uint64_t time = place / plan.hops, block = time - hop * LAG;
  if (time < hop * LAG || block >= plan.blocks) return {false, hop, 0, 0};
  uint64_t part = (sender + 2 * plan.size - hop) % plan.size;
  uint64_t first = block * plan.block + part * plan.part;
  uint64_t end = first + plan.part < plan.count ? first + plan.part : plan.count;
  return {true, hop, first, end > first ? end - first : 0};
}

static Status ring_all_reduce(Ring* ring, float* data, size_t count, Wire wire, float* error, int64_t idle_ns) {
  const Plan plan(count, ring->size);
  size_t stride = (wire_bytes(wire, plan.part) + 63) / 64 * 64;
  if (!ring->active) {
    if (!ring->scratch.reserve(stride) || (wire != FLOAT32 && !ring->slots.reserve(stride * plan.window))) {
      return NO_MEMORY;
    }
    begin(ring, ALL_REDUCE, wire, count);
  }
  const uint32_t before = (ring->position + ring->size - 1) % ring->size, last = plan.hops - 1, whole = ring->size - 2;
  auto slot = [&](uint64_t place) { return ring->slots.data + stride * (place % plan.window); };
  auto lost = [&](const Item& i) { return error ? error + i.first : nullptr; };
  while (ring->sent < plan.places || ring->received < plan.places || !ring->sent_header() || !ring->received_header()) {
    bool progress = false, sendable = false, receivable = false;
    uint64_t expected = 0;
    if (ring->sent < plan.places) {
      Item i = item(plan, ring->position, ring->sent);
      sendable = !i.there || i.hop == 0 || ring->received + plan.delta > ring->sent;
      if (sendable) {
        size_t bytes = wire_bytes(wire, i.length), moved = 0;
        const uint8_t* from = reinterpret_cast<uint8_t*>(data + i.first);
        if (wire != FLOAT32) {
          if (i.there && i.hop == 0 && ring->encoded == ring->sent) {
            format(wire)->encode(slot(ring->sent), data + i.first, lost(i), i.length);
            ++ring->encoded;
          }
          from = slot(ring->sent);
        }
        if (bytes || !ring->sent_header()) {
          Status status = send(ring, from + ring->partly_sent, bytes - ring->partly_sent, &moved);
          if (status != OK) return status;
        }
        if ((ring->partly_sent += moved) == bytes) {
          ++ring->sent;
          ring->encoded = ring->sent;
          ring->partly_sent = 0;
          progress = true;
        }
        progress |= moved > 0;
      }
    }
    if (ring->received < plan.places && ring->received + plan.delta < ring->sent + plan.window) {
      receivable = true;
      Item i = item(plan, before, ring->received);
      size_t bytes = wire_bytes(wire, i.length), moved = 0;
      bool sum = i.hop <= whole, on = i.hop < last;
      uint8_t* outgoing = on && wire != FLOAT32 ? slot(ring->received + plan.delta) : nullptr;
      uint8_t* into = sum || (wire != FLOAT32 && !on) ? ring->scratch.data
                      : wire == FLOAT32               ? reinterpret_cast<uint8_t*>(data + i.first)
                                                      : outgoing;
      if (bytes || !ring->received_header()) {
        Status status = receive(ring, into + ring->partly_received, bytes - ring->partly_received, &moved);
        if (status != OK) return status;
      }
      expected = bytes - ring->partly_received - moved;
      if ((ring->partly_received += moved) == bytes) {
        float* values = data + i.first;
        if (wire == FLOAT32) {
          if (sum) kernels->add(values, reinterpret_cast<float*>(into), i.length);
        } else if (sum) {
          format(wire)->encode_sum(outgoing, values, into, lost(i), i.hop == whole ? values : nullptr, i.length);
        } else {
          format(wire)->decode(values, into, i.length);
        }
        ++ring->received;
        ring->partly_received = 0;
        progress = true;
      }
      progress |= moved > 0;
    }
    if (progress) continue;
    Status status = wait(ring, receivable, expected, sendable, idle_ns);
    if (status != OK) return status;
  }
  return finish(ring, idle_ns);
}

}  // namespace mms

using namespace mms;

Ring* mms_ring_new(Stream* next, Stream* previous, uint32_t position, uint32_t size, uint64_t fence) {
  Ring* ring = static_cast<Ring*>(calloc(1, sizeof(Ring)));
  if (!ring) return nullptr;
  ring->next = next;
  ring->previous = previous;
  ring->position = position;
  ring->size = size;
  ring->fence = fence;
  return ring;
}

void mms_ring_free(Ring* ring) {
  free(ring->slots.data);
  free(ring->scratch.data);
  free(ring);
}

Status mms_ring_all_reduce(Ring* ring, float* data, uint64_t count, Wire wire, float* error, int64_t idle_ns) {
  if (ring->next->abort->is_set()) return fail(ABORTED, "aborted");
  if (wire_bytes(wire, count) * (ring->size - 1) <= RELAY_BYTES) {
    return relay_all_reduce(ring, data, count, wire, error, idle_ns);
  }
  return (ring->size == 2 ? exchange : ring_all_reduce)(ring, data, count, wire, error, idle_ns);
}

Status mms_ring_all_gather(Ring* ring, void* const* outputs, uint64_t bytes, int64_t idle_ns) {
  if (ring->next->abort->is_set()) return fail(ABORTED, "aborted");
  if (!ring->active) begin(ring, ALL_GATHER, 0, bytes);
  Part parts[RING_MOST];
  for (uint32_t hops = 0; hops < ring->size; ++hops) {
    uint32_t position = (ring->position + ring->size - hops) % ring->size;
    parts[hops] = {static_cast<uint8_t*>(outputs[position]), bytes};
  }
  uint64_t all = (ring->size - 1) * bytes;
  uint64_t count = ring->size - 1;
  return relay(ring, {parts, count, 0, 0}, all, bytes, {parts + 1, count, 0, 0}, all, idle_ns);
}

Status mms_ring_broadcast(Ring* ring, void* data, uint64_t bytes, uint32_t source, int64_t idle_ns) {
  if (ring->next->abort->is_set()) return fail(ABORTED, "aborted");
  if (!ring->active) begin(ring, BROADCAST, source, bytes);
  Part part = {static_cast<uint8_t*>(data), bytes};
  bool first = ring->position == source, last = (ring->position + 1) % ring->size == source;
  Parts parts = {&part, 1, 0, 0};
  return relay(ring, parts, last ? 0 : bytes, first ? bytes : 0, parts, first ? 0 : bytes, idle_ns);
}
