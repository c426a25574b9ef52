// What the option --device means on this machine.
#pragma once

#include <string>

namespace longstride::device {

// Whether `device` means the GPU: "cpu" no; "cuda" yes, or what require(who) throws; "auto" where
// there is a card that require() would take. Any other word is refused.
bool on_cuda(const char* who, const std::string& device);

// For people: "cpu", or "cuda (NVIDIA H100 80GB HBM3)".
std::string name_of(bool cuda);

}  // namespace longstride::device
