// SPDX-License-Identifier: Apache-2.0
// What a benchmark round gives: the latency of every operation and how long the round took.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <ctime>
#include <vector>

namespace replica::bench {

inline std::uint64_t now_ns() {
    timespec ts{};
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return static_cast<std::uint64_t>(ts.tv_sec) * 1'000'000'000U +
           static_cast<std::uint64_t>(ts.tv_nsec);
}

struct Samples {
    std::vector<std::uint64_t> latency_ns;
    std::uint64_t elapsed_ns = 0;

    // Rounds of one subject are taken together.
    void add(const Samples& other) {
        latency_ns.insert(latency_ns.end(), other.latency_ns.begin(), other.latency_ns.end());
        elapsed_ns += other.elapsed_ns;
    }
    // `fraction`: 0.5 for the median, 0.99... 0 without samples.
    std::uint64_t percentile(double fraction) const {
        if (latency_ns.empty()) return 0;
        std::vector<std::uint64_t> sorted = latency_ns;
        const auto rank =
            static_cast<std::size_t>(fraction * static_cast<double>(sorted.size() - 1));
        const auto nth = sorted.begin() + static_cast<std::ptrdiff_t>(rank);
        std::nth_element(sorted.begin(), nth, sorted.end());
        return *nth;
    }
    double iops() const {
        if (elapsed_ns == 0) return 0;
        return static_cast<double>(latency_ns.size()) * 1e9 / static_cast<double>(elapsed_ns);
    }
};

}  // namespace replica::bench
