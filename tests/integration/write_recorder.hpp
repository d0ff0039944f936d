// SPDX-License-Identifier: Apache-2.0
// Records what is written by pwrite, fallocate and fdatasync (the linker puts recorders in front of
// them: -Wl,--wrap), and builds from the record what a crash may leave: what was flushed is there,
// and of what was written since, any subset of sectors. One thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "engine/base/prng.hpp"
#include "tests/catch.hpp"

namespace replica::test {

// One sector written, or a flush.
struct Step {
    bool flush = false;
    std::uint64_t offset = 0;
    std::vector<std::byte> bytes;
};
using Steps = std::vector<const Step*>;

extern std::vector<Step> record;
extern bool recording;

template <class Work>
void recorded(Work&& work) {
    record.clear();
    recording = true;
    work();
    recording = false;
    REQUIRE(record.size() > 8);
}

// Calls check(image, landed) for crash images at every flush interval of the record: all subsets of
// the unflushed sectors where they are few, else samples. apply(image, step) writes one step;
// `landed` are those of the unflushed ones that are in the image.
template <class Image, class Apply, class Check>
void for_each_crash_of(const std::vector<Step>& steps, const Image& before, Prng& prng, Apply apply,
                       Check&& check, std::size_t samples = 300) {
    Image flushed = before;
    std::size_t begin = 0;
    for (std::size_t end = 0; end <= steps.size(); ++end) {
        if (end < steps.size() && !steps[end].flush) continue;
        const std::size_t pending = end - begin;
        const std::size_t subsets = pending <= 8 ? std::size_t{1} << pending : samples;
        for (std::size_t subset = 0; subset < subsets; ++subset) {
            Image image = flushed;
            Steps landed;
            const auto density = static_cast<std::uint32_t>(prng.below(1'000'001));
            for (std::size_t i = 0; i < pending; ++i) {
                if (pending <= 8 ? ((subset >> i) & 1U) == 0 : !prng.chance(density)) continue;
                apply(image, steps[begin + i]);
                landed.push_back(&steps[begin + i]);
            }
            check(image, landed);
        }
        for (std::size_t i = begin; i < end; ++i)
            apply(flushed, steps[i]);
        begin = end + 1;
    }
}

}  // namespace replica::test
