// SPDX-License-Identifier: Apache-2.0
// The stored configuration survives a crash at any byte: a cut or damaged file is reported by name
// and set aside, and never takes another resource with it.
#include <sys/stat.h>

#include "control/config_store.hpp"
#include "tests/catch.hpp"
#include "tests/core/control_fixture.hpp"

using namespace replica;
using namespace replica::control;
using namespace replica::test;

namespace {

const StoredResource sample{sample_config("r0"), true};
const StoredResource other{sample_config("other"), false};

}  // namespace

TEST_CASE("what is saved is loaded", "[control]") {
    const TemporaryDirectory directory;
    const std::string state = directory.path() + "/deep/state";
    {
        auto store = std::move(ConfigStore::open(state)).value();
        REQUIRE(store->save(sample));
        REQUIRE(store->save(other));
    }
    auto store = std::move(ConfigStore::open(state)).value();
    const auto loaded = store->load().value();
    CHECK(loaded.problems.empty());
    CHECK(loaded.resources == std::vector{other, sample});
    struct stat found {};
    REQUIRE(::stat((state + "/resources/r0.json").c_str(), &found) == 0);
    CHECK((found.st_mode & 0777) == 0600);
    REQUIRE(store->remove("r0"));
    REQUIRE(store->remove("r0"));
    CHECK(store->load().value().resources == std::vector{other});
}

TEST_CASE("a state directory belongs to one process at a time", "[control]") {
    const TemporaryDirectory directory;
    auto first = ConfigStore::open(directory.path());
    REQUIRE(first);
    const auto second = ConfigStore::open(directory.path());
    REQUIRE_FALSE(second);
    CHECK(second.error().code == Errc::busy);
    CHECK_THAT(second.error().message, contains(directory.path()));
    first.value().reset();
    CHECK(ConfigStore::open(directory.path()));
}

TEST_CASE("a file cut at any byte is set aside and its neighbour is kept", "[control]") {
    const TemporaryDirectory directory;
    auto store = std::move(ConfigStore::open(directory.path())).value();
    REQUIRE(store->save(other));
    const std::string whole = encode_stored(sample).value();
    const std::string file = directory.path() + "/resources/r0.json";
    for (std::size_t length = 0; length <= whole.size(); ++length) {
        write_file(file, whole.substr(0, length));
        const auto loaded = store->load().value();
        INFO("cut at byte " << length << " of " << whole.size());
        // Without its last newline the document is still whole.
        if (length + 1 >= whole.size()) {
            REQUIRE(loaded.resources == std::vector{other, sample});
            REQUIRE(loaded.problems.empty());
            continue;
        }
        REQUIRE(loaded.resources == std::vector{other});
        REQUIRE(loaded.problems.size() == 1);
        REQUIRE(loaded.problems[0].file == file);
        REQUIRE(loaded.problems[0].resource == "r0");
        REQUIRE(read_file(loaded.problems[0].moved_to) == whole.substr(0, length));
        std::filesystem::remove(loaded.problems[0].moved_to);
    }
}

TEST_CASE("a byte that changed is seen", "[control]") {
    const std::string whole = encode_stored(sample).value();
    for (std::size_t i = 0; i < whole.size(); ++i) {
        if (std::isspace(static_cast<unsigned char>(whole[i]))) continue;
        for (const int flip : {1, 2, 64}) {
            std::string damaged = whole;
            damaged[i] = static_cast<char>(damaged[i] ^ flip);
            const auto decoded = decode_stored(damaged);
            INFO("byte " << i << ": " << damaged);
            REQUIRE((!decoded || decoded.value() == sample));
        }
    }
}

TEST_CASE("a crash in the middle of a save leaves the old configuration", "[control]") {
    const TemporaryDirectory directory;
    auto store = std::move(ConfigStore::open(directory.path())).value();
    REQUIRE(store->save(sample));
    const std::string next = encode_stored({sample_config("r0"), false}).value();
    const std::string temporary = directory.path() + "/resources/r0.json.tmp";
    for (std::size_t length = 0; length <= next.size(); length += 7) {
        write_file(temporary, next.substr(0, length));
        const auto loaded = store->load().value();
        REQUIRE(loaded.resources == std::vector{sample});
        REQUIRE(loaded.problems.empty());
        REQUIRE_FALSE(std::filesystem::exists(temporary));
    }
}

TEST_CASE("files set aside do not overwrite each other", "[control]") {
    const TemporaryDirectory directory;
    auto store = std::move(ConfigStore::open(directory.path())).value();
    const std::string file = directory.path() + "/resources/r0.json";
    for (const char* text : {"one", "two", "three"}) {
        write_file(file, text);
        const auto loaded = store->load().value();
        REQUIRE(loaded.problems.size() == 1);
        CHECK(read_file(loaded.problems[0].moved_to) == text);
    }
}

TEST_CASE("the file of a newer version stays where it is", "[control]") {
    const TemporaryDirectory directory;
    auto store = std::move(ConfigStore::open(directory.path())).value();
    const std::string file = directory.path() + "/resources/r0.json";
    write_file(file, R"({"version": 2, "something": "new"})");
    const auto loaded = store->load().value();
    REQUIRE(loaded.problems.size() == 1);
    CHECK(loaded.problems[0].moved_to.empty());
    CHECK_THAT(loaded.problems[0].reason, contains("newer"));
    CHECK(std::filesystem::exists(file));
    const auto saved = store->save(sample);
    REQUIRE_FALSE(saved);
    CHECK(saved.error().code == Errc::exists);
}

TEST_CASE("a file under another resource's name is not used", "[control]") {
    const TemporaryDirectory directory;
    auto store = std::move(ConfigStore::open(directory.path())).value();
    write_file(directory.path() + "/resources/r1.json", encode_stored(sample).value());
    const auto loaded = store->load().value();
    CHECK(loaded.resources.empty());
    REQUIRE(loaded.problems.size() == 1);
    CHECK_THAT(loaded.problems[0].reason, contains("another resource, r0"));
}

TEST_CASE("a save that can not be written changes nothing", "[control]") {
    const TemporaryDirectory directory;
    auto store = std::move(ConfigStore::open(directory.path())).value();
    REQUIRE(store->save(sample));
    // A directory in the way of the temporary file stands for every reason to fail.
    std::filesystem::create_directory(directory.path() + "/resources/r0.json.tmp");
    CHECK_FALSE(store->save({sample_config("r0"), false}));
    std::filesystem::remove(directory.path() + "/resources/r0.json.tmp");
    CHECK(store->load().value().resources == std::vector{sample});
    StoredResource not_text = sample;
    not_text.config.disk = "/disk/\xff";
    CHECK(store->save(not_text).error().code == Errc::invalid);
}
