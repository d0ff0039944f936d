// SPDX-License-Identifier: Apache-2.0
// Both ends are the tightest loop that io_uring allows: registered files and buffers, one
// io_uring_enter a turn, payloads received in place, everything of one turn in one send. It uses
// nothing of the engine, which is what it is compared with.
#include "bench/limit.hpp"

#include <fcntl.h>
#include <liburing.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <thread>
#include <utility>
#include <vector>

#include "engine/base/prng.hpp"
#include "engine/base/text.hpp"

namespace replica::bench {

namespace {

constexpr std::size_t header_bytes = 64;
constexpr unsigned depth_max = 256;
constexpr unsigned ring_entries = 1024;
constexpr std::size_t iovecs_max = 512;
constexpr unsigned mirror_slots_per_write = 4;
static_assert(2 * depth_max <= iovecs_max);

struct Header {
    std::uint64_t slot;
    std::uint64_t offset;
    std::byte rest[header_bytes - 16];
};
static_assert(sizeof(Header) == header_bytes);

Error io_error(const std::string& what, int os_errno) {
    return {os_errno == ENOSPC ? Errc::no_space : Errc::io, os_errno,
            what + ": " + std::strerror(os_errno)};
}

enum class Kind : std::uint64_t { write, send, receive };
std::uint64_t tag(Kind kind, std::uint64_t slot) {
    return static_cast<std::uint64_t>(kind) << 32 | slot;
}

// A ring with a file (index 0), a socket (index 1) and one registered buffer.
class End {
  public:
    End(unsigned slots, std::uint32_t write_bytes) : bytes_(write_bytes), slots_(slots) {}
    End(const End&) = delete;
    End& operator=(const End&) = delete;
    ~End() {
        if (open_) io_uring_queue_exit(&ring_);
        if (payloads_ != nullptr) munmap(payloads_, std::size_t{slots_} * bytes_);
    }

    // On the thread that will use it.
    int open(int file, int socket) {
        void* memory = mmap(nullptr, std::size_t{slots_} * bytes_, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
        if (memory == MAP_FAILED) return errno;
        payloads_ = static_cast<std::byte*>(memory);
        headers_.resize(slots_);
        int result = io_uring_queue_init(ring_entries, &ring_,
                                         IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN);
        if (result == -EINVAL) result = io_uring_queue_init(ring_entries, &ring_, 0);
        if (result != 0) return -result;
        open_ = true;
        const int files[] = {file, socket};
        result = io_uring_register_files(&ring_, files, 2);
        if (result != 0) return -result;
        const iovec all{payloads_, std::size_t{slots_} * bytes_};
        fixed_ = io_uring_register_buffers(&ring_, &all, 1) == 0;  // else plain writes do
        io_uring_register_ring_fd(&ring_);
        return 0;
    }

  protected:
    std::byte* payload(std::size_t slot) { return payloads_ + slot * bytes_; }
    io_uring_sqe* sqe() {
        io_uring_sqe* entry = io_uring_get_sqe(&ring_);
        ASSERT(entry !=
               nullptr);  // a turn starts at most 2 operations a slot, and there are enough
        return entry;
    }
    void start_write(std::uint64_t slot, std::uint64_t offset) {
        io_uring_sqe* entry = sqe();
        if (fixed_) {
            io_uring_prep_write_fixed(entry, 0, payload(slot), bytes_, offset, 0);
        } else {
            io_uring_prep_write(entry, 0, payload(slot), bytes_, offset);
        }
        entry->flags |= IOSQE_FIXED_FILE;
        io_uring_sqe_set_data64(entry, tag(Kind::write, slot));
    }
    void start_message(Kind kind, msghdr* message) {
        io_uring_sqe* entry = sqe();
        if (kind == Kind::send) {
            io_uring_prep_sendmsg(entry, 1, message, MSG_NOSIGNAL | MSG_WAITALL);
        } else {
            io_uring_prep_recvmsg(entry, 1, message, 0);
            entry->ioprio |= IORING_RECVSEND_POLL_FIRST;
        }
        entry->flags |= IOSQE_FIXED_FILE;
        io_uring_sqe_set_data64(entry, tag(kind, 0));
    }
    // Submits, waits, and hands every completion to `handle(kind, slot, result)`.
    template <class Handle>
    void turn(Handle&& handle) {
        io_uring_submit_and_wait(&ring_, 1);
        io_uring_cqe* cqe = nullptr;
        unsigned head = 0, count = 0;
        io_uring_for_each_cqe(&ring_, head, cqe) {
            const std::uint64_t data = io_uring_cqe_get_data64(cqe);
            handle(static_cast<Kind>(data >> 32), data & 0xffffffffU, cqe->res);
            count += 1;
        }
        io_uring_cq_advance(&ring_, count);
    }
    // Adds a piece of memory to a message.
    static void add(std::array<iovec, iovecs_max>& vector, msghdr& message, void* data,
                    std::size_t bytes) {
        ASSERT(message.msg_iovlen < vector.size());
        vector[message.msg_iovlen++] = {data, bytes};
        message.msg_iov = vector.data();
    }

    std::uint32_t bytes_;
    unsigned slots_;
    io_uring ring_{};
    bool open_ = false, fixed_ = false;
    std::byte* payloads_ = nullptr;
    std::vector<Header> headers_;
    int failed_ = 0;  // errno of the first operation that did
};

// The far end: messages are received straight into place, header, payload, header, payload..., in
// slots that are used in turn. It has more slots than writes can be under way, so that a slow one
// does not stop the others; if it does nevertheless, receiving waits for it.
class Mirror : public End {
  public:
    Mirror(unsigned depth, std::uint32_t bytes)
        : End(mirror_slots_per_write * depth, bytes),
          busy_(slots_, false),
          acks_(slots_),
          sending_acks_(slots_) {}

