#include "tls.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "error.h"
#include "openssl.h"

namespace mms {

using namespace openssl;

constexpr size_t RECORD = 16384;                    // plaintext of a full record (RFC 8446, 5.1)
constexpr size_t OVERHEAD = 256 + 5;                // the most that a record may be longer (RFC 8446, 5.2)
constexpr size_t BATCH = 32 * (RECORD + OVERHEAD);  // that one system call sends or receives
constexpr size_t ALERTS = 4096;                     // handshake messages and alerts that a read provokes

struct Tls {
  SSL* ssl;
  int descriptor;
  // An SSL is for one thread at a time: one may send while another receives, and each holds this for a batch.
  pthread_mutex_t lock;
  // Encrypted and not yet sent: [begin, end) of `out`. Only the sending thread touches it after the handshake.
  uint8_t* out;
  size_t begin, end, capacity;
  // Received and not yet taken by OpenSSL: [in_begin, in_end) of `in`. OpenSSL's own read-ahead moves all that is left
  // of its buffer for each record.
  uint8_t* in;
  size_t in_begin, in_end;
  bool reading;  // the lock's holder is in SSL_read: what it writes is an alert, not a record of the sender's
  int failure;   // errno of the socket
  bool ended;    // the peer's side of the connection is closed
  uint64_t rekey_bytes, until_rekey;
  uint8_t first;  // byte that came
  bool met;
};

struct TlsContext {
  SSL_CTX* context;
};

// ---- BIO: OpenSSL's end of the socket

static BIO_METHOD* method;
static pthread_mutex_t method_lock = PTHREAD_MUTEX_INITIALIZER;

static int bio_read(BIO* bio, char* into, int size) {
  Tls* tls = static_cast<Tls*>(BIO_get_data(bio));
  BIO_clear_flags(bio, BIO_FLAGS_READ | BIO_FLAGS_WRITE | BIO_FLAGS_SHOULD_RETRY);
  ssize_t got = 1;
  if (tls->in_begin == tls->in_end) {
    do {
      got = recv(tls->descriptor, tls->in, BATCH, MSG_DONTWAIT);
    } while (got < 0 && errno == EINTR);
    tls->in_begin = 0;
    tls->in_end = got > 0 ? got : 0;
    if (got > 0 && !tls->met) {
      tls->met = true;
      tls->first = tls->in[0];
    }
  }
  if (got > 0) {
    size_t part = tls->in_end - tls->in_begin;
    if (part > static_cast<size_t>(size)) part = size;
    memcpy(into, tls->in + tls->in_begin, part);
    tls->in_begin += part;
    return static_cast<int>(part);
  }
  if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
    BIO_set_flags(bio, BIO_FLAGS_READ | BIO_FLAGS_SHOULD_RETRY);
    return -1;
  }
  if (got == 0) {
    tls->ended = true;
  } else {
    tls->failure = errno;
  }
  return got == 0 ? 0 : -1;
}

static int bio_write(BIO* bio, const char* data, int size) {
  Tls* tls = static_cast<Tls*>(BIO_get_data(bio));
  BIO_clear_flags(bio, BIO_FLAGS_READ | BIO_FLAGS_WRITE | BIO_FLAGS_SHOULD_RETRY);
  if (tls->reading) {  // the connection is about to fail: the peer is told why, if the socket takes it
    ssize_t ignored = send(tls->descriptor, data, size, MSG_DONTWAIT | MSG_NOSIGNAL);
    (void)ignored;
    return size;
  }
  if (static_cast<size_t>(size) > tls->capacity - tls->end) {
    BIO_set_flags(bio, BIO_FLAGS_WRITE | BIO_FLAGS_SHOULD_RETRY);
    return -1;
  }
  memcpy(tls->out + tls->end, data, size);
  tls->end += size;
  return size;
}

static long bio_ctrl(BIO* bio, int command, long, void*) {
  if (command == BIO_CTRL_EOF) return static_cast<Tls*>(BIO_get_data(bio))->ended;
  return command == BIO_CTRL_FLUSH;
}

static BIO_METHOD* bio_method() {
  pthread_mutex_lock(&method_lock);
  if (!method && (method = BIO_meth_new(BIO_get_new_index() | BIO_TYPE_SOURCE_SINK, "mms"))) {
    BIO_meth_set_read(method, bio_read);
    BIO_meth_set_write(method, bio_write);
    BIO_meth_set_ctrl(method, bio_ctrl);
  }
  pthread_mutex_unlock(&method_lock);
  return method;
}

// ---- failures

