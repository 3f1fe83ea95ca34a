#include "error.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

namespace mms {

static thread_local char words[256];

Status fail(Status status, const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(words, sizeof words, format, arguments);
  va_end(arguments);
  return status;
}

Status socket_failed(int number) {
  if (number == EAGAIN || number == EWOULDBLOCK) return AGAIN;
  if (number == ECONNRESET || number == EPIPE) return fail(CLOSED, "the peer closed the connection");
  return fail(BROKEN, "%s", strerror(number));
}

}  // namespace mms

int32_t mms_abi_version() { return 1; }

const char* mms_error() { return mms::words; }
