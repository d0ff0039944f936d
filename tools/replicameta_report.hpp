// SPDX-License-Identifier: Apache-2.0
// What replicameta says about metadata: one JSON document for programs, and the same document laid
// out for people. Field names follow DRBD's where it has one.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "engine/io/metadata_file.hpp"

namespace replica {

using Json = nlohmann::ordered_json;

// Everything: superblock, extension, places, activity log, set bits of each bitmap slot.
Json describe(const MetadataFile& file, const MetadataImage& image, const BitmapCounts& counts);

// Everything that is wrong ("problems") or worth knowing ("notes"), found without stopping at the
// first. `copy`: the node's copy of the superblock, or empty.
Json check(MetadataFile& file, std::span<const std::byte> copy);

// The document as indented lines, "name: value".
std::string to_text(const Json& document);

}  // namespace replica