    int run() {
        receive();
        while (failed_ == 0 && !ended_) {
            turn([this](Kind kind, std::uint64_t slot, std::int32_t result) {
                on(kind, slot, result);
            });
            if (!receiving_ && !ended_) receive();
            if (!sending_ && acks_queued_ > 0) send_acks();
        }
        return failed_;
    }

  private:
    void receive() {
        receive_message_ = {};
        const std::size_t message = header_bytes + bytes_;
        std::size_t slot = static_cast<std::size_t>(received_ / message) % slots_;
        std::size_t skip = static_cast<std::size_t>(received_ % message);
        for (unsigned i = 0; i < slots_ && !busy_[slot]; ++i) {
            if (receive_message_.msg_iovlen + 2 > iovecs_max) break;
            const std::size_t in_header = std::min(skip, header_bytes);
            const std::size_t in_payload = skip - in_header;
            if (in_header < header_bytes) {
                add(receive_vector_, receive_message_,
                    reinterpret_cast<std::byte*>(&headers_[slot]) + in_header,
                    header_bytes - in_header);
            }
            add(receive_vector_, receive_message_, payload(slot) + in_payload, bytes_ - in_payload);
            skip = 0;
            slot = (slot + 1) % slots_;
        }
        receiving_ = receive_message_.msg_iovlen > 0;
        if (receiving_) start_message(Kind::receive, &receive_message_);
    }
    void on(Kind kind, std::uint64_t slot, std::int32_t result) {
        if (result < 0 || (kind == Kind::write && result != static_cast<std::int32_t>(bytes_))) {
            failed_ = result < 0 ? -result : EIO;
            return;
        }
        switch (kind) {
            case Kind::write:
                acks_[acks_queued_++] = headers_[slot];
                busy_[slot] = false;
                break;
            case Kind::send:
                sending_ = false;
                break;
            case Kind::receive: {
                receiving_ = false;
                ended_ = result == 0;
                const std::size_t message = header_bytes + bytes_;
                const std::uint64_t before = received_ / message;
                received_ += static_cast<std::uint64_t>(result);
                for (std::uint64_t i = before; i < received_ / message; ++i) {
                    busy_[i % slots_] = true;
                    start_write(i % slots_, headers_[i % slots_].offset);
                }
                break;
            }
        }
    }
    void send_acks() {
        std::swap(acks_, sending_acks_);
        send_message_ = {};
        add(send_vector_, send_message_, sending_acks_.data(), acks_queued_ * header_bytes);
        acks_queued_ = 0;
        sending_ = true;
        start_message(Kind::send, &send_message_);
    }

