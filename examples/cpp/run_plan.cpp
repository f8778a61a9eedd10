// Runs a bundle's model.plan with TensorRT alone: raw tensors in, raw tensors out. See docs/cpp.md.
//
//   run_plan PLAN SHA256 OUT_FOLDER NAME=SIZExSIZE...=FILE [NAME=...=FILE ...]
//   run_plan swin.trtship/model.plan "$SHA256" out input=8x3x224x224=batch.bin
//
// FILE holds the input's elements in row-major order, in the type that the plan takes; OUT_FOLDER gets NAME.bin for each
// output. With TRTSHIP_RTX it is built against TensorRT for RTX, without it against TensorRT.
// Exit codes: 0 done, 2 a mistake in what was asked, 3 this machine lacks something.

#include "cuda_memory.h"
#include "sha256.h"
#include "tensors.h"

#include <NvInfer.h>

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <map>
#include <memory>
#include <string>

namespace
{

#ifdef TRTSHIP_RTX
constexpr char const* kLIBRARY = "TensorRT for RTX";
#else
constexpr char const* kLIBRARY = "TensorRT";
#endif

class Logger : public nvinfer1::ILogger
{
    void log(Severity severity, char const* text) noexcept override
    {
        if (severity <= Severity::kWARNING)
        {
            std::cerr << text << '\n';
        }
    }
};

// What TensorRT made, or an error: it returns null where it failed, and has logged why.
template <typename T> std::unique_ptr<T> made(T* object, char const* what)
{
    if (object == nullptr)
    {
        throw Lacking(std::string(kLIBRARY) + " could not " + what + ": what it said of it is above");
    }
    return std::unique_ptr<T>(object);
}

// The profile that takes these shapes and leaves the fewest sizes open, since it has the faster kernels; the first where
// several do.
int chooseProfile(nvinfer1::ICudaEngine const& engine, std::map<std::string, Input> const& inputs)
{
    int best = -1;
    std::int64_t least = 0;
    for (int profile = 0; profile < engine.getNbOptimizationProfiles(); ++profile)
    {
        bool fits = true;
        std::int64_t open = 0;
        for (auto const& [name, input] : inputs)
        {
            auto const low = engine.getProfileShape(name.c_str(), profile, nvinfer1::OptProfileSelector::kMIN);
            auto const high = engine.getProfileShape(name.c_str(), profile, nvinfer1::OptProfileSelector::kMAX);
            fits = fits && low.nbDims == input.shape.nbDims;
            for (int i = 0; fits && i < low.nbDims; ++i)
            {
                fits = low.d[i] <= input.shape.d[i] && input.shape.d[i] <= high.d[i];
                open += high.d[i] - low.d[i];
            }
        }
        if (fits && (best < 0 || open < least))
        {
            best = profile, least = open;
        }
    }
    if (best < 0)
    {
        throw Mistake("no profile of the plan takes these shapes: trtship inspect shows the sizes that it takes");
    }
    return best;
}

void checkInputs(nvinfer1::ICudaEngine const& engine, std::map<std::string, Input> const& inputs)
{
    std::size_t wanted = 0;
    for (int i = 0; i < engine.getNbIOTensors(); ++i)
    {
        char const* name = engine.getIOTensorName(i);
        if (engine.getTensorIOMode(name) != nvinfer1::TensorIOMode::kINPUT)
        {
            continue;
        }
        ++wanted;
        auto const given = inputs.find(name);
        if (given == inputs.end())
        {
            throw Mistake(std::string("the plan takes an input ") + name + ", which is not given");
        }
        auto const bytes = bytesOf(given->second.shape, engine.getTensorDataType(name));
        if (given->second.data.size() != bytes)
        {
            throw Mistake(std::string(name) + " of " + inWords(given->second.shape) + " has " + std::to_string(bytes)
                + " bytes, and its file " + std::to_string(given->second.data.size()));
        }
    }
    if (wanted != inputs.size())
    {
        throw Mistake("an input is given that the plan does not take");
    }
}

void run(std::filesystem::path const& planFile, std::string const& sha256, std::filesystem::path const& folder,
    std::map<std::string, Input> const& inputs)
{
    // A plan is code: TensorRT sees no byte of it before it is known to be the one that was shipped.
    std::string const plan = readFile(planFile);
    if (sha256::of(plan) != sha256)
    {
        throw Mistake(planFile.string() + " has the SHA-256 " + sha256::of(plan) + ", and " + sha256 + " is expected");
    }
    Logger logger;
    auto runtime = made(nvinfer1::createInferRuntime(logger), "start");
    auto engine = made(runtime->deserializeCudaEngine(plan.data(), plan.size()), "load the plan");
    checkInputs(*engine, inputs);
    auto context = made(engine->createExecutionContext(), "create a context");
    Stream stream;
    int const profile = chooseProfile(*engine, inputs);
    if (!context->setOptimizationProfileAsync(profile, stream.stream))
    {
        throw Lacking("profile " + std::to_string(profile) + " could not be set");
    }
    std::map<std::string, std::unique_ptr<Buffer>> buffers;
    auto const bind = [&](std::string const& name, std::size_t bytes) {
        auto buffer = std::make_unique<Buffer>(bytes);
        if (!context->setTensorAddress(name.c_str(), buffer->data))
        {
            throw Lacking("the address of " + name + " could not be set");
        }
        return (buffers[name] = std::move(buffer)).get();
    };
    for (auto const& [name, input] : inputs)
    {
        auto* buffer = bind(name, input.data.size());
        check(cudaMemcpyAsync(buffer->data, input.data.data(), input.data.size(), cudaMemcpyHostToDevice, stream.stream),
            "copying an input");
        if (!context->setInputShape(name.c_str(), input.shape))
        {
            throw Mistake("the plan does not take " + name + " of " + inWords(input.shape));
        }
    }
    std::map<std::string, std::string> outputs;
    for (int i = 0; i < engine->getNbIOTensors(); ++i)
    {
        std::string const name = engine->getIOTensorName(i);
        if (engine->getTensorIOMode(name.c_str()) == nvinfer1::TensorIOMode::kOUTPUT)
        {
            auto const shape = context->getTensorShape(name.c_str());
            outputs[name].resize(bytesOf(shape, engine->getTensorDataType(name.c_str())));
            bind(name, outputs[name].size());
            std::cout << name << ' ' << inWords(shape) << ' ' << fileOf(folder, name).string() << '\n';
        }
    }
    if (!context->enqueueV3(stream.stream))
    {
        throw Lacking(std::string(kLIBRARY) + " could not run the plan: what it said of it is above");
    }
    for (auto& [name, data] : outputs)
    {
        check(cudaMemcpyAsync(data.data(), buffers[name]->data, data.size(), cudaMemcpyDeviceToHost, stream.stream),
            "copying an output");
    }
    check(cudaStreamSynchronize(stream.stream), "running the plan");
    std::filesystem::create_directories(folder);
    for (auto const& [name, data] : outputs)
    {
        std::ofstream file(fileOf(folder, name), std::ios::binary);
        if (!file.write(data.data(), static_cast<std::streamsize>(data.size())).flush())
        {
            throw Mistake("cannot write " + fileOf(folder, name).string());
        }
    }
}

} // namespace

int main(int count, char** arguments)
{
    try
    {
        if (count < 5)
        {
            throw Mistake("it takes PLAN SHA256 OUT_FOLDER NAME=SIZExSIZE...=FILE [NAME=...=FILE ...]");
        }
        std::map<std::string, Input> inputs;
        for (int i = 4; i < count; ++i)
        {
            inputs.insert(parseInput(arguments[i]));
        }
        run(arguments[1], arguments[2], arguments[3], inputs);
        return 0;
    }
    catch (Mistake const& error)
    {
        std::cerr << "error: " << error.what() << '\n';
        return 2;
    }
    catch (std::exception const& error)
    {
        std::cerr << "error: " << error.what() << '\n';
        return 3;
    }
}
