// SHA-256 of bytes in memory, after FIPS 180-4.
#pragma once

#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string>

namespace sha256
{

// The first 32 bits of the fractional parts of the roots of the first primes: cube roots of 64, square roots of 8.
// (A double has 50 bits behind the point of a root below 8: its rounding does not reach these 32.)
template <std::size_t N> std::array<std::uint32_t, N> fractions(double (*root)(double))
{
    std::array<std::uint32_t, N> found{};
    std::size_t count = 0;
    for (int n = 2; count < N; ++n)
    {
        bool prime = true;
        for (int d = 2; d * d <= n; ++d)
        {
            prime = prime && n % d != 0;
        }
        if (prime)
        {
            double const value = root(n);
            found[count++] = static_cast<std::uint32_t>((value - std::floor(value)) * 4294967296.0);
        }
    }
    return found;
}

inline std::uint32_t turned(std::uint32_t x, int by)
{
    return (x >> by) | (x << (32 - by));
}

// One block of 64 bytes.
inline void take(std::array<std::uint32_t, 8>& state, unsigned char const* block)
{
    static auto const keys = fractions<64>(std::cbrt);
    std::array<std::uint32_t, 64> w{};
    for (int i = 0; i < 16; ++i)
    {
        w[i] = std::uint32_t{block[4 * i]} << 24 | std::uint32_t{block[4 * i + 1]} << 16
            | std::uint32_t{block[4 * i + 2]} << 8 | std::uint32_t{block[4 * i + 3]};
    }
    for (int i = 16; i < 64; ++i)
    {
        std::uint32_t const low = turned(w[i - 15], 7) ^ turned(w[i - 15], 18) ^ (w[i - 15] >> 3);
        std::uint32_t const high = turned(w[i - 2], 17) ^ turned(w[i - 2], 19) ^ (w[i - 2] >> 10);
        w[i] = w[i - 16] + low + w[i - 7] + high;
    }
    auto [a, b, c, d, e, f, g, h] = state;
    for (int i = 0; i < 64; ++i)
    {
        std::uint32_t const one
            = h + (turned(e, 6) ^ turned(e, 11) ^ turned(e, 25)) + ((e & f) ^ (~e & g)) + keys[i] + w[i];
        std::uint32_t const two = (turned(a, 2) ^ turned(a, 13) ^ turned(a, 22)) + ((a & b) ^ (a & c) ^ (b & c));
        h = g, g = f, f = e, e = d + one, d = c, c = b, b = a, a = one + two;
    }
    std::array<std::uint32_t, 8> const more{a, b, c, d, e, f, g, h};
    for (int i = 0; i < 8; ++i)
    {
        state[i] += more[i];
    }
}

// In lower-case hex, as manifest.json has it.
inline std::string of(std::string const& data)
{
    auto state = fractions<8>(std::sqrt);
    auto const* bytes = reinterpret_cast<unsigned char const*>(data.data());
    std::size_t const whole = data.size() / 64;
    for (std::size_t i = 0; i < whole; ++i)
    {
        take(state, bytes + 64 * i);
    }
    std::string rest = data.substr(64 * whole) + '\x80';
    rest.resize((rest.size() + 8 + 63) / 64 * 64);
    for (int i = 0; i < 8; ++i)
    {
        rest[rest.size() - 1 - i] = static_cast<char>(std::uint64_t{data.size()} * 8 >> (8 * i));
    }
    for (std::size_t i = 0; i < rest.size(); i += 64)
    {
        take(state, reinterpret_cast<unsigned char const*>(rest.data()) + i);
    }
    std::string hex;
    for (std::uint32_t word : state)
    {
        for (int shift = 28; shift >= 0; shift -= 4)
        {
            hex += "0123456789abcdef"[word >> shift & 15];
        }
    }
    return hex;
}

} // namespace sha256
