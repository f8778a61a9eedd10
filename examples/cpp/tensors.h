// Tensors as a command line and files have them.
#pragma once

#include "cuda_memory.h"

#include <NvInfer.h>

#include <cstddef>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <sstream>
#include <string>
#include <utility>

struct Input
{
    nvinfer1::Dims shape{};
    std::string data;
};

inline std::string readFile(std::filesystem::path const& path)
{
    std::ifstream file(path, std::ios::binary);
    std::string data((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
    if (!file.is_open() || file.bad())
    {
        throw Mistake("cannot read " + path.string());
    }
    return data;
}

inline std::string inWords(nvinfer1::Dims const& shape)
{
    std::ostringstream text;
    for (int i = 0; i < shape.nbDims; ++i)
    {
        text << (i ? "x" : "") << shape.d[i];
    }
    return text.str();
}

inline std::size_t bytesOf(nvinfer1::Dims const& shape, nvinfer1::DataType type)
{
    std::size_t count = 1;
    for (int i = 0; i < shape.nbDims; ++i)
    {
        if (shape.d[i] < 0)
        {
            throw Mistake("the size of a tensor of " + inWords(shape) + " is not known before it runs");
        }
        count *= static_cast<std::size_t>(shape.d[i]);
    }
    switch (type)
    {
    case nvinfer1::DataType::kFLOAT:
    case nvinfer1::DataType::kINT32: return count * 4;
    case nvinfer1::DataType::kHALF:
    case nvinfer1::DataType::kBF16: return count * 2;
    case nvinfer1::DataType::kINT64: return count * 8;
    case nvinfer1::DataType::kINT8:
    case nvinfer1::DataType::kUINT8:
    case nvinfer1::DataType::kBOOL: return count;
    default: throw Mistake("a tensor of the plan has a type that this example does not know");
    }
}

// NAME=1x3x224x224=FILE
inline std::pair<std::string, Input> parseInput(std::string const& text)
{
    auto const last = text.rfind('=');
    auto const first = last == std::string::npos || last == 0 ? std::string::npos : text.rfind('=', last - 1);
    if (first == std::string::npos)
    {
        throw Mistake("'" + text + "' is no input: it takes NAME=SIZExSIZE...=FILE");
    }
    Input input;
    std::istringstream sizes(text.substr(first + 1, last - first - 1));
    for (std::string size; std::getline(sizes, size, 'x');)
    {
        bool const digits = !size.empty() && size.size() < 10 && size.find_first_not_of("0123456789") == std::string::npos;
        if (!digits || input.shape.nbDims == nvinfer1::Dims::MAX_DIMS)
        {
            throw Mistake("'" + text + "' has no shape: it takes NAME=SIZExSIZE...=FILE");
        }
        input.shape.d[input.shape.nbDims++] = std::stol(size);
    }
    input.data = readFile(text.substr(last + 1));
    return {text.substr(0, first), std::move(input)};
}

// NAME.bin in the folder. A name may have slashes, which are no folders here.
inline std::filesystem::path fileOf(std::filesystem::path const& folder, std::string name)
{
    for (char& letter : name)
    {
        letter = letter == '/' ? '_' : letter;
    }
    return folder / (name + ".bin");
}
