// What the option --device means on this machine.
#pragma once

#include <string>

namespace longstride::device {

// Whether `device` means the GPU: "cpu" no; "cuda" yes, or what require(who) throws; "auto" where
// there is a card that require() would take. Any other word is refused.
bool on_cuda(const char* who, const std::string& device);

// Refuses a word that is no precision of inference ("f32", "bf16"), and "bf16" on the CPU, where
// evaluation and sampling are float32.
void check_precision(const char* who, const std::string& precision, bool cuda);

// For people: "cpu", or "cuda (NVIDIA H100 80GB HBM3)".
std::string name_of(bool cuda);

}  // namespace longstride::device
