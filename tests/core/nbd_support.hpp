// SPDX-License-Identifier: Apache-2.0
// For the tests of the NBD protocol: bytes of a client put together by hand, and a volume in memory
// whose requests complete when, and in the order in which, the test says.
#pragma once

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string_view>
#include <vector>

#include "engine/base/endian.hpp"
#include "engine/frontend/nbd_protocol.hpp"
#include "engine/frontend/volume.hpp"
#include "tests/catch.hpp"

namespace replica {

using Bytes = std::vector<std::byte>;

class Builder {
  public:
    template <std::unsigned_integral T>
    Builder& number(T value) {
        std::byte raw[sizeof value];
        store_be(raw, value);
        bytes_.insert(bytes_.end(), raw, raw + sizeof value);
        return *this;
    }
    Builder& text(std::string_view value) {
        const auto raw = std::as_bytes(std::span(value));
        bytes_.insert(bytes_.end(), raw.begin(), raw.end());
        return *this;
    }
    Builder& raw(const Bytes& value) {
        bytes_.insert(bytes_.end(), value.begin(), value.end());
        return *this;
    }
    Builder& option(nbd::Option option, const Bytes& data = {}) {
        number(nbd::option_magic).number(static_cast<std::uint32_t>(option));
        return number(static_cast<std::uint32_t>(data.size())).raw(data);
    }
    Builder& request(nbd::Command type, std::uint16_t flags, std::uint64_t cookie,
                     std::uint64_t offset, std::uint32_t length) {
        number(nbd::request_magic).number(flags).number(static_cast<std::uint16_t>(type));
        return number(cookie).number(offset).number(length);
    }
    const Bytes& bytes() const { return bytes_; }

  private:
    Bytes bytes_;
};

// The data of INFO and GO.
inline Bytes info_data(std::string_view name, const std::vector<std::uint16_t>& types = {}) {
    Builder data;
    data.number(static_cast<std::uint32_t>(name.size())).text(name);
    data.number(static_cast<std::uint16_t>(types.size()));
    for (const std::uint16_t type : types)
        data.number(type);
    return data.bytes();
}

// The data of LIST_META_CONTEXT and SET_META_CONTEXT.
inline Bytes meta_data(std::string_view name, const std::vector<std::string_view>& queries) {
    Builder data;
    data.number(static_cast<std::uint32_t>(name.size())).text(name);
    data.number(static_cast<std::uint32_t>(queries.size()));
    for (const std::string_view query : queries) {
        data.number(static_cast<std::uint32_t>(query.size())).text(query);
    }
    return data.bytes();
}

struct MemoryVolume final : Volume {
    explicit MemoryVolume(std::size_t bytes) : memory(bytes) {
        state.size_bytes = bytes;
        state.writable = true;
    }

    VolumeInfo info() const override { return state; }
    void submit(IoRequest& request) override {
        const bool has_data = request.kind == IoKind::read || request.kind == IoKind::write;
        REQUIRE(request.length <= (has_data ? io_bytes_max : extent_bytes));
        REQUIRE(has_data == (request.buffer != nullptr));
        if (request.length > 0) {
            const std::uint64_t last = request.offset + request.length - 1;
            REQUIRE(request.offset / extent_bytes == last / extent_bytes);
            REQUIRE(last < memory.size());
        }
        submitted.push_back(&request);
    }
    std::byte* acquire_buffer() override {
        if (buffers_out == buffers) return nullptr;
        ++buffers_out;
        most_out = std::max(most_out, buffers_out);
        return new std::byte[io_bytes_max];
    }
    void release_buffer(std::byte* buffer) override {
        REQUIRE(buffers_out > 0);
        --buffers_out;
        delete[] buffer;
    }
    std::uint64_t extent_status(std::uint64_t offset, std::uint64_t length, bool& hole) override {
        return run(holes, offset, length, hole);
    }
    std::uint64_t dirty_status(std::uint64_t offset, std::uint64_t length, bool& dirty) override {
        return run(dirt, offset, length, dirty);
    }

    // Completes the request at `index` of `submitted`.
    void complete(std::size_t index, int error = 0) {
        IoRequest& request = *submitted.at(index);
        submitted.erase(submitted.begin() + static_cast<std::ptrdiff_t>(index));
        std::byte* const at = memory.data() + request.offset;
        if (error == 0 && request.kind == IoKind::read) {
            std::memcpy(request.buffer, at, request.length);
        } else if (error == 0 && request.kind == IoKind::write) {
            std::memcpy(at, request.buffer, request.length);
        } else if (error == 0 && request.kind != IoKind::flush) {
            std::memset(at, 0, request.length);
        }
        request.done(request, error);
    }
    void complete_all() {
        while (!submitted.empty())
            complete(0);
    }

    using Ranges = std::vector<std::pair<std::uint64_t, std::uint64_t>>;  // [begin, end), ascending
    static std::uint64_t run(const Ranges& ranges, std::uint64_t offset, std::uint64_t length,
                             bool& inside) {
        inside = false;
        for (const auto& [begin, end] : ranges) {
            if (offset >= end) continue;
            inside = offset >= begin;
            return std::min(length, (inside ? end : begin) - offset);
        }
        return length;
    }

    VolumeInfo state;
    Bytes memory;
    Ranges holes, dirt;
    std::vector<IoRequest*> submitted;
    std::size_t buffers = 1000, buffers_out = 0, most_out = 0;
};

}  // namespace replica
