// SPDX-License-Identifier: Apache-2.0
// What a node accepts as the configuration of a resource, whoever gives it: names, ids, paths,
// addresses, ranges of options. Pure, any thread.
#pragma once

#include <string>
#include <string_view>

#include "engine/node.hpp"

namespace replica {

// [A-Za-z0-9][A-Za-z0-9._-]{0,62}: names end in paths and on other machines. Errors: invalid.
Status check_node_name(std::string_view what, std::string_view name);
// Errors: invalid, naming the field, its value and what it may be.
Status check_resource_config(const ResourceConfig& config, const std::string& own_name);
Status check_resource_options(const ResourceOptions& options);

}  // namespace replica
