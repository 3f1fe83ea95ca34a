#include "openssl.h"

#include <dlfcn.h>
#include <pthread.h>

#include "error.h"

namespace mms::openssl {

#define MMS_DEFINE(library, result, name, parameters) result(*name) parameters;
MMS_OPENSSL(MMS_DEFINE)
#undef MMS_DEFINE

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static bool loaded;

static bool load_locked() {
  void* ssl = dlopen("libssl.so.3", RTLD_NOW | RTLD_LOCAL);
  void* crypto = ssl ? dlopen("libcrypto.so.3", RTLD_NOW | RTLD_LOCAL) : nullptr;
  if (!crypto) {
    fail(TLS_FAILED, "mutual TLS needs OpenSSL 3 (libssl.so.3, Debian's package libssl3): %s", dlerror());
    return false;
  }
#define MMS_FIND(library, result, name, parameters)                                         \
  if (!(name = reinterpret_cast<result(*) parameters>(dlsym(library, #name)))) {            \
    fail(TLS_FAILED, "lib" #library ".so.3 has no " #name ": OpenSSL 3 is needed for TLS"); \
    return false;                                                                           \
  }
  MMS_OPENSSL(MMS_FIND)
#undef MMS_FIND
  return true;
}

bool load() {
  pthread_mutex_lock(&lock);
  if (!loaded) loaded = load_locked();
  pthread_mutex_unlock(&lock);
  return loaded;
}

}  // namespace mms::openssl
