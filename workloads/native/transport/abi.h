// What mms_workloads.transport calls by ctypes. Plain C; no call raises, and each blocking one returns a status.
//
// A blocking call that a signal interrupts returns INTERRUPTED with its progress kept: the caller runs its signal
// handlers and calls again with the same arguments. `idle_ns` bounds the time without a byte moved; negative: no bound.
#pragma once

#include <stddef.h>
#include <stdint.h>

#define MMS_API extern "C" __attribute__((visibility("default")))

namespace mms {

enum Status : int32_t {
  OK = 0,
  AGAIN = 1,        // a step that would block; mms_stream_wants tells what for
  INTERRUPTED = 2,  // by a signal; call again
  LATE = 3,         // idle for too long
  ABORTED = 4,
  CLOSED = 5,      // the peer closed the connection
  BROKEN = 6,      // the connection failed; mms_error tells how
  TLS_FAILED = 7,  // mms_error tells how
  MISMATCH = 8,    // the peers do not run the same collective; mms_error tells what differs
  NO_MEMORY = 9,
};

enum Wire : int32_t { FLOAT32 = 0, BF16 = 1, INT8 = 2 };

struct Abort;
struct Stream;
struct TlsContext;
struct Ring;

}  // namespace mms

MMS_API int32_t mms_abi_version();

// The words for this thread's last failure.
MMS_API const char* mms_error();

// The kernels in use: avx512, avx2, neon or scalar. Choosing returns false for one that this processor lacks.
MMS_API const char* mms_kernels();
MMS_API bool mms_kernels_choose(const char* name);

// An Abort is shared by reference: the last of its users closes its descriptor.
MMS_API mms::Abort* mms_abort_new();
MMS_API void mms_abort_set(mms::Abort* abort);
MMS_API int32_t mms_abort_descriptor(mms::Abort* abort);
MMS_API void mms_abort_release(mms::Abort* abort);

// TLS 1.3 with certificates on both sides. Null when the files or libssl.so.3 are not as they should be.
MMS_API mms::TlsContext* mms_tls_new(bool server, const char* certificate, const char* key, const char* authority);
MMS_API void mms_tls_free(mms::TlsContext* context);

// Takes the connected socket over and closes it at the end. context: null for a plain stream. rekey_bytes: after so
// many, the keys of what this side sends are changed.
MMS_API mms::Stream* mms_stream_new(int32_t descriptor, mms::TlsContext* context, bool server, mms::Abort* abort,
                                    uint64_t rekey_bytes);
// From here on the stream is woken by this one. No call may be in it.
MMS_API void mms_stream_rebind(mms::Stream* stream, mms::Abort* abort);
MMS_API mms::Status mms_stream_handshake(mms::Stream* stream);
MMS_API int32_t mms_stream_wants(mms::Stream* stream);  // POLLIN | POLLOUT, after AGAIN
// The organisational units of the peer's certificate, one a line; their length, or -1 when they do not fit.
MMS_API int64_t mms_stream_units(mms::Stream* stream, char* into, uint64_t size);
// What came first over a connection whose handshake failed: whether it was TLS at all.
MMS_API bool mms_stream_met_tls(mms::Stream* stream);
MMS_API mms::Status mms_stream_send_some(mms::Stream* stream, const void* data, uint64_t size, uint64_t* sent);
MMS_API mms::Status mms_stream_receive_some(mms::Stream* stream, void* into, uint64_t size, uint64_t* received);
// All of the buffers, in order; one call less for each buffer than sending them one by one. `done` starts at 0.
MMS_API mms::Status mms_stream_send(mms::Stream* stream, const void* const* data, const uint64_t* sizes, uint64_t count,
                                    int64_t idle_ns, uint64_t* done);
MMS_API mms::Status mms_stream_receive(mms::Stream* stream, void* const* into, const uint64_t* sizes, uint64_t count,
                                       int64_t idle_ns, uint64_t* done);
MMS_API void mms_stream_shutdown(mms::Stream* stream);  // wakes what blocks in it; from any thread
MMS_API void mms_stream_free(mms::Stream* stream);      // when no call is in it

// A ring of `size` members; this one sends to `next` and receives from `previous`, which stay the caller's.
MMS_API mms::Ring* mms_ring_new(mms::Stream* next, mms::Stream* previous, uint32_t position, uint32_t size,
                                uint64_t fence);
MMS_API void mms_ring_free(mms::Ring* ring);
// Sums data[count] in place. error: null or float[count].
MMS_API mms::Status mms_ring_all_reduce(mms::Ring* ring, float* data, uint64_t count, mms::Wire wire, float* error,
                                        int64_t idle_ns);
// outputs[i] is filled with `bytes` bytes of the member at position i; outputs[position] holds this one's already.
MMS_API mms::Status mms_ring_all_gather(mms::Ring* ring, void* const* outputs, uint64_t bytes, int64_t idle_ns);
MMS_API mms::Status mms_ring_broadcast(mms::Ring* ring, void* data, uint64_t bytes, uint32_t source, int64_t idle_ns);
