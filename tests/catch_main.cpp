// SPDX-License-Identifier: Apache-2.0
// Catch2 v2 wants main() compiled by its user; v3 brings a library with it, and this file is empty.
// Compiled once for all tests, because it takes longer than most of them.
#ifndef REPLICA_CATCH2_V3
#define CATCH_CONFIG_MAIN
#include <catch2/catch.hpp>
#endif
