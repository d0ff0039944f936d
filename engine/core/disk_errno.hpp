// SPDX-License-Identifier: Apache-2.0
// What a door may be told of a disk's error (docs/doors.md, "Errors").
#pragma once

#include <cerrno>

namespace replica {

// The kind of the error, where it has one that the block layer knows, and 0 for 0. All else is EIO:
// EROFS of a disk, say, would be taken for what the engine says of a node that is not primary.
constexpr int told_errno(int error) {
    switch (error) {
        case 0:
        case ENOSPC:
        case ENODATA:
        case EILSEQ:
        case ENOLINK:
        case ETIMEDOUT:
            return error;
        case EDQUOT:
            return ENOSPC;
        default:
            return EIO;
    }
}

}  // namespace replica
