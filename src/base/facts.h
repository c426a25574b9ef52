// What `longstride doctor` says of the host.
#pragma once

#include <vector>

#include "longstride/runtime.h"

namespace longstride {

std::vector<Fact> host_facts();
std::vector<Fact> environment_facts();  // variables in force that change what is done

}  // namespace longstride
