// SPDX-License-Identifier: Apache-2.0
// What is done with a connection that a peer made before it belongs to a link: refusing it. Any
// thread; never blocks.
#pragma once

#include <string_view>

namespace replica {

// Sends one reject frame with `text` (cut to the wire's limit) and closes the descriptor. The
// connection is new, so the frame fits its send buffer.
void reject_and_close(int fd, std::string_view text);

}  // namespace replica
