// Memory and a stream of CUDA's that free themselves, and the two ways in which running may fail.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <stdexcept>
#include <string>

// Of whoever called: exit code 2.
struct Mistake : std::runtime_error
{
    using std::runtime_error::runtime_error;
};

// Of this machine: exit code 3.
struct Lacking : std::runtime_error
{
    using std::runtime_error::runtime_error;
};

inline void check(cudaError_t code, char const* what)
{
    if (code != cudaSuccess)
    {
        throw Lacking(std::string(what) + ": " + cudaGetErrorString(code));
    }
}

struct Buffer
{
    explicit Buffer(std::size_t bytes)
    {
        check(cudaMalloc(&data, bytes), "cudaMalloc");
    }
    ~Buffer()
    {
        cudaFree(data);
    }
    Buffer(Buffer const&) = delete;
    Buffer& operator=(Buffer const&) = delete;

    void* data = nullptr;
};

struct Stream
{
    Stream()
    {
        check(cudaStreamCreate(&stream), "cudaStreamCreate");
    }
    ~Stream()
    {
        cudaStreamDestroy(stream);
    }
    Stream(Stream const&) = delete;
    Stream& operator=(Stream const&) = delete;

    cudaStream_t stream = nullptr;
};
