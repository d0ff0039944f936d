// SPDX-License-Identifier: Apache-2.0
// See accepted_socket.hpp.
#include "engine/node/accepted_socket.hpp"

#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstring>

#include "engine/base/crc32c.hpp"
#include "engine/format/wire.hpp"

namespace replica {

void reject_and_close(int fd, std::string_view text) {
    std::array<std::byte, wire_header_bytes + wire_text_max> frame;
    const std::size_t length = std::min(text.size(), wire_text_max);
    std::memcpy(frame.data() + wire_header_bytes, text.data(), length);
    Message message;
    message.type = MessageType::reject;
    message.payload_bytes = static_cast<std::uint32_t>(length);
    const auto payload = std::span(frame).subspan(wire_header_bytes, length);
    encode_header(message, length == 0 ? 0 : crc32c(payload),
                  std::span(frame).first<wire_header_bytes>());
    [[maybe_unused]] const auto sent =
        ::send(fd, frame.data(), wire_header_bytes + length, MSG_NOSIGNAL | MSG_DONTWAIT);
    ::close(fd);
}

}  // namespace replica