    std::uint64_t received_ = 0;  // bytes
    std::vector<bool> busy_;      // a write from the slot is under way
    std::array<iovec, iovecs_max> receive_vector_{}, send_vector_{};
    msghdr receive_message_{}, send_message_{};
    std::vector<Header> acks_, sending_acks_;
    std::size_t acks_queued_ = 0;
    bool receiving_ = false, sending_ = false, ended_ = false;
};

// The near end: keeps `depth` writes under way, each in a slot of its own.
class Writer : public End {
  public:
    Writer(unsigned depth, std::uint32_t bytes, std::uint64_t file_bytes)
        : End(depth, bytes), writes_(depth), acks_(depth), blocks_(file_bytes / bytes) {
        for (unsigned slot = 0; slot < depth; ++slot)
            free_.push_back(slot);
    }

    int run(std::uint64_t duration_ns, Samples& samples) {
        const std::uint64_t begin = now_ns();
        end_ = begin + duration_ns;
        samples_ = &samples;
        receive();
        start_free(begin);
        while (failed_ == 0 && free_.size() < slots_) {
            turn([this](Kind kind, std::uint64_t slot, std::int32_t result) {
                on(kind, slot, result);
            });
            start_free(now_ns());
        }
        samples.elapsed_ns = now_ns() - begin;
        return failed_;
    }

  private:
    struct Write {
        std::uint64_t started_ns = 0;
        unsigned waits_for = 0;  // local write, acknowledgement
    };

    void start_free(std::uint64_t now) {
        while (now < end_ && !free_.empty()) {
            const unsigned slot = free_.back();
            free_.pop_back();
            headers_[slot].slot = slot;
            headers_[slot].offset = random_.below(blocks_) * bytes_;
            writes_[slot] = {now, 2};
            start_write(slot, headers_[slot].offset);
            to_send_.push_back(slot);
        }
        if (sending_ || to_send_.empty()) return;
        send_message_ = {};
        for (const unsigned slot : to_send_) {
            add(send_vector_, send_message_, &headers_[slot], header_bytes);
            add(send_vector_, send_message_, payload(slot), bytes_);
        }
        to_send_.clear();
        sending_ = true;
        start_message(Kind::send, &send_message_);
    }
    void receive() {
        receive_message_ = {};
        const auto part = static_cast<std::size_t>(received_ % header_bytes);
        add(receive_vector_, receive_message_, reinterpret_cast<std::byte*>(acks_.data()) + part,
            acks_.size() * header_bytes - part);
        start_message(Kind::receive, &receive_message_);
    }
    void done_one(std::uint64_t slot) {
        if (--writes_[slot].waits_for > 0) return;
        samples_->latency_ns.push_back(now_ns() - writes_[slot].started_ns);
        free_.push_back(static_cast<unsigned>(slot));
    }
    void on(Kind kind, std::uint64_t slot, std::int32_t result) {
        if (result < 0 || (kind == Kind::write && result != static_cast<std::int32_t>(bytes_))) {
            failed_ = result < 0 ? -result : EIO;
            return;
        }
        switch (kind) {
            case Kind::write:
                done_one(slot);
                break;
            case Kind::send:
                sending_ = false;
                break;
            case Kind::receive: {
                if (result == 0) {
                    failed_ = ECONNRESET;
                    return;
                }
                const auto part = static_cast<std::size_t>(received_ % header_bytes);
                received_ += static_cast<std::uint64_t>(result);
                const std::size_t whole = (part + static_cast<std::size_t>(result)) / header_bytes;
                for (std::size_t i = 0; i < whole; ++i)
                    done_one(acks_[i].slot);
                if (whole < acks_.size()) acks_[0] = acks_[whole];  // perhaps the part of one
                receive();
                break;
            }
        }
    }

