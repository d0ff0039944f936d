// SPDX-License-Identifier: Apache-2.0
// json_field PATH <JSON: prints what is at PATH as `jq -r PATH` does, which takes twenty times as
// long to start where a guest is emulated. PATH is made of .NAME, ."NAME", [INDEX], and may end
// with
// [], all elements, a line each. What is not there is printed as null. Exit status 2: bad JSON.
#include <cctype>
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <string>

namespace {

using nlohmann::json;

[[noreturn]] void give_up(const std::string& what) {
    std::fprintf(stderr, "json_field: %s\n", what.c_str());
    std::_Exit(2);
}

void print(const json& value) {
    const std::string text = value.is_string() ? value.get<std::string>() : value.dump();
    std::printf("%s\n", text.c_str());
}

json at_name(const json& value, const std::string& name) {
    if (!value.is_object()) return {};
    const auto found = value.find(name);
    return found == value.end() ? json() : *found;
}

json at_index(const json& value, const std::string& digits) {
    const auto index = static_cast<std::size_t>(std::strtoul(digits.c_str(), nullptr, 10));
    return value.is_array() && index < value.size() ? value[index] : json();
}

// Takes one step off the path. An empty one in brackets is left to the caller.
json step(const json& value, std::string& path) {
    const bool bracket = path[0] == '[', quoted = path.rfind(".\"", 0) == 0;
    if (!bracket && path[0] != '.') give_up("what is " + path + "?");
    const std::size_t begin = quoted ? 2 : 1;
    const std::size_t end = bracket  ? path.find(']', begin)
                            : quoted ? path.find('"', begin)
                                     : std::min(path.find_first_of(".[", begin), path.size());
    if (end == std::string::npos) give_up("what is " + path + "?");
    const std::string name = path.substr(begin, end - begin);
    path.erase(0, bracket || quoted ? end + 1 : end);
    return bracket ? at_index(value, name) : at_name(value, name);
}

}  // namespace

int main(int argc, char** argv) {
    if (argc != 2) give_up("usage: json_field PATH <JSON");
    const std::string text{std::istreambuf_iterator<char>(std::cin), {}};
    json value = json::parse(text, nullptr, false);
    if (value.is_discarded()) give_up("this is no JSON: " + text);
    std::string path = argv[1];
    while (!path.empty() && path != "[]")
        value = step(value, path);
    if (path.empty()) {
        print(value);
    } else {
        for (const json& element : value)
            print(element);
    }
    return 0;
}