static const char* reason() {
  unsigned long code = ERR_get_error();
  ERR_clear_error();
  const char* words = code ? ERR_reason_error_string(code) : nullptr;
  return words ? words : "unknown reason";
}

// What an operation that returned no success means.
static Status outcome(Tls* tls, int returned) {
  int error = SSL_get_error(tls->ssl, returned);
  if (error == ERROR_WANT_READ || error == ERROR_WANT_WRITE) return AGAIN;
  if (tls->failure) return socket_failed(tls->failure);
  if (tls->ended || error == ERROR_ZERO_RETURN) return fail(CLOSED, "the peer closed the connection");
  long verdict = SSL_get_verify_result(tls->ssl);
  if (verdict) return fail(TLS_FAILED, "certificate: %s", X509_verify_cert_error_string(verdict));
  return fail(TLS_FAILED, "%s", reason());
}

// ---- the life of a connection

Tls* tls_new(TlsContext* context, bool server, int descriptor, uint64_t rekey_bytes) {
  Tls* tls = static_cast<Tls*>(calloc(1, sizeof(Tls)));
  if (!tls) return nullptr;
  pthread_mutex_init(&tls->lock, nullptr);
  tls->descriptor = descriptor;
  tls->rekey_bytes = tls->until_rekey = rekey_bytes;
  tls->capacity = BATCH + ALERTS;
  tls->out = static_cast<uint8_t*>(malloc(tls->capacity));
  tls->in = static_cast<uint8_t*>(malloc(BATCH));
  BIO_METHOD* kind = bio_method();
  BIO* bio = tls->out && tls->in && kind ? BIO_new(kind) : nullptr;
  tls->ssl = bio ? SSL_new(context->context) : nullptr;
  if (!tls->ssl) {
    if (bio) BIO_free(bio);
    tls_free(tls);
    return nullptr;
  }
  BIO_set_data(bio, tls);
  BIO_set_init(bio, 1);
  SSL_set_bio(tls->ssl, bio, bio);
  if (server) {
    SSL_set_accept_state(tls->ssl);
  } else {
    SSL_set_connect_state(tls->ssl);
  }
  return tls;
}

void tls_free(Tls* tls) {
  if (!tls) return;
  if (tls->ssl) SSL_free(tls->ssl);
  pthread_mutex_destroy(&tls->lock);
  free(tls->out);
  free(tls->in);
  free(tls);
}

Status tls_handshake(Tls* tls, int* wants) {
  for (;;) {
    ERR_clear_error();
    int returned = SSL_do_handshake(tls->ssl);
    Status status = returned == 1 ? OK : outcome(tls, returned);
    Status flushed = tls_flush(tls);  // of a failure too: it holds the alert that tells the peer why
    if (status == OK || status == AGAIN) {
      if (flushed == AGAIN) {
        *wants = POLLOUT;
        return AGAIN;
      }
      if (flushed != OK) return flushed;
    }
    if (status == AGAIN) *wants = POLLIN;
    return status;
  }
}

bool tls_met(const Tls* tls) { return tls->met && tls->first >= 20 && tls->first <= 24; }

int64_t tls_units(Tls* tls, char* into, uint64_t size) {
  X509* certificate = SSL_get1_peer_certificate(tls->ssl);
  if (!certificate) return 0;
  X509_NAME* subject = X509_get_subject_name(certificate);
  uint64_t used = 0;
  int index = -1;
  while ((index = X509_NAME_get_index_by_NID(subject, NID_ORGANIZATIONAL_UNIT, index)) >= 0) {
    ASN1_STRING* unit = X509_NAME_ENTRY_get_data(X509_NAME_get_entry(subject, index));
    uint64_t length = ASN1_STRING_length(unit);
    if (used + length + 1 > size) {
      X509_free(certificate);
      return -1;
    }
    memcpy(into + used, ASN1_STRING_get0_data(unit), length);
    used += length;
    into[used++] = '\n';
  }
  X509_free(certificate);
  return static_cast<int64_t>(used);
}

// ---- data