    std::vector<Write> writes_;
    std::vector<unsigned> free_, to_send_;
    std::vector<Header> acks_;
    std::uint64_t blocks_, end_ = 0, received_ = 0;
    Prng random_{1};
    Samples* samples_ = nullptr;
    std::array<iovec, iovecs_max> receive_vector_{}, send_vector_{};
    msghdr receive_message_{}, send_message_{};
    bool sending_ = false;
};

struct Descriptor {
    int fd = -1;
    Descriptor() = default;
    explicit Descriptor(int value) : fd(value) {}
    Descriptor(const Descriptor&) = delete;
    Descriptor& operator=(const Descriptor&) = delete;
    ~Descriptor() { reset(-1); }
    void reset(int value) {
        if (fd >= 0) close(fd);
        fd = value;
    }
};

Status connect_loopback(Descriptor& here, Descriptor& there) {
    Descriptor listening(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t length = sizeof address;
    auto* generic = reinterpret_cast<sockaddr*>(&address);
    here.reset(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    if (bind(listening.fd, generic, length) != 0 || listen(listening.fd, 1) != 0 ||
        getsockname(listening.fd, generic, &length) != 0 ||
        connect(here.fd, generic, length) != 0) {
        return io_error("no loopback connection", errno);
    }
    there.reset(accept4(listening.fd, nullptr, nullptr, SOCK_CLOEXEC));
    if (there.fd < 0) return io_error("no loopback connection", errno);
    const int on = 1;
    for (const int fd : {here.fd, there.fd})
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    return ok_status();
}

class LimitBench final : public Limit {
  public:
    explicit LimitBench(const LimitOptions& options) : options_(options) {}

    Status open() {
        for (Descriptor* file : {&here_, &there_}) {
            std::string path = options_.directory + "/replica-limit-XXXXXX";
            file->reset(mkostemp(path.data(), O_DIRECT | O_CLOEXEC));
            if (file->fd < 0) {
                return io_error(text_of("a file for direct IO in %s", options_.directory.c_str()),
                                errno);
            }
            unlink(path.c_str());
            TRY_STATUS(fill(file->fd));
        }
        return ok_status();
    }

    Result<Samples> round(unsigned depth, std::uint64_t duration_ns) override {
        ASSERT(depth >= 1 && depth <= depth_max);
        Descriptor here, there;
        TRY_STATUS(connect_loopback(here, there));
        std::atomic<int> far_failure = 0;
        std::thread far([&] {
            Mirror mirror(depth, options_.write_bytes);
            int failure = mirror.open(there_.fd, there.fd);
            if (failure == 0) failure = mirror.run();
            far_failure = failure;
            shutdown(there.fd, SHUT_RDWR);
        });
        Samples samples;
        samples.latency_ns.reserve(1U << 20);
        int failure = 0;
        {
            Writer writer(depth, options_.write_bytes, options_.file_bytes);
            failure = writer.open(here_.fd, here.fd);
            if (failure == 0) failure = writer.run(duration_ns, samples);
            shutdown(here.fd, SHUT_RDWR);
            far.join();
        }
        if (far_failure != 0) failure = far_failure;
        if (failure != 0) return io_error("the limit can not be measured", failure);
        return samples;
    }

  private:
    // Every block is written once, so that no round pays for the file system's allocation.
    Status fill(int fd) {
        constexpr std::size_t chunk = 1U << 20;
        void* memory =
            mmap(nullptr, chunk, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (memory == MAP_FAILED) return io_error("memory", errno);
        std::memset(memory, 0x5a, chunk);
        int failure = 0;
        for (std::uint64_t at = 0; at < options_.file_bytes && failure == 0; at += chunk) {
            const auto written = pwrite(fd, memory, chunk, static_cast<off_t>(at));
            if (written != static_cast<ssize_t>(chunk)) failure = written < 0 ? errno : ENOSPC;
        }
        munmap(memory, chunk);
        if (failure == 0 && fsync(fd) != 0) failure = errno;
        if (failure != 0) return io_error("filling a file in " + options_.directory, failure);
        return ok_status();
    }

    LimitOptions options_;
    Descriptor here_, there_;
};

}  // namespace

Result<std::unique_ptr<Limit>> Limit::create(const LimitOptions& options) {
    auto limit = std::make_unique<LimitBench>(options);
    TRY_STATUS(limit->open());
    return std::unique_ptr<Limit>(std::move(limit));
}

Result<Samples> limit_round(const LimitOptions& options, unsigned depth,
                            std::uint64_t duration_ns) {
    TRY(const auto limit, Limit::create(options));
    return limit->round(depth, duration_ns);
}

}  // namespace replica::bench
