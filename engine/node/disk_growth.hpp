// SPDX-License-Identifier: Apache-2.0
// A disk that has grown while it is attached: where its metadata goes, and the blocking work of
// moving it there and of zeroing what the volume may grow into. docs/on-disk.md, "A disk that
// grows", has the order of writes and why it is safe. Any thread but a reactor's.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "engine/node/backing_disk.hpp"

namespace replica {

// What is needed of an attached disk. The descriptors are its own, so that they stay what they are
// if the disk is closed meanwhile.
struct AttachedDisk {
    std::string path;
    OwnedFd data;
    OwnedFd external;  // metadata device, none: internal
    MetadataLayout layout;
    Superblock superblock;
    std::uint64_t volume_bytes = 0;
    std::uint64_t zeroed_bytes = 0;  // it reads as zeroes from the volume's end to here

    int metadata() const { return external.get() >= 0 ? external.get() : data.get(); }
};

struct GrowthPlan {
    Superblock placed;  // with the places and sizes that the metadata will have
    MetadataLayout layout;
    bool changes = false;  // they are other ones than now
};

// By the sizes that the devices have now. Errors: no_space (grown by less than the metadata takes,
// or shrunk), limit, io.
Result<GrowthPlan> plan_growth(const AttachedDisk& disk);

// Makes the new place blank, or, of external metadata, what the bitmap needs in addition. Nothing
// refers to it yet. Errors: io, no_space.
Status prepare_move(const AttachedDisk& disk, const GrowthPlan& plan);
// Copies log and bitmap while nobody writes them, and flushes. Errors: io, no_space.
Status copy_metadata(const AttachedDisk& disk, const GrowthPlan& plan);

// Zeroes [from, until) of the data and flushes. `progress` is called with the bytes that are done
// and says whether to go on. Errors: io, no_space, cancelled (by progress; these bytes are
// flushed).
Status zero_room(const AttachedDisk& disk, std::uint64_t from, std::uint64_t until,
                 const std::function<bool(std::uint64_t done)>& progress);

}  // namespace replica
