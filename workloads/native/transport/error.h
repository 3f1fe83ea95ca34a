#pragma once

#include "abi.h"

namespace mms {

// Keeps the words for mms_error and returns the status.
__attribute__((format(printf, 2, 3))) Status fail(Status status, const char* format, ...);

// What a failed call on a socket means, by its errno.
Status socket_failed(int number);

}  // namespace mms
