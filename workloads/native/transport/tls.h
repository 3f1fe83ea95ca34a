// TLS 1.3 over a non-blocking socket. Records are encrypted into a buffer of many, which takes one system call, and
// read as many at a time.
#pragma once

#include "abi.h"

namespace mms {

struct Tls;

Tls* tls_new(TlsContext* context, bool server, int descriptor, uint64_t rekey_bytes);
void tls_free(Tls* tls);

Status tls_handshake(Tls* tls, int* wants);
// Whether the first bytes that came were those of a TLS record.
bool tls_met(const Tls* tls);
int64_t tls_units(Tls* tls, char* into, uint64_t size);

// Encrypts up to `size` bytes and hands records to the socket. AGAIN: no more can be taken before the socket is
// writable. `sent` counts what was taken, which tls_flush may still have to hand over.
Status tls_send(Tls* tls, const void* data, uint64_t size, uint64_t* sent);
// AGAIN while records are left that the socket does not take.
Status tls_flush(Tls* tls);
Status tls_receive(Tls* tls, void* into, uint64_t size, uint64_t* received);

}  // namespace mms
