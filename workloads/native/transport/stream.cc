#include "stream.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "error.h"

namespace mms {

constexpr size_t AHEAD = 32768;             // small messages take one call with all that follows them
constexpr size_t LOW_WATER = 1 << 19;       // bytes that wake a receiver of a large tensor
constexpr size_t PARTIAL_RECORD = 1 << 15;  // bytes of a TLS record that may be in OpenSSL's hands already
constexpr int VECTORS = 16;
constexpr int KEEPALIVE_IDLE_SECONDS = 5, KEEPALIVE_INTERVAL_SECONDS = 2, KEEPALIVE_PROBES = 3;
// A wake-up that does not depend on the low-water mark: kernels before 5.12 could miss one under memory pressure.
constexpr int64_t LOW_WATER_PATIENCE_NS = 50'000'000;

void Parts::advance(uint64_t bytes) {
  while (index < count) {
    uint64_t left = parts[index].size - offset;
    if (bytes < left) {
      offset += bytes;
      return;
    }
    bytes -= left;
    ++index;
    offset = 0;
  }
}

// Vectors for at most `limit` bytes from the position on.
static int vectors(Parts parts, size_t limit, iovec* into) {
  int count = 0;
  for (uint64_t i = parts.index, offset = parts.offset; i < parts.count && count < VECTORS && limit; ++i, offset = 0) {
    size_t size = parts.parts[i].size - offset;
    if (!size) continue;
    if (size > limit) size = limit;
    into[count++] = {parts.parts[i].data + offset, size};
    limit -= size;
  }
  return count;
}

Status stream_send(Stream* stream, Parts parts, uint64_t* moved) {
  *moved = 0;
  if (stream->tls) {
    while (!parts.done()) {
      const Part& part = parts.parts[parts.index];
      uint64_t sent;
      Status status = tls_send(stream->tls, part.data + parts.offset, part.size - parts.offset, &sent);
      *moved += sent;
      if (status != OK) return status == AGAIN && *moved ? OK : status;
      parts.advance(sent);
    }
    return OK;
  }
  iovec to[VECTORS];
  msghdr message = {};
  message.msg_iov = to;
  while (!parts.done()) {
    message.msg_iovlen = vectors(parts, CALL, to);
    ssize_t sent = sendmsg(stream->descriptor, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (sent < 0) {
      if (errno == EINTR) continue;
      Status status = socket_failed(errno);
      return status == AGAIN && *moved ? OK : status;
    }
    *moved += sent;
    parts.advance(sent);
  }
  return OK;
}

Status stream_flush(Stream* stream) { return stream->tls ? tls_flush(stream->tls) : OK; }

// Copies from what is there already.
static uint64_t from_ahead(Stream* stream, Parts* parts) {
  uint64_t moved = 0;
  while (stream->begin < stream->end && !parts->done()) {
    const Part& part = parts->parts[parts->index];
    uint64_t size = part.size - parts->offset;
    if (size > stream->end - stream->begin) size = stream->end - stream->begin;
    memcpy(part.data + parts->offset, stream->ahead + stream->begin, size);
    stream->begin += size;
    parts->advance(size);
    moved += size;
  }
  return moved;
}

Status stream_receive(Stream* stream, Parts parts, uint64_t* moved) {
  *moved = 0;
  if (stream->tls) {
    while (!parts.done()) {
      const Part& part = parts.parts[parts.index];
      uint64_t size = part.size - parts.offset, got;
      Status status = tls_receive(stream->tls, part.data + parts.offset, size, &got);
      *moved += got;
      if (status != OK) return status == AGAIN && *moved ? OK : status;
      parts.advance(got);
      if (got < size) return OK;
    }
    return OK;
  }
  iovec to[VECTORS + 1];
  msghdr message = {};
  message.msg_iov = to;
  for (;;) {
    *moved += from_ahead(stream, &parts);
    if (parts.done()) return OK;
    int count = vectors(parts, CALL, to);
    size_t wanted = 0;
    for (int i = 0; i < count; ++i) wanted += to[i].iov_len;
    if (wanted < AHEAD) to[count++] = {stream->ahead, AHEAD};
    message.msg_iovlen = count;
    ssize_t got = recvmsg(stream->descriptor, &message, MSG_DONTWAIT);
    if (got < 0) {
      if (errno == EINTR) continue;
      Status status = socket_failed(errno);
      return status == AGAIN && *moved ? OK : status;
    }
    if (got == 0) return *moved ? OK : fail(CLOSED, "the peer closed the connection");
    size_t mine = static_cast<size_t>(got) < wanted ? got : wanted;
    stream->begin = 0;
    stream->end = got - mine;
    *moved += mine;
    parts.advance(mine);
    if (mine < wanted) return OK;  // the socket is empty
  }
}

static void set_low_water(Stream* stream, uint64_t expected) {
  if (stream->tls) expected = expected > PARTIAL_RECORD ? expected - PARTIAL_RECORD : 1;
  int wanted = expected < LOW_WATER / 8 ? 1 : static_cast<int>(expected < LOW_WATER ? expected : LOW_WATER);
  if (wanted == stream->low_water) return;
  if (setsockopt(stream->descriptor, SOL_SOCKET, SO_RCVLOWAT, &wanted, sizeof wanted) == 0) stream->low_water = wanted;
}

static int64_t now_ns() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * INT64_C(1'000'000'000) + now.tv_nsec;
}

Status stream_wait(Stream* reading, uint64_t expected, Stream* writing, int64_t idle_ns) {
  Abort* abort = reading ? reading->abort : writing->abort;
  pollfd waits[3] = {{abort->descriptor, POLLIN, 0}};
  int count = 1;
  if (reading) {
    set_low_water(reading, expected);
    waits[count++] = {reading->descriptor, POLLIN, 0};
  }
  if (writing) waits[count++] = {writing->descriptor, POLLOUT, 0};
  bool patient = reading && reading->low_water > 1;
  int64_t end = idle_ns < 0 ? -1 : now_ns() + idle_ns;
  for (;;) {
    if (abort->is_set()) return fail(ABORTED, "aborted");
    int64_t left = end < 0 ? -1 : end - now_ns();
    if (end >= 0 && left <= 0) return fail(LATE, "nothing moved for %.1f s", idle_ns * 1e-9);
    bool tick = patient && (left < 0 || left > LOW_WATER_PATIENCE_NS);
    if (tick) left = LOW_WATER_PATIENCE_NS;
    timespec span = {left / 1'000'000'000, left % 1'000'000'000};
    int ready = ppoll(waits, count, left < 0 ? nullptr : &span, nullptr);
    if (ready < 0) return errno == EINTR ? INTERRUPTED : fail(BROKEN, "poll: %s", strerror(errno));
    if (ready > 0) return abort->is_set() ? fail(ABORTED, "aborted") : OK;
    if (tick) {
      uint8_t byte;
      if (recv(reading->descriptor, &byte, 1, MSG_PEEK | MSG_DONTWAIT) >= 0) return OK;
    }
  }
}

static Parts parts_of(const void* const* data, const uint64_t* sizes, uint64_t count, Part* into) {
  for (uint64_t i = 0; i < count; ++i) {
    into[i] = {static_cast<uint8_t*>(const_cast<void*>(data[i])), sizes[i]};
  }
  return {into, count, 0, 0};
}

}  // namespace mms

using namespace mms;

Abort* mms_abort_new() {
  Abort* abort = static_cast<Abort*>(calloc(1, sizeof(Abort)));
  if (!abort) return nullptr;
  abort->descriptor = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
  abort->references = 1;
  if (abort->descriptor >= 0) return abort;
  fail(BROKEN, "eventfd: %s", strerror(errno));
  free(abort);
  return nullptr;
}

void mms_abort_set(Abort* abort) {
  __atomic_store_n(&abort->set, true, __ATOMIC_RELEASE);
  uint64_t one = 1;
  ssize_t ignored = write(abort->descriptor, &one, sizeof one);
  (void)ignored;
}

int32_t mms_abort_descriptor(Abort* abort) { return abort->descriptor; }

void mms_abort_release(Abort* abort) {
  if (__atomic_fetch_sub(&abort->references, 1, __ATOMIC_ACQ_REL) != 1) return;
  close(abort->descriptor);
  free(abort);
}

Stream* mms_stream_new(int32_t descriptor, TlsContext* context, bool server, Abort* abort, uint64_t rekey_bytes) {
  Stream* stream = static_cast<Stream*>(calloc(1, sizeof(Stream)));
  if (!stream) return nullptr;
  bool ready = context ? (stream->tls = tls_new(context, server, descriptor, rekey_bytes)) != nullptr
                       : (stream->ahead = static_cast<uint8_t*>(malloc(AHEAD))) != nullptr;
  if (!ready) {
    free(stream);
    return nullptr;
  }
  stream->descriptor = descriptor;
  stream->low_water = 1;
  stream->abort = abort;
  __atomic_fetch_add(&abort->references, 1, __ATOMIC_RELAXED);
  int on = 1;
  setsockopt(descriptor, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  // A peer whose node is gone is noticed while nothing is under way. No TCP_USER_TIMEOUT: it would end a connection
  // whose peer only doesn't read for a while. Buffers are the kernel's to tune: a size that is set by hand stays.
  setsockopt(descriptor, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
  setsockopt(descriptor, IPPROTO_TCP, TCP_KEEPIDLE, &KEEPALIVE_IDLE_SECONDS, sizeof(int));
  setsockopt(descriptor, IPPROTO_TCP, TCP_KEEPINTVL, &KEEPALIVE_INTERVAL_SECONDS, sizeof(int));
  setsockopt(descriptor, IPPROTO_TCP, TCP_KEEPCNT, &KEEPALIVE_PROBES, sizeof(int));
  return stream;
}

void mms_stream_rebind(Stream* stream, Abort* abort) {
  __atomic_fetch_add(&abort->references, 1, __ATOMIC_RELAXED);
  mms_abort_release(stream->abort);
  stream->abort = abort;
}

Status mms_stream_handshake(Stream* stream) { return stream->tls ? tls_handshake(stream->tls, &stream->wants) : OK; }

int32_t mms_stream_wants(Stream* stream) { return stream->wants; }

int64_t mms_stream_units(Stream* stream, char* into, uint64_t size) {
  return stream->tls ? tls_units(stream->tls, into, size) : 0;
}

bool mms_stream_met_tls(Stream* stream) { return stream->tls && tls_met(stream->tls); }

Status mms_stream_send_some(Stream* stream, const void* data, uint64_t size, uint64_t* sent) {
  Part part = {static_cast<uint8_t*>(const_cast<void*>(data)), size};
  stream->wants = POLLOUT;
  Status status = stream_send(stream, {&part, 1, 0, 0}, sent);
  return status == OK ? stream_flush(stream) : status;
}

Status mms_stream_receive_some(Stream* stream, void* into, uint64_t size, uint64_t* received) {
  Part part = {static_cast<uint8_t*>(into), size};
  stream->wants = POLLIN;
  return stream_receive(stream, {&part, 1, 0, 0}, received);
}

constexpr uint64_t PARTS_ON_STACK = 64;

Status mms_stream_send(Stream* stream, const void* const* data, const uint64_t* sizes, uint64_t count, int64_t idle_ns,
                       uint64_t* done) {
  if (stream->abort->is_set()) return fail(ABORTED, "aborted");
  Part few[PARTS_ON_STACK];
  Part* into = count <= PARTS_ON_STACK ? few : static_cast<Part*>(malloc(count * sizeof(Part)));
  if (!into) return NO_MEMORY;
  Parts parts = parts_of(data, sizes, count, into);
  parts.seek(*done);
  Status status = OK;
  while (status == OK) {
    uint64_t moved;
    status = stream_send(stream, parts, &moved);
    *done += moved;
    parts.advance(moved);
    if (status == OK && parts.done() && (status = stream_flush(stream)) == OK) break;
    if (status == OK || status == AGAIN) status = stream_wait(nullptr, 0, stream, idle_ns);
  }
  if (into != few) free(into);
  return status;
}

Status mms_stream_receive(Stream* stream, void* const* into, const uint64_t* sizes, uint64_t count, int64_t idle_ns,
                          uint64_t* done) {
  if (stream->abort->is_set()) return fail(ABORTED, "aborted");
  Part few[PARTS_ON_STACK];
  Part* to = count <= PARTS_ON_STACK ? few : static_cast<Part*>(malloc(count * sizeof(Part)));
  if (!to) return NO_MEMORY;
  Parts parts = parts_of(into, sizes, count, to);
  uint64_t total = 0;
  for (uint64_t i = 0; i < count; ++i) total += sizes[i];
  parts.seek(*done);
  Status status = OK;
  while (!parts.done()) {
    uint64_t moved;
    status = stream_receive(stream, parts, &moved);
    *done += moved;
    parts.advance(moved);
    if (status == AGAIN || (status == OK && !parts.done()))
      status = stream_wait(stream, total - *done, nullptr, idle_ns);
    if (status != OK) break;
  }
  if (to != few) free(to);
  return status;
}

void mms_stream_shutdown(Stream* stream) { shutdown(stream->descriptor, SHUT_RDWR); }

void mms_stream_free(Stream* stream) {
  tls_free(stream->tls);
  close(stream->descriptor);
  mms_abort_release(stream->abort);
  free(stream->ahead);
  free(stream);
}
