// libssl and libcrypto 3, loaded when they are first needed: the libraries that Python's ssl module uses, without their
// headers, so that the build needs nothing of the system. What is declared here is the documented ABI of OpenSSL 3.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace mms::openssl {

struct SSL_METHOD;
struct SSL_CTX;
struct SSL;
struct BIO;
struct BIO_METHOD;
struct X509;
struct X509_NAME;
struct X509_NAME_ENTRY;
struct ASN1_STRING;
struct X509_STORE_CTX;

constexpr int FILETYPE_PEM = 1;
constexpr int VERIFY_PEER = 1, VERIFY_FAIL_IF_NO_PEER_CERT = 2;
constexpr int CTRL_MODE = 33, CTRL_SET_READ_AHEAD = 41, CTRL_SET_SESS_CACHE_MODE = 44;
constexpr int CTRL_SET_MIN_PROTO_VERSION = 123, CTRL_SET_MAX_PROTO_VERSION = 124;
constexpr int TLS1_3_VERSION = 0x0304;
constexpr int MODE_ENABLE_PARTIAL_WRITE = 1, MODE_ACCEPT_MOVING_WRITE_BUFFER = 2;
constexpr uint64_t OP_NO_COMPRESSION = uint64_t{1} << 17, OP_CIPHER_SERVER_PREFERENCE = uint64_t{1} << 22;
constexpr int ERROR_SSL = 1, ERROR_WANT_READ = 2, ERROR_WANT_WRITE = 3, ERROR_SYSCALL = 5, ERROR_ZERO_RETURN = 6;
constexpr int KEY_UPDATE_NOT_REQUESTED = 0;
constexpr int BIO_TYPE_SOURCE_SINK = 0x0400;
constexpr int BIO_FLAGS_READ = 1, BIO_FLAGS_WRITE = 2, BIO_FLAGS_SHOULD_RETRY = 8;
constexpr int BIO_CTRL_EOF = 2, BIO_CTRL_FLUSH = 11;
constexpr int NID_ORGANIZATIONAL_UNIT = 18;

// X(library, result, name, parameters)
#define MMS_OPENSSL(X)                                                               \
  X(ssl, const SSL_METHOD*, TLS_server_method, ())                                   \
  X(ssl, const SSL_METHOD*, TLS_client_method, ())                                   \
  X(ssl, SSL_CTX*, SSL_CTX_new, (const SSL_METHOD*))                                 \
  X(ssl, void, SSL_CTX_free, (SSL_CTX*))                                             \
  X(ssl, long, SSL_CTX_ctrl, (SSL_CTX*, int, long, void*))                           \
  X(ssl, uint64_t, SSL_CTX_set_options, (SSL_CTX*, uint64_t))                        \
  X(ssl, int, SSL_CTX_set_ciphersuites, (SSL_CTX*, const char*))                     \
  X(ssl, int, SSL_CTX_use_certificate_chain_file, (SSL_CTX*, const char*))           \
  X(ssl, int, SSL_CTX_use_PrivateKey_file, (SSL_CTX*, const char*, int))             \
  X(ssl, int, SSL_CTX_check_private_key, (const SSL_CTX*))                           \
  X(ssl, int, SSL_CTX_load_verify_file, (SSL_CTX*, const char*))                     \
  X(ssl, void, SSL_CTX_set_verify, (SSL_CTX*, int, int (*)(int, X509_STORE_CTX*)))   \
  X(ssl, int, SSL_CTX_set_num_tickets, (SSL_CTX*, size_t))                           \
  X(ssl, void, SSL_CTX_set_default_read_buffer_len, (SSL_CTX*, size_t))              \
  X(ssl, SSL*, SSL_new, (SSL_CTX*))                                                  \
  X(ssl, void, SSL_free, (SSL*))                                                     \
  X(ssl, void, SSL_set_bio, (SSL*, BIO*, BIO*))                                      \
  X(ssl, void, SSL_set_accept_state, (SSL*))                                         \
  X(ssl, void, SSL_set_connect_state, (SSL*))                                        \
  X(ssl, int, SSL_do_handshake, (SSL*))                                              \
  X(ssl, int, SSL_read_ex, (SSL*, void*, size_t, size_t*))                           \
  X(ssl, int, SSL_write_ex, (SSL*, const void*, size_t, size_t*))                    \
  X(ssl, int, SSL_get_error, (const SSL*, int))                                      \
  X(ssl, int, SSL_key_update, (SSL*, int))                                           \
  X(ssl, long, SSL_get_verify_result, (const SSL*))                                  \
  X(ssl, X509*, SSL_get1_peer_certificate, (const SSL*))                             \
  X(crypto, const char*, X509_verify_cert_error_string, (long))                      \
  X(crypto, X509_NAME*, X509_get_subject_name, (const X509*))                        \
  X(crypto, int, X509_NAME_get_index_by_NID, (const X509_NAME*, int, int))           \
  X(crypto, X509_NAME_ENTRY*, X509_NAME_get_entry, (const X509_NAME*, int))          \
  X(crypto, ASN1_STRING*, X509_NAME_ENTRY_get_data, (const X509_NAME_ENTRY*))        \
  X(crypto, const unsigned char*, ASN1_STRING_get0_data, (const ASN1_STRING*))       \
  X(crypto, int, ASN1_STRING_length, (const ASN1_STRING*))                           \
  X(crypto, void, X509_free, (X509*))                                                \
  X(crypto, int, BIO_get_new_index, ())                                              \
  X(crypto, BIO_METHOD*, BIO_meth_new, (int, const char*))                           \
  X(crypto, int, BIO_meth_set_read, (BIO_METHOD*, int (*)(BIO*, char*, int)))        \
  X(crypto, int, BIO_meth_set_write, (BIO_METHOD*, int (*)(BIO*, const char*, int))) \
  X(crypto, int, BIO_meth_set_ctrl, (BIO_METHOD*, long (*)(BIO*, int, long, void*))) \
  X(crypto, BIO*, BIO_new, (const BIO_METHOD*))                                      \
  X(crypto, int, BIO_free, (BIO*))                                                   \
  X(crypto, void, BIO_set_data, (BIO*, void*))                                       \
  X(crypto, void*, BIO_get_data, (BIO*))                                             \
  X(crypto, void, BIO_set_init, (BIO*, int))                                         \
  X(crypto, void, BIO_set_flags, (BIO*, int))                                        \
  X(crypto, void, BIO_clear_flags, (BIO*, int))                                      \
  X(crypto, unsigned long, ERR_get_error, ())                                        \
  X(crypto, void, ERR_clear_error, ())                                               \
  X(crypto, const char*, ERR_reason_error_string, (unsigned long))

#define MMS_DECLARE(library, result, name, parameters) extern result(*name) parameters;
MMS_OPENSSL(MMS_DECLARE)
#undef MMS_DECLARE

// Loads both once; false, with words in mms_error, when they are not there.
bool load();

}  // namespace mms::openssl