Status tls_flush(Tls* tls) {
  while (tls->begin < tls->end) {
    ssize_t sent = send(tls->descriptor, tls->out + tls->begin, tls->end - tls->begin, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (sent < 0) {
      if (errno == EINTR) continue;
      return socket_failed(errno);
    }
    tls->begin += sent;
  }
  tls->begin = tls->end = 0;
  return OK;
}

// Fills the buffer with records.
static Status encrypt(Tls* tls, const uint8_t* data, uint64_t size, uint64_t* taken) {
  ERR_clear_error();
  while (*taken < size && tls->capacity - tls->end >= RECORD + OVERHEAD + ALERTS) {
    if (!tls->until_rekey) {
      // RFC 8446, 5.5: AES-GCM is safe for 2^24.5 full records under a key. The update goes before the next record.
      if (SSL_key_update(tls->ssl, KEY_UPDATE_NOT_REQUESTED) != 1) return fail(TLS_FAILED, "%s", reason());
      tls->until_rekey = tls->rekey_bytes;
    }
    uint64_t part = size - *taken < RECORD ? size - *taken : RECORD;
    size_t written = 0;
    int returned = SSL_write_ex(tls->ssl, data + *taken, part, &written);
    if (returned != 1) return outcome(tls, returned);
    *taken += written;
    tls->until_rekey -= written < tls->until_rekey ? written : tls->until_rekey;
  }
  return OK;
}

Status tls_send(Tls* tls, const void* data, uint64_t size, uint64_t* sent) {
  *sent = 0;
  while (*sent < size) {
    // A buffer that is nearly empty holds the records that are to come in one call together.
    if (tls->capacity - tls->end < RECORD + OVERHEAD + ALERTS) {
      Status status = tls_flush(tls);
      if (status != OK) return status;
    }
    pthread_mutex_lock(&tls->lock);
    Status status = encrypt(tls, static_cast<const uint8_t*>(data), size, sent);
    pthread_mutex_unlock(&tls->lock);
    if (status != OK) return status;
  }
  return OK;
}

Status tls_receive(Tls* tls, void* into, uint64_t size, uint64_t* received) {
  *received = 0;
  pthread_mutex_lock(&tls->lock);
  tls->reading = true;
  ERR_clear_error();
  Status status = OK;
  while (*received < size) {
    size_t got = 0;
    int returned = SSL_read_ex(tls->ssl, static_cast<uint8_t*>(into) + *received, size - *received, &got);
    if (returned != 1) {
      status = outcome(tls, returned);
      break;
    }
    *received += got;
  }
  tls->reading = false;
  pthread_mutex_unlock(&tls->lock);
  return *received ? OK : status;
}

}  // namespace mms

// ---- contexts

using namespace mms;
using namespace mms::openssl;

static bool prepare(SSL_CTX* context, const char* certificate, const char* key, const char* authority) {
  const char* what = nullptr;
  if (SSL_CTX_use_certificate_chain_file(context, certificate) != 1) {
    what = certificate;
  } else if (SSL_CTX_use_PrivateKey_file(context, key, FILETYPE_PEM) != 1 || SSL_CTX_check_private_key(context) != 1) {
    what = key;
  } else if (SSL_CTX_load_verify_file(context, authority) != 1) {
    what = authority;
  }
  if (what) {
    fail(TLS_FAILED, "%s: %s", what, reason());
    return false;
  }
  SSL_CTX_ctrl(context, CTRL_SET_MIN_PROTO_VERSION, TLS1_3_VERSION, nullptr);
  SSL_CTX_ctrl(context, CTRL_SET_MAX_PROTO_VERSION, TLS1_3_VERSION, nullptr);
  SSL_CTX_set_ciphersuites(context, "TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256");
  // The peer is a pod that was found by its address, and its certificate names a role, not an address. What makes it
  // the right one: the authority is the job's own, the unit says what the holder may do, and the greeting is fenced.
  SSL_CTX_set_verify(context, VERIFY_PEER | VERIFY_FAIL_IF_NO_PEER_CERT, nullptr);
  SSL_CTX_set_options(context, OP_NO_COMPRESSION | OP_CIPHER_SERVER_PREFERENCE);
  SSL_CTX_set_num_tickets(context, 0);  // no connection is resumed
  SSL_CTX_ctrl(context, CTRL_SET_SESS_CACHE_MODE, 0, nullptr);
  SSL_CTX_ctrl(context, CTRL_MODE, MODE_ENABLE_PARTIAL_WRITE | MODE_ACCEPT_MOVING_WRITE_BUFFER, nullptr);
  return true;
}

TlsContext* mms_tls_new(bool server, const char* certificate, const char* key, const char* authority) {
  if (!load()) return nullptr;
  ERR_clear_error();
  SSL_CTX* context = SSL_CTX_new(server ? TLS_server_method() : TLS_client_method());
  TlsContext* made = context ? static_cast<TlsContext*>(malloc(sizeof(TlsContext))) : nullptr;
  if (made && prepare(context, certificate, key, authority)) {
    made->context = context;
    return made;
  }
  free(made);
  if (context) SSL_CTX_free(context);
  return nullptr;
}

void mms_tls_free(TlsContext* context) {
  SSL_CTX_free(context->context);
  free(context);
}
