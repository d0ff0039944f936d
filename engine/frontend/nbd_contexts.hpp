// SPDX-License-Identifier: Apache-2.0
// The meta contexts of an export: what `nbdinfo --map=NAME` can show. base:allocation is the
// protocol's own, x-replica:dirty is the bitmap of what some peer lacks.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>

namespace replica {

inline constexpr std::array<std::string_view, 2> nbd_contexts = {"base:allocation",
                                                                 "x-replica:dirty"};
inline constexpr unsigned nbd_context_allocation = 0;
inline constexpr unsigned nbd_context_dirty = 1;
inline constexpr std::uint32_t nbd_contexts_all = (1U << nbd_contexts.size()) - 1;

// The id that a client sees; never 0.
constexpr std::uint32_t nbd_context_id(unsigned index) { return index + 1; }

// The contexts that a query names, as bits. With `wildcards`, "base:" stands for all of its
// namespace.
constexpr std::uint32_t nbd_find_contexts(std::string_view query, bool wildcards) {
    std::uint32_t found = 0;
    for (unsigned i = 0; i < nbd_contexts.size(); ++i) {
        const std::string_view name = nbd_contexts[i];
        const bool whole_namespace = wildcards && query == name.substr(0, name.find(':') + 1);
        if (query == name || whole_namespace) found |= 1U << i;
    }
    return found;
}

}  // namespace replica
